"""Which backend and how many tiles a call a run takes where nobody chooses: measured on the machine, kept, and used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from chorus.pipeline.backends.choice import Backend, usable
from chorus.pipeline.backends.conversion import cache_folder, device_name
from chorus.pipeline.backends.measuring import EnsembleTimings, Work, measured
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.inference.oom_splitting import is_out_of_memory
from chorus.pipeline.inference.posterior_builder import Precision, tiles_per_call
from chorus.pipeline.io import storage

# Of larger batches that are as fast within this the smaller one is taken: it leaves more memory and waits for less.
_AS_FAST = 1.02


@dataclass(frozen=True, slots=True)
class Workload:
    """What members are asked, whatever carries them out.

    Attributes
    ----------
    tile : edge in pixels
    augmentations : how many of each tile
    """

    tile: int
    augmentations: int
    precision: Precision
    device: torch.device

    @property
    def batch(self) -> int:
        """Tiles a call where nothing was measured."""
        return tiles_per_call(self.device.type, self.tile, self.augmentations)

    @property
    def batches(self) -> list[int]:
        """Tiles a call that are worth trying: `batch`, 1, 2, 4 and so on."""
        most = max(1, device_of(self.device).most_pixels // (self.augmentations * self.tile**2))
        return sorted({self.batch, *(1 << power for power in range(most.bit_length()))})

    def work(self, batch: int) -> Work:
        return Work(self.tile, batch * self.augmentations, self.precision, self.device)


def measure_and_keep(
    ensemble: Ensemble,
    workload: Workload,
    seconds: float,
    batch: int | None = None,
    begun: Callable[[int, str, Backend], None] = lambda *_: None,
) -> list[EnsembleTimings]:
    """Every backend with `batch` tiles a call; where it is None with `Workload.batch`, and the fastest one with more
    and with fewer, as long as that is faster and there is memory for it.

    Parameters
    ----------
    seconds : see `chorus.pipeline.backends.measuring.measured`
    begun : told of the tiles a call, the network and the backend
    """

    def kept(tiles: int, backends: list[Backend] | None = None) -> EnsembleTimings:
        work = workload.work(tiles)

        def told(network: str, backend: Backend) -> None:
            begun(tiles, network, backend)

        timings = measured(ensemble, work, seconds, told, backends)
        storage.write_bytes(_path(ensemble.hash, work), timings.model_dump_json(indent=2).encode())
        return timings

    if batch is None:  # what was measured another day is not compared with what is measured now
        for tiles in workload.batches:
            Path(_path(ensemble.hash, workload.work(tiles))).unlink(missing_ok=True)
    first = batch or workload.batch
    found = [kept(first)]
    others = [] if batch else workload.batches
    best = found[0].best
    for row in ([n for n in others if n > first], [n for n in reversed(others) if n < first]):
        for tiles in row:
            try:
                timings = kept(tiles, [best])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                break
            found.append(timings)
            if timings.seconds(timings.best) > min(one.seconds(one.best) for one in found):
                break
    return sorted(found, key=lambda timings: timings.samples)


def fastest(found: list[EnsembleTimings], workload: Workload) -> tuple[Backend, int] | None:
    """The backend and the tiles a call with which a tile takes all members the least time; None without timings."""
    known = [timings for timings in found if timings.best in usable(workload.precision, workload.device.type)]
    if not known:
        return None
    least = min(timings.seconds(timings.best) for timings in known)
    as_fast = [timings for timings in known if timings.seconds(timings.best) <= least * _AS_FAST]
    chosen = min(as_fast, key=lambda timings: timings.samples)
    return chosen.best, chosen.samples // workload.augmentations


def choose(ensemble: Ensemble, workload: Workload, batch: int | None = None) -> tuple[Backend, int]:
    """What was the fastest on such a device, with `batch` tiles a call where it is given; else ``eager``."""
    batches = workload.batches if batch is None else [batch]
    found = [timings for tiles in batches if (timings := known_timings(ensemble, workload.work(tiles)))]
    return fastest(found, workload) or ("eager", batch or workload.batch)


def known_timings(ensemble: Ensemble, work: Work) -> EnsembleTimings | None:
    """What was measured on such a device, or None."""
    if not device_of(work.device).available():
        return None  # a driver without a GPU cannot know which ones its machines have
    try:
        return EnsembleTimings.model_validate_json(storage.read_bytes(_path(ensemble.hash, work)))
    except (OSError, ValidationError):
        return None


def _path(ensemble: str, work: Work) -> str:
    key = (ensemble, work.tile, work.samples, work.precision, device_name(work.device))
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
    return str(cache_folder() / "timings" / f"{name}.json")
