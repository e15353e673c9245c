"""What an actor does with a region: read, infer, write, record. Knows nothing of Ray.

Several threads may call `process` at once: while one holds the device, others read ahead and write behind.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.cluster.planning.image_statistics import image_statistics
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import RunContext, inference_settings, layout_of
from chorus.cluster.regions.batch_queue import Answered
from chorus.cluster.regions.batching import SharedDevice, SharedEngine
from chorus.cluster.regions.exclusive_gate import Gate
from chorus.cluster.regions.maps import saved_maps
from chorus.cluster.regions.retry import suspicion
from chorus.cluster.regions.work import RegionWork, region_result, region_work
from chorus.cluster.runtime.status import Passed, RegionStatus
from chorus.cluster.state.ledger import Attempts, Ledger
from chorus.cluster.telemetry.logs import about, log_of_regions
from chorus.cluster.telemetry.metrics import WorkMetrics, run_label
from chorus.cluster.telemetry.timeline import note_shared, noted, packed, span, unpacked
from chorus.pipeline.backends.loading import load_members
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import ChorusError, OutputError, RefusedError
from chorus.pipeline.inference.encoder_features import TileFeatures
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.oom_splitting import is_out_of_memory
from chorus.pipeline.inference.tile_stream import PlaneWindow
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.reading import open_level, read_window
from chorus.pipeline.io.writer import prepare_image, write_region

log = logging.getLogger("chorus")
# Of the images whose regions are in hand at once; an open array is its metadata and no pixels.
_OPEN_ARRAYS = 64
T = TypeVar("T")
Ended = TypeVar("Ended", bound="RegionStatus | Passed")


@dataclass(frozen=True)
class Here:
    """Where a worker is: its node, and the nodes that are there now, itself included."""

    node: str = ""
    nodes: Callable[[], Collection[str]] = lambda: ("",)


class Answering(Protocol):
    """Gives posteriors of the whole ensemble to several threads; see `chorus.cluster.regions.batching.SharedEngine`."""

    @property
    def tiles_per_call(self) -> int: ...

    def answer(self, plane: PlaneWindow, target: Window, features: TileFeatures | None = None) -> Answered: ...


@dataclass(frozen=True)
class _Work:
    """A region of the run that is being worked on, and where its results go."""

    region: int
    index: int
    layout: ImageLayout
    of: RegionWork


class RegionWorker:
    """Hosts the ensemble, or one stage of its members, on a device and takes regions one by one.

    Parameters
    ----------
    context : what the run is
    device : torch device
    members : indices of the ensemble's members that live here; all by default
    here : this node and which nodes are there, by names that are not given twice
    answering : has the whole ensemble on the device already, as in serving; then no member is loaded
    """

    def __init__(
        self,
        context: RunContext,
        device: torch.device,
        members: range | None = None,
        here: Here | None = None,
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
            # What is left of a batch at the end of a region goes to the next one; a GPU is told it ahead.
            self._answering = SharedEngine(SharedDevice(fair=False), self._engine)
        self._ledger = Ledger(context.out)
        # A bucket is asked for an array's metadata once, and not for every region of it.
        self._open_level = lru_cache(maxsize=_OPEN_ARRAYS)(open_level)
        self._prepared: set[str] = set()
        self._device_lock = threading.Lock()
        self._gate = Gate()
        self._here = here or Here()

    @cached_property
    def _attempts(self) -> Attempts:
        return Attempts(self._context.out, self._context.session, self._here.node)

    def process(self, region: int) -> RegionStatus:
        """A region from its pixels to its record."""
        started = time.perf_counter()
        index, place = self._table.find(region)

        def work() -> RegionStatus:
            read = self._read(region)
            of = read.of
            posterior, busy = self._answer(of)
            return self._write(read, posterior, of.features.sums(), busy, started)

        return self._guarded(region, index, place, work)

    def start(self, region: int) -> RegionStatus | Passed:
        """The first stage of a region: nothing was added before."""
        return self._stage(region, None)

    def proceed(self, region: int, before: Passed) -> RegionStatus | Passed:
        """A middle stage: add these members' samples to what came before."""
        return self._stage(region, before)

    def conclude(self, region: int, before: Passed) -> RegionStatus:
        """The last stage: add these members' samples, then write and record the region."""
        started = time.perf_counter()
        index, place = self._table.find(region)

        def work() -> RegionStatus:
            read = self._read(region)
            of = read.of

            def infer() -> tuple[Posterior, NDArray[np.int64]]:
                last = self._engine.stage(of.plane, of.target, before.state, of.features)
                return self._engine.conclude(of.plane, of.target, last), last.features

            (posterior, features), busy = self._on_device(infer)
            return self._write(read, posterior, features, busy, started)

        return self._guarded(region, index, place, work, before.spans)

    def _stage(self, region: int, before: Passed | None) -> RegionStatus | Passed:
        index, place = self._table.find(region)
        state = None if before is None else before.state

        def work() -> Passed:
            of = self._read(region).of
            return Passed(self._on_device(lambda: self._engine.stage(of.plane, of.target, state, of.features))[0])

        return self._guarded(region, index, place, work, "" if before is None else before.spans)

    def _guarded(
        self, region: int, index: int, place: int, work: Callable[[], Ended], before: str = ""
    ) -> Ended | RegionStatus:
        """`_attempt`; its end is logged, and its stages are noted, after those of `before`, where that is asked for."""
        with about(run=run_label(self._context.out), image=self._table.image(index).name, region=place):
            with noted(self._context.profile) as spans:
                ended = self._attempt(region, index, place, work)
            if spans:
                ended = replace(ended, spans=packed([*unpacked(before), *spans]))
            if isinstance(ended, RegionStatus):
                level = logging.INFO if ended.state == "done" else logging.WARNING
                fields = {"tiles": ended.tiles, "seconds": round(ended.seconds, 3), "attempts": ended.attempts}
                reason = f": {ended.message}" if ended.message else ""
                log_of_regions.log(level, "region %s%s", ended.state, reason, extra={"fields": fields})
            return ended

    def _attempt(self, region: int, index: int, place: int, work: Callable[[], Ended]) -> Ended | RegionStatus:
        """What `work` gives, or how it failed: errors are data, so that one region never stops the others."""
        try:
            with span("look up"):
                recorded = self._ledger.has_region(self._table.image(index).name, place)
                begun = [] if recorded else self._attempts.unended(region)
            if recorded:
                # A block of the stream is retried whole when its actor dies; what was recorded is not done again.
                return RegionStatus(region, index, place, "done")
            if reason := suspicion(begun, self._here.nodes):
                message = f"region {place} {reason} and is set aside; look into the logs of Ray"
                return RegionStatus(region, index, place, "quarantined", message, attempts=len(begun))
            # Whatever was in the hands of a worker that died is tried alone: so the guilty takes no other with it.
            with self._gate.enter(alone=bool(begun)):
                with span("look up"):
                    self._attempts.begin(region, begun)
                try:
                    result = work()
                    return replace(result, attempts=len(begun) + 1) if isinstance(result, RegionStatus) else result
                finally:
                    with span("record"):
                        self._attempts.end(region)
        except OutputError as error:
            return RegionStatus(region, index, place, "unwritable", str(error))
        except ChorusError as error:
            return RegionStatus(region, index, place, "failed", str(error))
        except Exception as error:
            if is_out_of_memory(error):
                message = (
                    f"region {place} needs more memory than there is ({self._settings.device}), also with one tile a "
                    f"call; use a smaller --region or --tile, or fewer --actors on a machine"
                )
                return RegionStatus(region, index, place, "failed", message)
            log.exception("region %d of image %d", place, index)
            message = f"unexpected {type(error).__name__}: {error}; please report this with the log"
            return RegionStatus(region, index, place, "failed", message)

    def _answer(self, of: RegionWork) -> Answered:
        """The posterior of a region by the whole ensemble."""
        if self._answering is None:
            return self._on_device(lambda: self._engine.posterior(of.plane, of.target, of.features))
        begun = time.time_ns()
        with self._metrics.seconds("infer"):
            answered = self._answering.answer(of.plane, of.target, of.features)
        note_shared(begun, answered[1])
        return answered

    def _on_device(self, compute: Callable[[], T]) -> tuple[T, float]:
        with self._metrics.seconds("wait"), span("wait"):
            self._device_lock.acquire()
        try:
            started = time.perf_counter()
            with self._metrics.seconds("infer"), span("infer"):
                result = compute()
            return result, time.perf_counter() - started
        finally:
            self._device_lock.release()

    def _read(self, region: int) -> _Work:
        with self._metrics.seconds("read"):
            return self._work(region)

    def _work(self, region: int) -> _Work:
        index, place = self._table.find(region)
        image = self._table.image(index)
        where = image.locate(place)

        def read(window: Window) -> NDArray[Any]:
            array = self._open_level(image.url, image.level_path, image.ngff)
            raw = read_window(array, image.axes, where.t, where.z, image.channels, window, strict=self._settings.strict)
            self._metrics.read(raw.nbytes)
            return raw

        with span("look up"):
            known = image_statistics(self._context, image, self._ensemble)
            layout = layout_of(image, self._ensemble, self._settings, self._context.out)
        return _Work(region, index, layout, region_work(image, place, where, self._settings, self._inputs, known, read))

    def _write(
        self, work: _Work, posterior: Posterior, features: NDArray[np.int64], busy: float, started: float
    ) -> RegionStatus:
        with self._metrics.seconds("write"):
            return self._record(work, posterior, features, busy, started)

    def _record(
        self, work: _Work, posterior: Posterior, features: NDArray[np.int64], busy: float, started: float
    ) -> RegionStatus:
        of = work.of
        with span("score"):
            posterior, record = region_result(of, posterior, features, self._ensemble, self._settings, busy)
        with span("prepare output"):
            self._prepare(work.layout)
        with span("write"):
            maps, window = saved_maps(posterior, self._settings.save, work.layout.dtype), of.where.window
            write_region(work.layout, of.where.t, of.where.z, window, maps, posterior.labels)
        self._metrics.written((0 if maps is None else maps.nbytes) + posterior.labels.nbytes)
        with span("record"):
            self._ledger.record_region(of.image.name, record)
        seconds = time.perf_counter() - started
        return RegionStatus(
            region=work.region,
            image=work.index,
            place=of.place,
            state="done",
            tiles=record.tiles,
            pixels=window.pixels,
            device_seconds=busy,
            seconds=seconds,
            passes=of.features.passes,
            tiles_per_call=(self._answering or self._engine).tiles_per_call,
        )

    def _prepare(self, layout: ImageLayout) -> None:
        if layout.url not in self._prepared:
            prepare_image(layout)
            self._prepared.add(layout.url)
