"""Default backend and number of tiles per call of a run: measured on the machine, cached, and reused."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from chorus.pipeline.backends.choice import Backend, usable
from chorus.pipeline.backends.conversion import cache_folder, device_name
from chorus.pipeline.backends.measuring import EnsembleTimings, Work, measured
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.geometry import TileSize, tile_shape
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.inference.oom_splitting import is_out_of_memory
from chorus.pipeline.inference.posterior_builder import Precision, tiles_per_call
from chorus.pipeline.io import storage

# Of batches that are equally fast within this factor the smallest one is used: it needs less memory and waits less.
_AS_FAST = 1.02


@dataclass(frozen=True, slots=True)
class Workload:
    """The input of members, on any backend.

    Attributes
    ----------
    tile : its size
    augmentations : number of augmentations per tile
    """

    tile: TileSize
    augmentations: int
    precision: Precision
    device: torch.device

    @property
    def batch(self) -> int:
        """Default number of tiles per call, without measurement."""
        return tiles_per_call(self.device.type, tile_shape(self.tile), self.augmentations)

    @property
    def batches(self) -> list[int]:
        """Numbers of tiles per call to try: `batch`, 1, 2, 4 and so on."""
        most = max(1, device_of(self.device).most_pixels // (self.augmentations * math.prod(tile_shape(self.tile))))
        return sorted({self.batch, *(1 << power for power in range(most.bit_length()))})

    def work(self, batch: int) -> Work:
        """Return the input of a call with `batch` tiles."""
        return Work(self.tile, batch * self.augmentations, self.precision, self.device)


def measure_and_keep(
    ensemble: Ensemble,
    workload: Workload,
    seconds: float,
    batch: int | None = None,
    begun: Callable[[int, str, Backend], None] = lambda *_: None,
) -> list[EnsembleTimings]:
    """Measure every backend, and cache the timings.

    With `batch` None every backend is measured with `Workload.batch`, and the fastest one also with more and with fewer
    tiles per call, as long as that is faster and fits in memory.

    Parameters
    ----------
    ensemble, workload : what to measure
    seconds : see `chorus.pipeline.backends.measuring.measured`
    batch : tiles per call
    begun : called with the tiles per call, the network and the backend before each is measured
    """

    def kept(tiles: int, backends: list[Backend] | None = None) -> EnsembleTimings:
        work = workload.work(tiles)

        def told(network: str, backend: Backend) -> None:
            begun(tiles, network, backend)

        timings = measured(ensemble, work, seconds, told, backends)
        storage.write_bytes(_path(ensemble.hash, work), timings.model_dump_json(indent=2).encode())
        return timings

    if batch is None:  # earlier timings are not compared with those measured now
        for tiles in workload.batches:
            Path(_path(ensemble.hash, workload.work(tiles))).unlink(missing_ok=True)
    first = batch or workload.batch
    kept_timings = [kept(first)]
    others = [] if batch else workload.batches
    best = kept_timings[0].best
    for row in ([n for n in others if n > first], [n for n in reversed(others) if n < first]):
        for tiles in row:
            try:
                timings = kept(tiles, [best])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                break
            kept_timings.append(timings)
            if timings.seconds(timings.best) > min(one.seconds(one.best) for one in kept_timings):
                break
    return sorted(kept_timings, key=lambda timings: timings.samples)


def fastest(measured: list[EnsembleTimings], workload: Workload) -> tuple[Backend, int] | None:
    """Return the backend and the tiles per call with the least time per tile for all members; None without timings."""
    known = [timings for timings in measured if timings.best in usable(workload.precision, workload.device.type)]
    if not known:
        return None
    least = min(timings.seconds(timings.best) for timings in known)
    as_fast = [timings for timings in known if timings.seconds(timings.best) <= least * _AS_FAST]
    chosen = min(as_fast, key=lambda timings: timings.samples)
    return chosen.best, chosen.samples // workload.augmentations


def choose(ensemble: Ensemble, workload: Workload, batch: int | None = None) -> tuple[Backend, int]:
    """Return the fastest known backend and tiles per call on this kind of device; ``eager`` without timings.

    Parameters
    ----------
    ensemble, workload : what to run
    batch : tiles per call, if it is fixed
    """
    batches = workload.batches if batch is None else [batch]
    measured = [timings for tiles in batches if (timings := known_timings(ensemble, workload.work(tiles)))]
    return fastest(measured, workload) or ("eager", batch or workload.batch)


def known_timings(ensemble: Ensemble, work: Work) -> EnsembleTimings | None:
    """Return the cached timings of this kind of device, or None."""
    if not device_of(work.device).available():
        return None  # a driver without a GPU cannot know which GPUs its machines have
    try:
        return EnsembleTimings.model_validate_json(storage.read_bytes(_path(ensemble.hash, work)))
    except (OSError, ValidationError):
        return None


def _path(ensemble: str, work: Work) -> str:
    key = (ensemble, work.tile, work.samples, work.precision, device_name(work.device))
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
    return str(cache_folder() / "timings" / f"{name}.json")
