"""What an actor does with a region: read, infer, write, record. Knows nothing of Ray.

Several threads may call `process` at once: while one holds the device, others read ahead and write behind.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.gate import Gate
from cluster.images import ImageTable, PlannedImage, RegionPlace
from cluster.ledger import MAXIMUM_ATTEMPTS, Attempts, Ledger, RegionRecord
from cluster.logs import about, log_of_regions
from cluster.metrics import WorkMetrics, run_label
from cluster.plan import RunContext, inference_settings, layout_of, model_centres, model_grid
from cluster.region_maps import axis_maps, is_resampled, on_image, saved_maps
from cluster.statistics import image_statistics
from pipeline.appearance import appearance
from pipeline.ensemble import read_ensemble
from pipeline.errors import ChorusError, ImageError, OutputError, RefusedError
from pipeline.features import FeatureSums, TileFeatures
from pipeline.geometry import Window
from pipeline.inference import Engine, PlaneWindow, StageState
from pipeline.layout import ImageLayout
from pipeline.outputs import prepare_image, write_region
from pipeline.posterior import Posterior
from pipeline.reading import open_level, read_window
from pipeline.resampling import AxisMap, resample
from pipeline.scores import patch_edge, region_sums

log = logging.getLogger("chorus")
# Of the images whose regions are in hand at once; an open array is its metadata and no pixels.
_OPEN_ARRAYS = 64
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """How a region ended, a row of the stream.

    Attributes
    ----------
    region, image, place : of the run, of the table, of the image
    state : ``done``; ``failed``, its image cannot be done; ``quarantined``, it took its actor with it too often;
        ``unwritable``, the output cannot take it
    message : the reason, empty when done
    tiles, pixels : evaluated, written
    device_seconds, seconds : that it held the device, and in all
    attempts : how often it was begun; more than once where the process that worked on it died
    """

    region: int
    image: int
    place: int
    state: Literal["done", "failed", "quarantined", "unwritable"]
    message: str = ""
    tiles: int = 0
    pixels: int = 0
    device_seconds: float = 0.0
    seconds: float = 0.0
    attempts: int = 1


@dataclass(frozen=True)
class _Work:
    """A region that is being worked on: its own pixels as stored, the prepared ones of all tiles that touch it, and
    `features`, which gathers those of its tiles."""

    region: int
    index: int
    place: int
    image: PlannedImage
    layout: ImageLayout
    where: RegionPlace
    target: Window
    pixels: NDArray[Any]
    plane: PlaneWindow
    features: TileFeatures


class RegionWorker:
    """Hosts the ensemble, or one stage of its members, on a device and takes regions one by one.

    Parameters
    ----------
    context : what the run is
    device : torch device
    members : indices of the ensemble's members that live here; all by default
    """

    def __init__(self, context: RunContext, device: torch.device, members: range | None = None) -> None:
        if device.type == "cpu":
            torch.set_num_threads(context.threads)
        self._context = context
        self._ensemble = read_ensemble(context.ensemble, trust_code=context.trust_code)
        if self._ensemble.hash != context.ensemble_hash:
            raise RefusedError(f"{context.ensemble}: changed since the run began; restore it or start a new output")
        self._table = ImageTable.read(context.table_url)
        self._settings = context.settings
        indices = members if members is not None else range(len(self._ensemble.spec.members))
        loaded = [self._ensemble.load_member(index, device, self._settings.tile) for index in indices]
        self._inputs = self._ensemble.inputs(indices, self._settings.tile)
        inference = inference_settings(self._settings, self._ensemble)
        self._engine = Engine(loaded, inference, device, self._inputs.channels)
        self._ledger = Ledger(context.out)
        # A bucket is asked for an array's metadata once, and not for every region of it.
        self._open_level = lru_cache(maxsize=_OPEN_ARRAYS)(open_level)
        self._metrics = WorkMetrics(context)
        self._prepared: set[str] = set()
        self._device_lock = threading.Lock()
        self._gate = Gate()

    @cached_property
    def _attempts(self) -> Attempts:
        return Attempts(self._context.out, self._context.session)

    def process(self, region: int) -> RegionStatus:
        """A region from its pixels to its record."""
        started = time.perf_counter()
        index, place = self._table.find(region)

        def work() -> RegionStatus:
            read = self._read(region)
            posterior, busy = self._on_device(lambda: self._engine.posterior(read.plane, read.target, read.features))
            return self._write(read, posterior, read.features.sums(), busy, started)

        return self._guarded(region, index, place, work)

    def start(self, region: int) -> RegionStatus | StageState:
        """The first stage of a region: nothing was added before."""
        return self._stage(region, None)

    def proceed(self, region: int, state: StageState) -> RegionStatus | StageState:
        """A middle stage: add these members' samples to what came before."""
        return self._stage(region, state)

    def conclude(self, region: int, state: StageState) -> RegionStatus:
        """The last stage: add these members' samples, then write and record the region."""
        started = time.perf_counter()
        index, place = self._table.find(region)

        def work() -> RegionStatus:
            read = self._read(region)

            def infer() -> tuple[Posterior, NDArray[np.int64]]:
                last = self._engine.stage(read.plane, read.target, state, read.features)
                return self._engine.conclude(read.plane, read.target, last), last.features

            (posterior, features), busy = self._on_device(infer)
            return self._write(read, posterior, features, busy, started)

        return self._guarded(region, index, place, work)

    def _stage(self, region: int, state: StageState | None) -> RegionStatus | StageState:
        index, place = self._table.find(region)

        def work() -> StageState:
            read = self._read(region)
            return self._on_device(lambda: self._engine.stage(read.plane, read.target, state, read.features))[0]

        return self._guarded(region, index, place, work)

    def _guarded(self, region: int, index: int, place: int, work: Callable[[], T]) -> T | RegionStatus:
        """`_attempt`, whose end is logged."""
        with about(run=run_label(self._context.out), image=self._table.image(index).name, region=place):
            ended = self._attempt(region, index, place, work)
            if isinstance(ended, RegionStatus):
                level = logging.INFO if ended.state == "done" else logging.WARNING
                fields = {"tiles": ended.tiles, "seconds": round(ended.seconds, 3), "attempts": ended.attempts}
                reason = f": {ended.message}" if ended.message else ""
                log_of_regions.log(level, "region %s%s", ended.state, reason, extra={"fields": fields})
            return ended

    def _attempt(self, region: int, index: int, place: int, work: Callable[[], T]) -> T | RegionStatus:
        """What `work` gives, or how it failed: errors are data, so that one region never stops the others."""
        try:
            if self._ledger.has_region(self._table.image(index).name, place):
                # A block of the stream is retried whole when its actor dies; what was recorded is not done again.
                return RegionStatus(region, index, place, "done")
            begun = self._attempts.unended(region)
            if begun >= MAXIMUM_ATTEMPTS:
                message = f"region {place} ended its worker {begun} times and is set aside; look into the logs of Ray"
                return RegionStatus(region, index, place, "quarantined", message)
            # Whatever was in the hands of a worker that died is tried alone: so the guilty takes no other with it.
            with self._gate.enter(alone=begun > 0):
                self._attempts.begin(region, begun)
                try:
                    result = work()
                    return replace(result, attempts=begun + 1) if isinstance(result, RegionStatus) else result
                finally:
                    self._attempts.end(region)
        except OutputError as error:
            return RegionStatus(region, index, place, "unwritable", str(error))
        except ChorusError as error:
            return RegionStatus(region, index, place, "failed", str(error))
        except torch.OutOfMemoryError:
            self._metrics.out_of_memory()
            message = "the device is out of memory; run again with a smaller --batch or --region"
            return RegionStatus(region, index, place, "failed", message)
        except Exception as error:
            log.exception("region %d of image %d", place, index)
            message = f"unexpected {type(error).__name__}: {error}; please report this with the log"
            return RegionStatus(region, index, place, "failed", message)

    def _on_device(self, compute: Callable[[], T]) -> tuple[T, float]:
        with self._metrics.seconds("wait"):
            self._device_lock.acquire()
        try:
            started = time.perf_counter()
            with self._metrics.seconds("infer"):
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
        y, x = axis_maps(image)
        target = Window(y.needed(where.window.y), x.needed(where.window.x)) if is_resampled(image) else where.window
        grid = model_grid(image, self._settings)
        pixels, prepared = self._pixels(image, where, grid.needed(target))
        plane = PlaneWindow(prepared, grid.needed(target), grid)
        layout = layout_of(image, self._ensemble, self._settings, self._context.out)
        features = TileFeatures(grid, model_centres(image, where.window))
        return _Work(region, index, place, image, layout, where, target, pixels, plane, features)

    def _pixels(
        self, image: PlannedImage, where: RegionPlace, needed: Window
    ) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """The region's own pixels, (channels, y, x) as stored, and the prepared ones of a window of the model's plane,
        (channels of all preparations, y, x) float32."""
        source = needed
        y, x = AxisMap.make(image.height, image.model_height), AxisMap.make(image.width, image.model_width)
        if is_resampled(image):
            source = Window(y.needed(needed.y), x.needed(needed.x))
        array = self._open_level(image.url, image.level_path, image.ngff)
        raw = read_window(array, image.axes, where.t, where.z, image.channels, source, strict=self._settings.strict)
        self._metrics.read(raw.nbytes)
        known = image_statistics(self._context, image, self._ensemble)
        prepared = np.concatenate([preparation.apply(raw, known) for preparation in self._inputs.preparations])
        own = raw[:, *where.window.within(source)].copy()  # not a view, which would keep all that was read
        return own, resample(prepared, source, needed, y, x) if is_resampled(image) else prepared

    def _write(
        self, work: _Work, posterior: Posterior, features: NDArray[np.int64], busy: float, started: float
    ) -> RegionStatus:
        with self._metrics.seconds("write"):
            return self._record(work, posterior, features, busy, started)

    def _record(
        self, work: _Work, posterior: Posterior, features: NDArray[np.int64], busy: float, started: float
    ) -> RegionStatus:
        if not np.isfinite(posterior.epistemic).all():
            # Labels of it would be background everywhere: an empty image, where there is no answer at all.
            raise ImageError(
                f"{work.image.url}: region {work.place}: members answer with NaN; look for pixels far beyond what they "
                f"were trained on, check the normalisation, or use --precision fp32"
            )
        if is_resampled(work.image):
            posterior = on_image(posterior, work.image, work.target, work.where.window)
        classes, multilabel = len(self._ensemble.spec.classes), self._ensemble.multilabel
        self._prepare(work.layout)
        maps = saved_maps(posterior, self._settings.save)
        write_region(work.layout, work.where.t, work.where.z, work.where.window, maps, posterior.labels)
        size = 0 if maps is None else maps.size * np.dtype(work.layout.dtype).itemsize
        self._metrics.written(size + posterior.labels.nbytes)
        tiles = work.plane.grid.tile_count(work.target)
        seconds = time.perf_counter() - started
        patch = patch_edge(self._settings.chunk)
        sums = region_sums(posterior, classes, multilabel=multilabel, patch=patch)
        looks = appearance(work.pixels, posterior.masks, classes, multilabel=multilabel, patch=patch)
        seen = FeatureSums.of(work.features.tiles, features)
        record = RegionRecord(
            region=work.place, sums=sums, appearance=looks, features=seen, tiles=tiles, seconds=round(busy, 3)
        )
        self._ledger.record_region(work.image.name, record)
        return RegionStatus(
            work.region, work.index, work.place, "done", "", tiles, work.where.window.pixels, busy, seconds
        )

    def _prepare(self, layout: ImageLayout) -> None:
        if layout.url not in self._prepared:
            prepare_image(layout)
            self._prepared.add(layout.url)


def member_groups(members: int, stages: int) -> list[range]:
    """Members of each stage, in order, as evenly as they go."""
    if stages > members:
        raise RefusedError(f"{stages} stages for {members} members; give at most {members}")
    edges = [round(stage * members / stages) for stage in range(stages + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]
