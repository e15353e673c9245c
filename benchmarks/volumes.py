"""Large volumes from image to table: a run of two 3D networks and the objects of it, against bare forward passes.

The volumes are simulated as they are read, block by block: ellipsoids of a size of cells in tissue, most of which touch
a neighbour, brighter inside than at their rim. So what an object is can be told of a volume of any size, and no part of
the benchmark holds all of it. Each row is a volume of twice the voxels: seconds, memory of the driver and the workers,
and the ellipsoids that were split, merged or lost.
"""

from __future__ import annotations

import hashlib
import multiprocessing as mp
import os
import shutil
import tempfile
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import torch
import typer
import yaml
import zarr
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.records import keep, surroundings
from benchmarks.run import whole_run
from benchmarks.watching import Memory
from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.io.outputs.writer import open_labels

TILE, OVERLAP = (32, 64, 64), 0.25
BLOCK = (64, 256, 256)
# Distance between the centres of ellipsoids, how far each is moved at most, and its half axes, voxels.
PITCH, JITTER, RADII = (20, 24, 24), 3.0, (8.0, 13.0)
RIM = 0.75  # of the half axes, where brightness falls
console = Console()


def ellipsoids(box: Window, shape: tuple[int, ...], seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Brightness, 0 to 1, and numbers of the ellipsoids (0 outside), (z, y, x) of `box` each."""
    cells = [-(-length // pitch) for length, pitch in zip(shape, PITCH, strict=True)]
    near = [
        range(max(0, span.start // pitch - 1), min(count, span.stop // pitch + 2))
        for span, pitch, count in zip(box.spans, PITCH, cells, strict=True)
    ]
    nearest = np.full(box.shape, np.inf, np.float32)
    labels = np.zeros(box.shape, np.int64)
    for cell in np.stack(np.meshgrid(*near, indexing="ij"), -1).reshape(-1, 3).tolist():
        random = np.random.default_rng([seed, *cell])
        centre = (np.array(cell) + 0.5) * PITCH + random.uniform(-JITTER, JITTER, 3)
        radii = random.uniform(*RADII, 3)
        first = [max(int(c - r), span.start) for c, r, span in zip(centre, radii, box.spans, strict=True)]
        last = [min(int(c + r) + 2, span.stop) for c, r, span in zip(centre, radii, box.spans, strict=True)]
        if any(a >= b for a, b in zip(first, last, strict=True)):
            continue
        axes = [((np.arange(a, b) - c) / r) ** 2 for a, b, c, r in zip(first, last, centre, radii, strict=True)]
        distance = np.sqrt(axes[0][:, None, None] + axes[1][:, None] + axes[2]).astype(np.float32)
        at = Window.of(*(edge for ends in zip(first, last, strict=True) for edge in ends)).within(box)
        closer = (distance < 1) & (distance < nearest[at])
        nearest[at] = np.where(closer, distance, nearest[at])
        labels[at][closer] = 1 + (cell[0] * cells[1] + cell[1]) * cells[2] + cell[2]
    return np.where(nearest < RIM, 1.0, np.where(nearest < 1, 0.35, 0.05)).astype(np.float32), labels


def write_volume(path: Path, shape: tuple[int, ...], seed: int) -> None:
    """The brightness with shot noise as OME-Zarr 0.5, uint16, a block at a time."""
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    multiscale = {"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": scale}], "name": path.name}
    group = zarr.create_group(path, zarr_format=3, attributes={"ome": {"version": "0.5", "multiscales": [multiscale]}})
    array = group.create_array(
        "s0", shape=shape, dtype="uint16", chunks=(32, 128, 128), shards=BLOCK, dimension_names=list("zyx")
    )
    grid = RegionGrid(shape, BLOCK)
    for index in range(grid.count):
        box = grid.window(index)
        brightness, _ = ellipsoids(box, shape, seed)
        noisy = np.random.default_rng([seed, index]).poisson(brightness * 200) * 5
        array[box.slices] = noisy.astype(np.uint16)


class Light(torch.nn.Module):
    """Blur and a threshold between inside and rim; a few layers beside that weigh as those of a light network do."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blur = torch.nn.AvgPool3d(3, stride=1, padding=1, count_include_pad=False)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv3d(1, width, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv3d(width, width, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv3d(width, 2, 1),
        )

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        inside = 20.0 * (self.blur(tiles) - 0.65)
        return torch.cat([-inside, inside], 1) + 0.01 * self.layers(tiles)


def write_networks(folder: Path, width: int) -> Path:
    """An ensemble of two `Light` networks."""
    folder.mkdir()
    entries = []
    for seed in range(2):
        path = folder / f"member-{seed}.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and yet what users have
            torch.jit.save(torch.jit.script(Light(seed, width).eval()), path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append({"kind": "torchscript", "weights": path.name, "sha256": digest})
    normalisation = {"kind": "mean_std", "mean": [0.0], "std": [1000.0]}
    content = {
        "format": "chorus-ensemble/2",
        "name": "volumes",
        "classes": [{"name": "background"}, {"name": "cell"}],
        "input": {"channels": ["dna"], "axes": "zyx", "normalisation": normalisation},
        "tile": list(TILE),
        "overlap": OVERLAP,
        "members": entries,
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content))
    return folder / "ensemble.yaml"


def _passes(width: int, seconds: float, results: Any) -> None:
    torch.set_num_threads(1)
    networks = [torch.jit.script(Light(seed, width).eval()) for seed in range(2)]
    tile = torch.rand(1, 1, *TILE)
    with torch.inference_mode():
        for network in networks * 3:
            network(tile)
        started, calls = time.monotonic(), 0
        while time.monotonic() - started < seconds:
            networks[calls % 2](tile)
            calls += 1
    results.put(calls / (time.monotonic() - started))


def bare_passes(width: int, seconds: float) -> float:
    """Forward passes of a tile a second, of a process of one thread a core."""
    context = mp.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_passes, args=(width, seconds, results)) for _ in range(os.cpu_count() or 1)]
    for process in processes:
        process.start()
    total = sum(results.get() for _ in processes)
    for process in processes:
        process.join()
    return float(total)


def _objects(send: Connection, out: str) -> None:
    from chorus.cluster.objects.inputs import Results
    from chorus.cluster.objects.request import ObjectsRequest
    from chorus.cluster.objects.run import make_objects
    from chorus.cluster.runtime.reporting import Silent

    started = time.monotonic()
    with Memory() as memory:
        request = ObjectsRequest(out=out, method="components", minimum_size=100, executor="ray")
        outcome = make_objects(Results(request), Silent())
    if outcome.state != "complete":
        raise SystemExit(f"objects did not come to their end: {outcome.state} {outcome.message}")
    found = sum(outcome.summary.objects.values())
    send.send((time.monotonic() - started, memory.driver, memory.workers, found))


def make_objects_apart(out: Path) -> tuple[float, int, int, int]:
    """Seconds, bytes of driver and workers, and number of objects of ``chorus objects`` in a process of its own."""
    context = mp.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_objects, args=(send, str(out)))
    process.start()
    send.close()
    result: tuple[float, int, int, int] = receive.recv()
    process.join()
    return result


@dataclass(frozen=True)
class Compared:
    """Ellipsoids of at least 500 voxels, and those that are split, merged or lost."""

    cells: int
    split: int
    merged: int
    lost: int


def compare(image: Path, shape: tuple[int, ...], seed: int) -> Compared:
    """Compare the labels of an image with the ellipsoids, a block at a time."""
    stored, grid = open_labels(str(image), 0, "cell"), RegionGrid(shape, BLOCK)
    pairs: list[NDArray[np.int64]] = []
    for index in range(grid.count):
        box = grid.window(index)
        truth = ellipsoids(box, shape, seed)[1].ravel()
        found = np.asarray(stored[box.slices], dtype=np.int64).ravel()
        (rows, counts) = np.unique(np.stack([truth, found]), axis=1, return_counts=True)
        pairs.append(np.vstack([rows, counts]))
    truth, found, voxels = np.concatenate(pairs, axis=1)
    keys, inverse = np.unique(np.stack([truth, found]), axis=1, return_inverse=True)
    shared = np.bincount(inverse.ravel(), voxels).astype(np.int64)
    truth, found = keys
    sizes = np.bincount(truth, shared)
    large = (truth > 0) & (found > 0) & (sizes[truth] >= 500)
    part = shared / sizes[truth]
    cells = int((sizes[1:] >= 500).sum())
    held = truth[large & (part >= 0.25)]
    holders = found[large & (part >= 0.25)]
    pieces = np.bincount(truth[large & (part >= 0.1)])
    together = np.bincount(holders)[holders] > 1
    return Compared(cells, int((pieces > 1).sum()), int(together.sum()), cells - len(np.unique(held)))


def measured(folder: Path, ensemble: Path, shape: tuple[int, ...], rate: float, seed: int) -> dict[str, Any]:
    """A row: run, objects and comparison of one volume."""
    console.print(f"{' x '.join(map(str, shape))} ...", highlight=False)
    source, out = folder / "v.ome.zarr", folder / "out"
    write_volume(source, shape, seed)
    row = whole_run([source], ensemble, out, {"augmentations": ["identity"]})
    seconds, driver, workers, found = make_objects_apart(out)
    compared = compare(out / "images" / source.name, shape, seed)
    for written in (source, out):
        shutil.rmtree(written)
    unique = Grid.make(shape, TILE, OVERLAP).count
    bare = 2 * unique / rate
    return {
        "shape": list(shape),
        "megavoxels": row["pixels"] / 1e6,
        "bare_seconds": bare,
        "bare_over_whole": bare / row["whole_seconds"],
        "objects_seconds": seconds,
        "objects_peak_driver_bytes": driver,
        "objects_peak_workers_bytes": workers,
        "objects": found,
        "cells": compared.cells,
        "split": compared.split,
        "merged": compared.merged,
        "lost": compared.lost,
        **row,
    }


def report(rows: list[dict[str, Any]], folder: Path, *, quick: bool) -> None:
    """Print one table and keep the figures as JSON."""
    console.print(*surroundings(), highlight=False)
    run, objects = Table(title="chorus predict"), Table(title="chorus objects")
    for head in ("volume", "Mvx", "seconds", "s a Mvx", "bare / whole", "driver MB", "workers MB"):
        run.add_column(head, justify="right")
    for head in ("Mvx", "seconds", "s a Mvx", "driver MB", "workers MB", "cells", "split", "merged", "lost"):
        objects.add_column(head, justify="right")
    for row in rows:
        voxels = row["megavoxels"]
        run.add_row(
            "x".join(map(str, row["shape"])),
            f"{voxels:.0f}",
            *(f"{row['whole_seconds']:.0f}", f"{row['whole_seconds'] / voxels:.2f}", f"{row['bare_over_whole']:.2f}"),
            *(f"{row[name] / 1e6:.0f}" for name in ("peak_driver_bytes", "peak_workers_bytes")),
        )
        objects.add_row(
            f"{voxels:.0f}",
            *(f"{row['objects_seconds']:.0f}", f"{row['objects_seconds'] / voxels:.2f}"),
            *(f"{row[name] / 1e6:.0f}" for name in ("objects_peak_driver_bytes", "objects_peak_workers_bytes")),
            *(f"{row[name]}" for name in ("cells", "split", "merged", "lost")),
        )
    console.print(run, objects)
    keep(folder, "-volumes-quick" if quick else "-volumes", rows)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Two small volumes: a few minutes.")] = False,
    depth: Annotated[int | None, typer.Option(help="Planes of the first volume.")] = None,
    edge: Annotated[int, typer.Option(help="Rows and columns of the first volume.")] = 512,
    doublings: Annotated[int, typer.Option(help="Further volumes, each of twice the voxels.")] = 3,
    width: Annotated[int, typer.Option(help="Channels of the light networks.")] = 8,
    seed: int = 0,
    results: Annotated[Path, typer.Option(help="Folder for the JSON.")] = Path("benchmarks/results"),
) -> None:
    """Measure volumes of growing size: time and memory a voxel, against bare passes, and the objects beside the truth.

    Examples: `python benchmarks/volumes.py --quick`,
    `python benchmarks/volumes.py --edge 2048 --depth 1024 --doublings 0`
    """
    shape = [depth or (64 if quick else 128), edge, edge]
    folder = Path(tempfile.mkdtemp(prefix="chorus-volumes-"))
    rows = []
    try:
        ensemble = write_networks(folder / "ensemble", width)
        rate = bare_passes(width, 5 if quick else 30)
        console.print(f"{rate:.1f} bare forward passes a second", highlight=False)
        for doubling in range(1 + (1 if quick else doublings)):
            rows.append(measured(folder, ensemble, (shape[0], shape[1], shape[2]), rate, seed))
            shape[(doubling + 1) % 3] *= 2
        report(rows, results, quick=quick)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
