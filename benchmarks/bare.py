"""Forward passes of an ensemble's members and nothing else, as fast as this machine can: what runs are measured by."""

from __future__ import annotations

import itertools
import multiprocessing as mp
import time
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console

from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings
from chorus.pipeline.backends.choice import Backend
from chorus.pipeline.core.augmentation import FLIPS
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.inference.posterior_builder import Precision

TILES_PER_CALL = (1, 2, 4)
console = Console()


@dataclass(frozen=True)
class Setting:
    """How forward passes are spread over the cores (`tiles` per call), and how they compute."""

    tile: int
    processes: int
    threads: int
    tiles: int
    channels_last: bool
    backend: Backend = "eager"
    precision: Precision = "fp32"


def best_setting(
    ensemble: Path, tile: int, augmentations: int, how: dict[str, str], *, seconds: float, processes: int | None = None
) -> Setting:
    """The fastest of the settings that this machine offers, each tried for a few seconds; `how` is as given.

    With all cores, one process with all of them or one for each; with fewer `processes` these, of one thread each.
    """
    cores = psutil.cpu_count() or 1
    chosen: dict[str, Any] = how | {"backend": backend_of(ensemble, tile, augmentations, how)}
    # Other backends than PyTorch itself choose how numbers lie in memory.
    layouts = (True, False) if chosen["backend"] == "eager" else (True,)
    rates: dict[Setting, float] = {}
    for spread, threads in {(processes, 1)} if processes else {(cores, 1), (1, cores)}:
        settings = [
            Setting(tile, spread, threads, tiles, last, **chosen)
            for tiles, last in itertools.product(TILES_PER_CALL, layouts)
            if tiles == 1 or tile**2 * tiles * augmentations <= 4 * 512**2
        ]
        found = passes_per_second(ensemble, augmentations, settings, seconds=seconds)
        rates |= dict(zip(settings, found, strict=True))
    best = max(rates, key=lambda setting: rates[setting])
    console.print(f"fastest bare passes: {best}, {rates[best]:.2f} a second", highlight=False)
    return best


def backend_of(ensemble: Path, tile: int, augmentations: int, how: dict[str, str]) -> str:
    """The backend that a run takes where ``auto`` is asked for: the fastest that `chorus bench engine` found."""
    if how["backend"] != "auto":
        return how["backend"]
    settings = ResultSettings.model_validate(how | {"tile": tile, "augmentations": list(FLIPS)[:augmentations]})
    return resolve(settings, read_ensemble(str(ensemble))).backend


def passes_per_second(ensemble: Path, augmentations: int, settings: list[Setting], *, seconds: float) -> list[float]:
    """Forward passes of tiles a second over all processes, after a warm-up, for settings of one spread."""
    context = mp.get_context("spawn")
    processes = settings[0].processes
    barrier, queue = context.Barrier(processes), context.Queue()
    arguments = (str(ensemble), augmentations, settings, seconds, barrier, queue)
    workers = [context.Process(target=_forward, args=arguments) for _ in range(processes)]
    for worker in workers:
        worker.start()
    totals = np.sum([queue.get() for _ in workers], axis=0)
    for worker in workers:
        worker.join()
    return [float(total) for total in totals]


def _forward(
    ensemble: str,
    augmentations: int,
    settings: list[Setting],
    seconds: float,
    barrier: Barrier,
    queue: Queue[list[float]],
) -> None:
    """Nothing but calls of the members, in turn."""
    from chorus.pipeline.backends.member import on_backend
    from chorus.pipeline.inference.allocation import keep_freed_memory
    from chorus.pipeline.inference.members import AUTOCAST

    torch.set_num_threads(settings[0].threads)
    keep_freed_memory()
    read = read_ensemble(ensemble)
    members = [read.load_member(index, torch.device("cpu")) for index in range(len(read.spec.members))]
    rates = []
    with torch.inference_mode():
        for setting in settings:
            layout = torch.channels_last if setting.channels_last else torch.contiguous_format
            for member in members:
                member.module.to(memory_format=layout)
            asked = [on_backend(one, setting.backend, setting.precision, torch.device("cpu")) for one in members]
            batch = torch.randn(setting.tiles * augmentations, 1, setting.tile, setting.tile).to(memory_format=layout)
            dtype = AUTOCAST.get(setting.precision)
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                for one in asked:
                    one(batch)
                barrier.wait()
                started, calls = time.monotonic(), 0
                while time.monotonic() - started < seconds:
                    asked[calls % len(asked)](batch)
                    calls += 1
            rates.append(calls * len(batch) / (time.monotonic() - started))
    queue.put(rates)
