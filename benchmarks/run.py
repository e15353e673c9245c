"""Whole runs against their bare forward passes, on one machine in one go.

`whole` is the time from the first region's reading to the last record of ``chorus predict`` on Ray, from OME-Zarr to
OME-Zarr; `bare` is what the members' forward passes over the same unique tiles would take at the fastest of several
settings, measured on the same cores right before and right after. Start-up is given apart.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing as mp
import os
import platform
import shutil
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Annotated, Any

# As in the actors of a run: idle threads must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import psutil
import torch
import typer
import yaml
import zarr
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from cluster.request import PredictRequest, Silent
from cluster.settings import ResultSettings
from cluster.worker import RegionStatus
from pipeline.augmentation import FLIPS
from pipeline.geometry import Grid

SIZE = 1024
TILES_PER_CALL = (1, 2, 4)
BARE_SECONDS = 5.0
console = Console()


@dataclass(frozen=True)
class Setting:
    """How forward passes are spread over the cores: tile, processes, threads of each, tiles per call, memory format."""

    tile: int
    processes: int
    threads: int
    tiles: int
    channels_last: bool


@dataclass
class Watch(Silent):
    """Notes when regions come in, and how much memory the run takes meanwhile."""

    first: float | None = None
    regions: int = 0
    busy: float = 0.0
    devices: int = 0
    peak_driver: int = 0
    peak_workers: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def begin(self, regions: int, pixels: int, devices: int) -> None:
        self.devices = devices

    def region(self, status: RegionStatus) -> None:
        begun = time.monotonic() - status.seconds
        self.first = begun if self.first is None else min(begun, self.first)
        self.regions += 1
        self.busy += status.device_seconds

    def sample(self) -> None:
        """Every second until told to stop: memory of this process, and of all that it started (shared pages once)."""
        me = psutil.Process()
        while not self._stop.wait(1.0):
            self.peak_driver = max(self.peak_driver, me.memory_info().rss)
            total = 0
            for child in me.children(recursive=True):
                try:
                    if child.name().startswith("ray::") or "ray::" in " ".join(child.cmdline()):
                        total += child.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak_workers = max(self.peak_workers, total)

    def stop(self) -> None:
        self._stop.set()


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer passes: under 5 minutes on 2 cores.")] = False,
    members: Annotated[int | None, typer.Option(help="ResNet-18 U-Nets in the ensemble.")] = None,
    tiles: Annotated[list[int] | None, typer.Option("--tile", help="Tile sizes.")] = None,
    images: Annotated[int | None, typer.Option(help="Images of 1024 x 1024 in the smaller run.")] = None,
    results: Annotated[Path, typer.Option(help="Folder for the JSON.")] = Path("benchmarks/results"),
) -> None:
    """Measure whole runs against bare forward passes, and memory and time against the number of images.

    Examples: `python benchmarks/run.py --quick`, `python benchmarks/run.py --tile 512 --images 16`
    """
    members = members or 5
    augmentations = list(FLIPS)
    sizes = tiles or ([256] if quick else [256, 512])
    images = images or (2 if quick else 16)
    folder = Path(tempfile.mkdtemp(prefix="chorus-bench-"))
    try:
        write_images(folder / "images", (4 if quick else 2) * images)
        rows = []
        if not quick:
            for tile in sizes:
                ensemble = write_ensemble(folder / f"ensemble-{tile}", members, tile)
                setting = best_setting(ensemble, tile, len(augmentations), seconds=4)
                rows.append(compare(folder, ensemble, setting, members, augmentations, images))
        rows += growth(folder, sizes[0], images if quick else images // 2)
        report(rows, results, quick=quick)
    finally:
        shutil.rmtree(folder)


def growth(folder: Path, tile: int, images: int) -> list[dict[str, Any]]:
    """Few passes a tile, then the same with 4 times the images: how time and memory grow."""
    ensemble = write_ensemble(folder / "ensemble-few", 2, tile)
    setting = best_setting(ensemble, tile, 1, seconds=2)
    small, large = (compare(folder, ensemble, setting, 2, ["identity"], count) for count in (images, 4 * images))
    large["time_ratio_of_4_times_the_images"] = large["whole_seconds"] / small["whole_seconds"]
    return [small, large]


def compare(
    folder: Path, ensemble: Path, setting: Setting, members: int, augmentations: list[str], images: int
) -> dict[str, Any]:
    """One row: bare passes before, the whole run, bare passes after."""
    tile = setting.tile
    console.print(f"tile {tile}, {members} members x {len(augmentations)} augmentations, {images} images ...")
    before = passes_per_second(ensemble, len(augmentations), [setting], seconds=BARE_SECONDS)[0]
    row = whole_run(folder, ensemble, augmentations, images)
    after = passes_per_second(ensemble, len(augmentations), [setting], seconds=BARE_SECONDS)[0]
    unique = Grid.make((SIZE, SIZE), tile, 0.5).count * images * members * len(augmentations)
    rate = (before + after) / 2
    bare = unique / rate
    return {
        "tile": tile,
        "members": members,
        "augmentations": len(augmentations),
        "images": images,
        "passes": unique,
        "bare_passes_per_second_before_after": [round(before, 2), round(after, 2)],
        "bare_setting": asdict(setting),
        "bare_seconds": bare,
        "bare_over_whole": bare / float(row["whole_seconds"]),
        **row,
    }


def whole_run(folder: Path, ensemble: Path, augmentations: list[str], images: int) -> dict[str, Any]:
    """``chorus predict`` on Ray, in a process of its own so that its memory is its own."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    context = mp.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    sources = [str(folder / "images" / f"{index:04d}.zarr") for index in range(images)]
    process = context.Process(target=_predict, args=(send, sources, str(ensemble), str(out), augmentations))
    process.start()
    row: dict[str, Any] = receive.recv()
    process.join()
    return row


def _predict(send: Connection, sources: list[str], ensemble: str, out: str, augmentations: list[str]) -> None:
    from cluster.reprocess import predict

    watch = Watch()
    threading.Thread(target=watch.sample, daemon=True).start()
    settings = ResultSettings(augmentations=augmentations)
    started = time.monotonic()
    outcome = predict(PredictRequest(sources=sources, ensemble=ensemble, out=out, settings=settings), watch)
    ended = time.monotonic()
    watch.stop()
    if outcome.state != "complete" or watch.first is None:
        raise SystemExit(f"the run did not come to its end: {outcome.state} {outcome.message}")
    whole = ended - watch.first
    send.send(
        {
            "whole_seconds": whole,
            "start_up_seconds": watch.first - started,
            "regions": watch.regions,
            "busy_share": watch.busy / (whole * watch.devices),
            "megapixels_per_second": len(sources) * SIZE**2 / whole / 1e6,
            "peak_driver_bytes": watch.peak_driver,
            "peak_workers_bytes": watch.peak_workers,
        }
    )


def best_setting(ensemble: Path, tile: int, augmentations: int, *, seconds: float) -> Setting:
    """The fastest of the settings that this machine offers, each tried for a few seconds."""
    cores = psutil.cpu_count() or 1
    rates: dict[Setting, float] = {}
    for processes, threads in {(cores, 1), (1, cores)}:
        settings = [
            Setting(tile, processes, threads, tiles, last)
            for tiles, last in itertools.product(TILES_PER_CALL, (True, False))
            if tiles == 1 or tile**2 * tiles * augmentations <= 4 * 512**2
        ]
        found = passes_per_second(ensemble, augmentations, settings, seconds=seconds)
        rates |= dict(zip(settings, found, strict=True))
    best = max(rates, key=lambda setting: rates[setting])
    console.print(f"fastest bare passes: {best}, {rates[best]:.2f} a second", highlight=False)
    return best


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
    from pipeline.allocation import keep_freed_memory
    from pipeline.ensemble import read_ensemble

    torch.set_num_threads(settings[0].threads)
    keep_freed_memory()
    read = read_ensemble(ensemble)
    members = [read.load_member(index, torch.device("cpu")) for index in range(len(read.spec.members))]
    rates = []
    with torch.inference_mode():
        for setting in settings:
            layout = torch.channels_last if setting.channels_last else torch.contiguous_format
            modules = [member.module.to(memory_format=layout) for member in members]
            batch = torch.randn(setting.tiles * augmentations, 1, setting.tile, setting.tile).to(memory_format=layout)
            modules[0](batch)
            barrier.wait()
            started, calls = time.monotonic(), 0
            while time.monotonic() - started < seconds:
                modules[calls % len(modules)](batch)
                calls += 1
            rates.append(calls * len(batch) / (time.monotonic() - started))
    queue.put(rates)


def write_images(folder: Path, count: int) -> None:
    """Simulated fields, uint16, OME-Zarr 0.5 with chunks of 256."""
    from pipeline.samples import simulate_field

    fields = [simulate_field(seed, (SIZE, SIZE))[0] for seed in range(4)]
    scale = [{"type": "scale", "scale": [1.0, 1.0]}]
    axes = [{"name": name, "type": "space"} for name in "yx"]
    multiscale = {"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": scale}], "name": "field"}
    for index in range(count):
        attributes = {"ome": {"version": "0.5", "multiscales": [multiscale]}}
        group = zarr.create_group(folder / f"{index:04d}.zarr", zarr_format=3, attributes=attributes)
        data = np.roll(fields[index % 4], index, axis=1)
        group.create_array("s0", data=data, chunks=(256, 256), dimension_names=["y", "x"])


def write_ensemble(folder: Path, members: int, tile: int) -> Path:
    """U-Nets with a ResNet-18 encoder and random weights: speed does not depend on what they learned."""
    import segmentation_models_pytorch as smp

    folder.mkdir()
    entries = []
    for index in range(members):
        torch.manual_seed(index)
        module = smp.create_model("Unet", "resnet18", encoder_weights=None, in_channels=1, classes=2)
        path = folder / f"member-{index}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append(
            {"kind": "smp", "architecture": "Unet", "encoder": "resnet18", "weights": path.name, "sha256": digest}
        )
    content = {
        "format": "chorus-ensemble/1",
        "name": "benchmark",
        "classes": [{"name": "background"}, {"name": "nucleus"}],
        "input": {"channels": ["dna"], "normalisation": {"kind": "mean_std", "mean": [1000.0], "std": [800.0]}},
        "tile": tile,
        "members": entries,
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content))
    return folder / "ensemble.yaml"


def report(rows: list[dict[str, Any]], folder: Path, *, quick: bool) -> None:
    """Print one table and keep the figures as JSON."""
    machine = {"cores": psutil.cpu_count(), "memory": psutil.virtual_memory().total, "system": platform.platform()}
    versions = {name: version(name) for name in ("chorus-bioimage", "torch", "ray", "zarr", "numpy")}
    console.print(f"{machine['cores']} cores, {machine['system']}, {versions}", highlight=False)
    table = Table()
    heads = ("tile", "M x T", "images", "passes", "bare s", "whole s", "bare/whole", "busy", "start-up s", "driver MB")
    for head in (*heads, "workers MB"):
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            f"{row['tile']}",
            f"{row['members']} x {row['augmentations']}",
            f"{row['images']}",
            f"{row['passes']}",
            f"{row['bare_seconds']:.1f}",
            f"{row['whole_seconds']:.1f}",
            f"{row['bare_over_whole']:.3f}",
            f"{row['busy_share']:.0%}",
            f"{row['start_up_seconds']:.1f}",
            f"{row['peak_driver_bytes'] / 1e6:.0f}",
            f"{row['peak_workers_bytes'] / 1e6:.0f}",
        )
    console.print(table)
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    path = folder / f"{stamp}{'-quick' if quick else ''}.json"
    content = {"when": stamp, "machine": machine, "versions": versions, "rows": rows}
    path.write_text(json.dumps(content, indent=2) + "\n")
    console.print(f"kept in {path}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
