"""The work of an actor on a region: read, infer, write, record. Knows nothing of Ray.

Several threads may call `process` at once: while one holds the device, others read ahead and write behind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.cluster.planning.image_statistics import image_statistics
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import RunContext, layout_of
from chorus.cluster.planning.resolved_settings import inference_settings
from chorus.cluster.regions.batch_queue import Answered
from chorus.cluster.regions.batching import SharedDevice, SharedEngine
from chorus.cluster.regions.guard import NodeInfo, RegionGuard
from chorus.cluster.regions.maps import saved_maps
from chorus.cluster.regions.work import RegionWork, region_result, region_work
from chorus.cluster.runtime.status import Passed, RegionStatus
from chorus.cluster.state.ledger import Ledger
from chorus.cluster.telemetry.metrics import WorkMetrics
from chorus.cluster.telemetry.timeline import note_shared, span
from chorus.pipeline.backends.loading import load_members
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.encoder_features import TileFeatures
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.stages import StageState
from chorus.pipeline.inference.tile_stream import PlaneWindow
from chorus.pipeline.io.fences import cover
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.outputs.writer import prepare_image, write_region
from chorus.pipeline.io.sources.reading import open_level, read_window

# Open arrays, for the images in progress; an open array holds metadata and no pixels.
_OPEN_ARRAYS = 64
T = TypeVar("T")


class Answering(Protocol):
    """Computes posteriors of the ensemble for several threads; see `chorus.cluster.regions.batching.SharedEngine`."""

    @property
    def tiles_per_call(self) -> int:
        """Return the number of tiles of one call of the networks."""

    def answer(self, plane: PlaneWindow, target: Window, features: TileFeatures | None = None) -> Answered:
        """Predict the tiles of `plane` and return the posterior of `target`."""


@dataclass(frozen=True)
class _Task:
    """A region of the run with its pixels, and where its results go."""

    region: int
    index: int
    layout: ImageLayout
    work: RegionWork


class _Inferred(NamedTuple):
    """The members' prediction for a region: its posterior, sums of features, seconds that the device was held."""

    posterior: Posterior
    features: NDArray[np.int64]
    seconds: float


class RegionWorker:
    """Hosts the ensemble, or one stage of its members, on a device and takes regions one by one.

    Parameters
    ----------
    context : what the run is
    device : torch device
    members : indices of the ensemble's members that live here; all by default
    node : where this process is
    answering : hosts the whole ensemble on the device already, as in serving; then no member is loaded
    """

    def __init__(
        self,
        context: RunContext,
        device: torch.device,
        members: range | None = None,
        node: NodeInfo | None = None,
        answering: Answering | None = None,
    ) -> None:
        device_of(device).use_threads(context.settings.threads)
        self._context = context
        self._ensemble = read_ensemble(context.ensemble, trust_code=context.trust_code)
        if self._ensemble.hash != context.ensemble_hash:
            raise RefusedError(f"{context.ensemble}: changed since the run began; restore it or start a new output")
        self._table = ImageTable.read(context.table_url)
        self._settings = context.settings
        indices = members if members is not None else range(len(self._ensemble.spec.members))
        to_load = [] if answering else indices
        tile, backend, precision = self._settings.tile, self._settings.backend, self._settings.precision
        loaded = load_members(self._ensemble, to_load, device, tile, backend, precision)
        self._inputs = self._ensemble.inputs(indices, self._settings.tile)
        inference = inference_settings(self._settings, self._ensemble)
        self._metrics = WorkMetrics(context.out, context.ensemble_name)
        short = self._metrics.out_of_memory
        channels = [] if answering else self._inputs.channels
        self._engine = Engine(loaded, inference, device, channels, short)
        self._answering = answering
        shared = self._settings.batch > 1 or device_of(device).accelerated
        if answering is None and len(indices) == len(self._ensemble.spec.members) and shared:
            # The rest of a batch at the end of a region is filled by the next one; a GPU gets batches ahead.
            self._answering = SharedEngine(SharedDevice(fair=False), self._engine)
        self._ledger = Ledger(context.out)
        # Read an array's metadata from the bucket once, not once per region.
        self._open_level = lru_cache(maxsize=_OPEN_ARRAYS)(open_level)
        self._prepared: set[str] = set()
        self._device_lock = threading.Lock()
        self._guard = RegionGuard(context, self._table, self._metrics, node or NodeInfo())

    def process(self, region: int) -> RegionStatus:
        """Process a region from its pixels to its record."""
        started = time.perf_counter()

        def work() -> RegionStatus:
            task = self._read(region)
            return self._write(task, self._infer(task.work), started)

        return self._guard.run(region, work)

    def start(self, region: int) -> RegionStatus | Passed:
        """Run the first stage of a region, which has no earlier sums."""
        return self._pass_on(region, None)

    def proceed(self, region: int, before: Passed) -> RegionStatus | Passed:
        """Run a middle stage: add these members' samples to the sums of earlier stages."""
        return self._pass_on(region, before)

    def conclude(self, region: int, before: Passed) -> RegionStatus:
        """Run the last stage: add these members' samples, then write and record the region."""
        started = time.perf_counter()

        def work() -> RegionStatus:
            task = self._read(region)
            return self._write(task, self._infer_last(task.work, before.state), started)

        return self._guard.run(region, work, before.spans)

    def _pass_on(self, region: int, before: Passed | None) -> RegionStatus | Passed:
        state = None if before is None else before.state

        def work() -> Passed:
            prepared = self._read(region).work
            return Passed(
                self._on_device(lambda: self._engine.stage(prepared.plane, prepared.target, state, prepared.features))[
                    0
                ]
            )

        return self._guard.run(region, work, "" if before is None else before.spans)

    def _read(self, region: int) -> _Task:
        """Read and prepare the pixels of all tiles that touch a region."""
        index, region_in_image = self._table.find(region)
        image = self._table.image(index)
        where = image.locate(region_in_image)

        def read(window: Window) -> NDArray[Any]:
            array = self._open_level(image.url, image.level_path, image.ngff)
            raw = read_window(
                array, image.axes, where.t, where.z, image.channels, window, strict=self._settings.strict, source=True
            )
            self._metrics.read(raw.nbytes)
            return raw

        with span("look up"):
            known = image_statistics(self._context, image, self._ensemble)
            layout = layout_of(image, self._ensemble, self._settings, self._context.out)
        return _Task(
            region, index, layout, region_work(image, region_in_image, where, self._settings, self._inputs, known, read)
        )

    def _infer(self, work: RegionWork) -> _Inferred:
        """Compute the posterior of a region with the whole ensemble."""
        if self._answering is None:
            posterior, seconds = self._on_device(lambda: self._engine.posterior(work.plane, work.target, work.features))
        else:
            begun = time.time_ns()
            posterior, seconds = self._answering.answer(work.plane, work.target, work.features)
            note_shared(begun, seconds)
        return _Inferred(posterior, work.features.sums(), seconds)

    def _infer_last(self, work: RegionWork, before: StageState) -> _Inferred:
        """Add the samples of the last members to the sums of earlier stages."""

        def compute() -> tuple[Posterior, NDArray[np.int64]]:
            last = self._engine.stage(work.plane, work.target, before, work.features)
            return self._engine.conclude(work.plane, work.target, last), last.features

        (posterior, features), seconds = self._on_device(compute)
        return _Inferred(posterior, features, seconds)

    def _on_device(self, compute: Callable[[], T]) -> tuple[T, float]:
        """Compute while no other region uses the device; return the result and the seconds that it took."""
        with span("wait"):
            self._device_lock.acquire()
        try:
            started = time.perf_counter()
            with span("infer"):
                result = compute()
            return result, time.perf_counter() - started
        finally:
            self._device_lock.release()

    def _write(self, task: _Task, inferred: _Inferred, started: float) -> RegionStatus:
        """Score a region and write its maps, its labels and, last, its record."""
        work, busy = task.work, inferred.seconds
        with span("score"):
            posterior, record = region_result(
                work, inferred.posterior, inferred.features, self._ensemble, self._settings, busy
            )
        with span("prepare output"):
            self._prepare(task.layout)
        with span("write"):
            maps, window = saved_maps(posterior, self._settings.save, task.layout.dtype), work.where.window
            files = write_region(task.layout, work.where.t, work.where.z, window, maps, posterior.labels)
        self._metrics.written((0 if maps is None else maps.nbytes) + posterior.labels.nbytes)
        with span("record"):
            self._ledger.record_region(work.image.name, record.model_copy(update={"files": files}))
        return RegionStatus(
            region=task.region,
            image=task.index,
            region_in_image=work.region_in_image,
            state="done",
            tiles=record.tiles,
            pixels=window.pixels,
            device_seconds=busy,
            seconds=time.perf_counter() - started,
            passes=work.features.passes,
            tiles_per_call=(self._answering or self._engine).tiles_per_call,
        )

    def _prepare(self, layout: ImageLayout) -> None:
        if layout.url not in self._prepared:
            cover(layout.labels_url, self._context.out)
            prepare_image(layout)
            self._prepared.add(layout.url)
