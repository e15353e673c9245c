"""Time of the instance stage: objects of a plane from foreground and flows, against Cellpose's dynamics.

One process and one thread a worker; what is compared runs in turns on the same arrays. Seconds are of the processor, so
that other work on the machine disturbs them less.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import typer
from cellpose import dynamics as cellpose
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from skimage.segmentation import relabel_sequential

from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.instances.flows.dynamics import Crop, directions
from chorus.pipeline.instances.flows.flow_error import flow_errors
from chorus.pipeline.instances.regions import ObjectSettings, RegionObjects, label_region
from chorus.pipeline.instances.table import object_rows
from chorus.pipeline.io.outputs.writer import open_labels, open_posterior

# Cellpose's flow errors take so long that they are timed in a corner.
_CORNER = 1024
Plane = tuple[NDArray[np.bool_], NDArray[np.floating[Any]]]  # foreground (y, x); flows (2, y, x)


def touching_discs(size: int, diameter: float) -> Plane:
    """Discs that touch, a third of them missing, with noise on flows to their centres."""
    rng = np.random.default_rng(1)
    y, x = (axis.astype(np.float32) for axis in np.mgrid[:size, :size])
    row = np.floor(y / (0.9 * diameter))
    dy, dx = y - (row + 0.5) * 0.9 * diameter, (x + row % 2 * diameter / 2) % diameter - diameter / 2
    column = np.floor((x + row % 2 * diameter / 2) / diameter)
    there = rng.random((int(row.max()) + 1, int(column.max()) + 1)) > 1 / 3
    foreground = (np.hypot(dy, dx) <= diameter / 2) & there[row.astype(int), column.astype(int)]
    flows = -np.stack([dy, dx]) / np.maximum(np.hypot(dy, dx), 1) * 5 + rng.normal(0, 0.5, (2, size, size))
    return foreground, np.where(foreground, flows, 0).astype(np.float16)


def plane_of(image: str) -> Plane:
    """Foreground and flows of an image of one plane, of a run that kept its flows, by its URL."""
    return np.asarray(open_labels(image)[:]) > 0, np.asarray(open_posterior(image)[-2:])


_plane: Plane


def _begin(plane: Plane) -> None:
    global _plane
    _plane = plane
    torch.set_num_threads(1)


def _found(region: Window, diameter: float) -> RegionObjects:
    foreground, flows = _plane

    def read(window: Window) -> Crop:
        inside = window.y.slice, window.x.slice
        return Crop(foreground[inside], flows[:, *inside], window, foreground.shape)

    return label_region(read, region, foreground.shape, ObjectSettings(diameter))


def _read_pixels(region: Window, diameter: float) -> int:
    """Pixels of the crop that a region took."""
    return _found(region, diameter).crop.pixels


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """Processor seconds of a call, the median; the first one, which may compile, is not counted."""
    work()
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def _growth(region: Window, diameter: float) -> float:
    """Megabytes by which this process grows at most when it finds the objects of a region (Linux)."""
    _found(Window.of(0, 64, 0, 64), diameter)  # the compiled code is loaded
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _peak()
    _found(region, diameter)
    return (_peak() - before) / 1024


def _peak() -> int:
    """Kilobytes that this process took at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _scaling(plane: Plane, regions: list[Window], inner: Window, diameter: float) -> tuple[dict[int, float], float]:
    """Seconds by the clock for all regions, by the number of workers; and the megabytes that one takes."""
    seconds, growth, context = {}, 0.0, multiprocessing.get_context("spawn")
    for workers in (1, 2):
        with ProcessPoolExecutor(workers, context, _begin, (plane,)) as pool:
            ready = [pool.submit(_growth, inner, diameter) for _ in range(workers)]
            growth = max(one.result() for one in ready)
            started = time.perf_counter()
            list(pool.map(_read_pixels, regions, [diameter] * len(regions)))
            seconds[workers] = time.perf_counter() - started
    return seconds, growth


def main(
    image: Annotated[
        str | None, typer.Argument(help="Image (y, x) below OUT/images of a run that kept its flows; else discs.")
    ] = None,
    size: Annotated[int, typer.Option(help="Edge of the plane of discs.")] = 3072,
    region: Annotated[int, typer.Option(help="Edge of a region.")] = 2048,
    diameter: Annotated[float, typer.Option(help="Typical object, pixels.")] = 30.0,
    repeats: Annotated[int, typer.Option(help="Times that each thing is timed.")] = 3,
) -> None:
    """Time the objects of a plane: whole, by regions, by 1 and 2 workers, and by Cellpose.

    Examples: `python benchmarks/objects.py`; `python benchmarks/objects.py OUT/images/slide.ome.zarr`
    """
    plane = plane_of(image) if image else touching_discs(size, diameter)
    _begin(plane)
    foreground, flows = plane
    whole = Window.of(0, foreground.shape[0], 0, foreground.shape[1])
    grid = RegionGrid.make(foreground.shape, region)
    regions = [grid.window(index) for index in range(grid.count)]
    vectors, probability = 5 * directions(flows), foreground.astype(np.float32)
    found = _found(whole, diameter)

    def by_cellpose() -> NDArray[Any]:
        return cellpose.compute_masks(
            vectors, probability, niter=ObjectSettings(diameter).steps, cellprob_threshold=0.5,
            flow_threshold=None, min_size=15, device=torch.device("cpu"),
        )  # fmt: skip

    masks = by_cellpose().astype(np.int32)
    corner = relabel_sequential(masks[:_CORNER, :_CORNER])[0]  # Cellpose needs all numbers
    started = time.process_time()
    cellpose.flow_error(corner, vectors[:, :_CORNER, :_CORNER])
    by_corner = time.process_time() - started
    top, left = (max(0, (length - region) // 2) for length in foreground.shape)
    inner = Window.of(top, min(top + region, whole.y.stop), left, min(left + region, whole.x.stop))
    errors = _seconds(lambda: flow_errors(found.around, len(found.anchors) - 1, vectors / 5), repeats)
    rows = {
        "Cellpose, whole plane": (_seconds(by_cellpose, repeats), foreground.size),
        "Chorus, whole plane": (_seconds(lambda: _found(whole, diameter), repeats), foreground.size),
        f"Chorus, inner region of {region}": (_seconds(lambda: _found(inner, diameter), repeats), inner.pixels),
        "flow errors: Cellpose": (by_corner, corner.size),
        "flow errors: Chorus, counted above": (errors, foreground.size),
        "rows of the table": (_seconds(lambda: object_rows(found, whole, foreground.shape, {}), 1), foreground.size),
    }
    table = Table("", "seconds a megapixel")
    for name, (seconds, pixels) in rows.items():
        table.add_row(name, f"{seconds / pixels * 1e6:.3f}")
    console = Console()
    console.print(table)
    count = len(np.unique(found.names)) - 1
    console.print(
        f"{foreground.size / 1e6:.1f} megapixels, {foreground.mean():.0%} foreground, {count} objects (Cellpose "
        f"{masks.max()}); an inner region reads {_read_pixels(inner, diameter) / inner.pixels - 1:.0%} more"
    )
    by_workers, growth = _scaling(plane, regions, inner, diameter)
    console.print(
        f"{len(regions)} regions by the clock: 1 worker {by_workers[1]:.1f} s, 2 workers {by_workers[2]:.1f} s; a "
        f"region takes {growth:.0f} MB"
    )


if __name__ == "__main__":
    typer.run(main)
