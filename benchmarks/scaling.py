"""Weak scaling on Ray with members that sleep as long as a GPU would work, and what a block costs the driver.

`weak`: ``chorus predict`` from OME-Zarr to OME-Zarr with 1, 2, 4, ... actors and as many regions for each. The one
member is a real one, a package whose network sleeps in its forward pass and then answers; all else is the product's:
stream, reading ahead, blending, writing behind, ledger, pyramids. `driver`: the product's stream with actors that
answer at once, so that what is left is the driver's own work, per block and per region.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# As in a cluster, where nothing else works on a node: Ray would give its workers the lowest rank on this machine.
os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np
import psutil
import torch
import typer
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.made import write_image
from benchmarks.watching import Watch
from chorus.cluster.planning.devices.placement import Placement
from chorus.cluster.planning.plan import RunContext
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.resolved_settings import ResolvedSettings
from chorus.cluster.planning.settings import ResultSettings, RunSettings

REGION, SIDE = 128, 512
REGIONS_PER_IMAGE = (SIDE // REGION) ** 2
CODE = '''
import os
import time

import torch


class Sleeper(torch.nn.Module):
    """Answers what is bright, after `seconds`; notes when it slept."""

    def __init__(self, seconds, notes):
        super().__init__()
        self.seconds, self.notes = seconds, notes
        self.factor = torch.nn.Parameter(torch.ones(1))

    def forward(self, tiles):
        begun = time.monotonic()
        time.sleep(self.seconds * len(tiles))
        with open(os.path.join(self.notes, str(os.getpid())), "a") as file:
            print(begun, time.monotonic(), file=file)
        return torch.cat([-tiles, tiles], 1) * self.factor
'''
app = typer.Typer(no_args_is_help=True, add_completion=False)
console = Console()


@dataclass
class Weighed(Watch):
    """Notes also what the driver used, and what the machine had to do besides."""

    others: list[float] = field(default_factory=list)
    _cpu: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def begin(self, regions: int, pixels: int, devices: int) -> None:
        self._cpu = _cpu_seconds()
        threading.Thread(target=self._look, daemon=True).start()

    def end(self) -> None:
        self._cpu = _cpu_seconds() - self._cpu
        self._stop.set()

    def _look(self) -> None:
        """The share of the machine's cores in use, by whomever, every 2 seconds."""
        while not self._stop.is_set():
            self.others.append(psutil.cpu_percent(2.0))

    @property
    def seconds(self) -> float:
        return self.last - (self.first or 0.0)

    @property
    def driver(self) -> float:
        return self._cpu


@app.command()
def weak(
    actors: Annotated[list[int] | None, typer.Option(help="Numbers of actors.")] = None,
    regions: Annotated[int, typer.Option(help="Regions for each actor, a multiple of 16.")] = 32,
    seconds: Annotated[float, typer.Option(help="That a region holds its device.")] = 2.0,
    cores: Annotated[int, typer.Option(help="That Ray is told it has.")] = 32,
    results: Annotated[Path, typer.Option(help="Folder for the JSON.")] = Path("benchmarks/results"),
) -> None:
    """As many regions for each actor, on more and more actors: busy share, and the driver's work."""
    folder = Path(tempfile.mkdtemp(prefix="chorus-scaling-"))
    counts = actors or [1, 2, 4, 8, 16]
    rows = []
    try:
        ensemble = write_ensemble(folder, seconds)
        write_images(folder / "images", max(counts) * regions // REGIONS_PER_IMAGE)
        for count in counts:
            rows.append(weak_run(folder, ensemble, count, regions, seconds, cores))
            console.print(rows[-1], highlight=False)
    finally:
        shutil.rmtree(folder)
    _show(rows, f"{regions} regions of {seconds} s for each actor")
    _keep("scaling-weak", rows, results)


def weak_run(
    folder: Path, ensemble: Path, actors: int, regions: int, seconds: float, cores: int
) -> dict[str, float | int]:
    """One run; `held` is the share of the actors' time that they held their devices, start-up counted in."""
    from chorus.cluster.predict import predict

    images = actors * regions // REGIONS_PER_IMAGE
    settings = ResultSettings(
        tile=REGION, overlap=0, augmentations=["identity"], region=REGION, chunk=REGION, batch=1, save=["probability"]
    )
    request = PredictRequest(
        sources=[str(folder / "images" / f"{index:04d}.zarr") for index in range(images)],
        ensemble=str(ensemble),
        out=str(folder / f"out-{actors}"),
        settings=settings,
        run=RunSettings(executor="ray", actors=actors, trust_code=True, thumbnails=False),
    )
    shutil.rmtree(folder / "notes", ignore_errors=True)
    (folder / "notes").mkdir()
    watch = Weighed()
    started = time.monotonic()
    with ray_of(cores):
        outcome = predict(request, watch)
    whole = time.monotonic() - started
    if outcome.state != "complete" or watch.regions != actors * regions:
        raise RuntimeError(f"{outcome.state}: {outcome.message}")
    shutil.rmtree(request.out)
    return {
        "actors": actors,
        "regions": watch.regions,
        "region_seconds": seconds,
        "stream_seconds": watch.seconds,
        "whole_seconds": whole,
        "held": watch.busy / (actors * watch.seconds),
        **shares(folder / "notes", actors),
        "driver_cpu_seconds_per_region": watch.driver / watch.regions,
        "cores_in_use": float(np.mean(watch.others)) / 100 * (psutil.cpu_count() or 1),
        "cores": psutil.cpu_count() or 1,
    }


def shares(notes: Path, actors: int) -> dict[str, float]:
    """The share of their time that members slept, from when the last actor had begun.

    `asleep` is until the first actor has nothing left, `with_tail` until the last one. `spread_seconds` is how long it
    took from the first actor's beginning to the last one's.
    """
    slept = [np.loadtxt(file, ndmin=2) for file in notes.iterdir()]
    # The process that tried the ensemble slept, too, but a few times only.
    slept = sorted(slept, key=len)[-actors:]
    begun, ended = np.array([one[0, 0] for one in slept]), np.array([one[-1, 1] for one in slept])

    def share(until: float) -> float:
        inside = [np.clip(one, begun.max(), until) for one in slept]
        return sum(float((one[:, 1] - one[:, 0]).sum()) for one in inside) / (actors * float(until - begun.max()))

    return {
        "asleep": share(ended.min()),
        "with_tail": share(ended.max()),
        "tail_seconds": float(np.ptp(ended)),
        "spread_seconds": float(np.ptp(begun)),
    }


class InstantActor:
    """Stands in for `chorus.cluster.regions.ray_executor.RegionActor`: regions end after `SECONDS`, without work."""

    def __init__(self, context: object) -> None: ...

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        from chorus.cluster.regions.ray_executor import _rows
        from chorus.cluster.runtime.status import RegionStatus

        return _rows([RegionStatus(int(region), 0, int(region), "done") for region in batch["region"]])


@app.command()
def driver(
    blocks: Annotated[list[int] | None, typer.Option(help="Numbers of blocks.")] = None,
    rows: Annotated[list[int] | None, typer.Option(help="Regions of each block.")] = None,
    actors: Annotated[int, typer.Option(help="That answer at once.")] = 4,
    results: Annotated[Path, typer.Option(help="Folder for the JSON.")] = Path("benchmarks/results"),
) -> None:
    """What the product's stream costs the driver per block and per region, and its memory."""
    from chorus.cluster.regions import ray_executor as stream

    # Defined in this script, so that it travels to the actors as code.
    stream.RegionActor = InstantActor  # type: ignore[misc, assignment]
    found: list[dict[str, Any]] = []
    with ray_of(actors + 2):
        for count in blocks or [100, 1000, 3000]:
            for size in rows or [1, 50]:
                found.append(driver_run(count, size, actors))
                console.print(found[-1], highlight=False)
    known = np.array([[row["blocks"], row["regions"], 1.0] for row in found])
    for name in ("stream_cpu_seconds", "stream_seconds"):
        fit, *_ = np.linalg.lstsq(known, np.array([row[name] for row in found]))
        console.print(f"{name}: {fit[0] * 1e3:.2f} ms a block, {fit[1] * 1e3:.3f} ms a region, {fit[2]:.1f} s beside")
    _keep("scaling-driver", found, results)


def driver_run(blocks: int, size: int, actors: int) -> dict[str, float | int]:
    """A stream of `blocks` blocks of `size` regions through actors that answer at once."""
    from chorus.cluster.regions.ray_executor import RayExecutor

    placement = Placement((range(1),), actors, actors, 1, 0, size, 3, 2)
    settings = ResolvedSettings(tile=256, overlap=0.5, augmentations=["identity"], batch=1, backend="eager")
    context = RunContext(
        out="memory://none", ensemble="", ensemble_hash="", ensemble_name="none", settings=settings, session="bench"
    )
    process = psutil.Process()
    memory, cpu, started = process.memory_info().rss, _cpu_seconds(), time.monotonic()
    seen, first, first_cpu = 0, 0.0, 0.0
    for _ in RayExecutor(placement, 1.0, "").regions(context, np.arange(blocks * size)):
        if not seen:
            first, first_cpu = time.monotonic() - started, _cpu_seconds() - cpu
        seen += 1
    whole, whole_cpu = time.monotonic() - started, _cpu_seconds() - cpu
    return {
        "blocks": blocks,
        "regions": seen,
        "actors": actors,
        "seconds_to_first": first,
        "cpu_seconds_to_first": first_cpu,
        "stream_seconds": whole - first,
        "stream_cpu_seconds": whole_cpu - first_cpu,
        "memory_bytes": process.memory_info().rss - memory,
    }


@contextmanager
def ray_of(cores: int) -> Iterator[None]:
    """A local Ray that believes to have so many cores; the product joins it."""
    import ray

    ray.init("local", num_cpus=cores, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20)
    try:
        yield
    finally:
        ray.shutdown()


def write_images(folder: Path, count: int) -> None:
    """Single-level OME-Zarr 0.5 images, uint16, in chunks as large as a region, that differ."""
    noise = np.random.default_rng(0).integers(300, 700, (SIDE, SIDE), dtype=np.uint16)
    for index in range(count):
        write_image(folder / f"{index:04d}.zarr", np.roll(noise, index, axis=1), chunk=REGION)


def write_ensemble(folder: Path, seconds: float) -> Path:
    """An ensemble of one BioImage.IO package, whose network sleeps for `seconds` a tile."""
    package = folder / "sleeper"
    package.mkdir(parents=True)
    (folder / "notes").mkdir()
    (package / "sleeper.py").write_text(CODE)
    torch.save({"factor": torch.ones(1)}, package / "weights.pt")
    example = np.ones((1, 1, REGION, REGION), np.float32)
    np.save(package / "raw.npy", example)
    np.save(package / "mask.npy", np.concatenate([-example, example], 1))
    digest = hashlib.sha256((package / "weights.pt").read_bytes()).hexdigest()
    code = hashlib.sha256((package / "sleeper.py").read_bytes()).hexdigest()
    options = {"seconds": seconds, "notes": str(folder / "notes")}
    architecture = {"source": "sleeper.py", "callable": "Sleeper", "kwargs": options, "sha256": code}
    weights = {
        "source": "weights.pt", "sha256": digest, "pytorch_version": "2.5", "architecture": architecture,
    }  # fmt: skip
    size = {"min": 16, "step": 16}
    space: list[dict[str, Any]] = [{"type": "space", "id": name, "size": size} for name in "yx"]
    same = [axis | {"size": {"tensor_id": "raw", "axis_id": axis["id"]}} for axis in space]
    batch = {"type": "batch"}
    inputs = [batch, {"type": "channel", "channel_names": ["dna"]}, *space]
    outputs = [batch, {"type": "channel", "channel_names": ["background", "nucleus"]}, *same]
    content = {
        "type": "model",
        "format_version": "0.5.4",
        "name": "sleeper",
        "description": "Sleeps as long as a GPU would work.",
        "license": "MIT",
        "authors": [{"name": "Chorus"}],
        "cite": [{"text": "benchmarks/scaling.py", "doi": "10.1007/978-3-319-24574-4_28"}],
        "inputs": [{"id": "raw", "axes": inputs, "data": {"type": "float32"}, "test_tensor": {"source": "raw.npy"}}],
        "outputs": [{"id": "mask", "axes": outputs, "test_tensor": {"source": "mask.npy"}}],
        "weights": {"pytorch_state_dict": weights},
    }
    (package / "rdf.yaml").write_text(yaml.safe_dump(content))
    from chorus.pipeline.members.kinds.bioimageio.description import describe

    ensemble = {
        "format": "chorus-ensemble/2",
        "name": "sleeper",
        "classes": [{"name": "background"}, {"name": "nucleus"}],
        "input": {"channels": ["dna"], "normalisation": {"kind": "mean_std", "mean": [500.0], "std": [100.0]}},
        "tile": REGION,
        "members": [
            describe(str(package)).entry.model_dump(mode="json", exclude_none=True) | {"weights": str(package)}
        ],
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(ensemble))
    return folder / "ensemble.yaml"


def _cpu_seconds() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system


def _show(rows: list[dict[str, float | int]], title: str) -> None:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


def _keep(name: str, rows: list[dict[str, Any]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(rows, indent=2) + "\n")
    console.print(f"kept in {path}", highlight=False)


if __name__ == "__main__":
    app()
