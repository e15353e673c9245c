"""Which library should read and write OME-Zarr here: zarr-python, its zarrs codec pipeline or tensorstore?

Makes one synthetic plane in several layouts, reads it as Chorus does (regions of 2048 with a halo, in random
order, from 1 and 2 threads; small fields of a plate, opened and read whole), writes one shard of results, and
prints one table. All doors take turns in one run; what they return is first compared with what was stored.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tensorstore
import typer
import zarr
from aiohttp import web
from numcodecs import Blosc, Zstd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter, zoom
from zarr.codecs import ZstdCodec

from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.io import storage

REGION, HALO, FIELD, FIELDS = 2048, 256, (520, 696), 40
RESULT = (5, 2048, 2048)
PYTHON, RUST = "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"
SPAWN = multiprocessing.get_context("spawn")
Timing = tuple[int, float, float]  # pixels, seconds, CPU seconds


@dataclass(frozen=True, slots=True)
class Door:
    """A way to open arrays.

    Attributes
    ----------
    pipeline, concurrency : zarr-python's ``codec_pipeline.path`` and ``async.concurrency``
    workers : ``threading.max_workers``; 0 is the default. It holds for a process, so others get one of their own
    integers : index t, c and z by integers instead of slices of length 1
    """

    name: str
    pipeline: str = PYTHON
    concurrency: int = 10
    workers: int = 0
    integers: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array is stored; `shard` 0 means none."""

    version: Literal[2, 3]
    chunk: int
    shard: int
    compressor: Zstd | Blosc | ZstdCodec


@dataclass(frozen=True, slots=True)
class Task:
    """Something that is done and timed through each of `doors`."""

    case: str
    threads: int
    doors: tuple[Door, ...]
    run: Callable[[Door], Timing]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: medians over the repetitions."""

    case: str
    threads: int
    door: str
    megapixels_per_second: float
    ratio: float
    cpu_ms_per_megapixel: float
    spread: float  # fastest repetition over slowest


DEFAULT, ZARRS, TENSORSTORE = Door("zarr-python"), Door("zarrs", RUST), Door("tensorstore")
DOORS = (DEFAULT, ZARRS, TENSORSTORE)
SETTINGS = (
    Door("zarr-python, concurrency 2", concurrency=2),
    Door("zarr-python, concurrency 64", concurrency=64),
    Door("zarr-python, max_workers 2", workers=2),
    Door("zarrs, max_workers 1", RUST, workers=1),
    Door("zarrs, t c z as integers", RUST, integers=True),
)
LAYOUTS = {
    "v2, chunk 512, zstd": Layout(2, 512, 0, Zstd(3)),
    "v2, chunk 1024, blosc-lz4": Layout(2, 1024, 0, Blosc("lz4", 5, Blosc.SHUFFLE)),
    "v3, chunk 512, zstd": Layout(3, 512, 0, ZstdCodec(level=3)),
    "v3, 256 in shard 2048, zstd": Layout(3, 256, 2048, ZstdCodec(level=3)),
    "v3, 512 in shard 4096, zstd": Layout(3, 512, 4096, ZstdCodec(level=3)),
}
TUNED, REMOTE = "v3, chunk 512, zstd", ("v2, chunk 512, zstd", "v3, 256 in shard 2048, zstd")
FIELD_LAYOUTS = (Layout(2, 1024, 0, Zstd(3)), Layout(3, 1024, 0, ZstdCodec(level=3)))


def settings(door: Door) -> Any:
    return zarr.config.set({"codec_pipeline.path": door.pipeline, "async.concurrency": door.concurrency})


def limit_workers(count: int) -> None:
    zarr.config.set({"threading.max_workers": count})


def open_tensorstore(url: str) -> Any:
    """The array at `url`, a path or an http URL; the format is detected, as zarr-python does it too."""
    kvstore = url if url.startswith("http") else f"file://{url}"
    return tensorstore.open({"driver": "auto", "kvstore": f"{kvstore}/"}, open=True).result()


def open_reader(door: Door, url: str) -> Callable[[Window], NDArray[np.uint16]]:
    """A function that reads a window of the plane (0, 0, 0) of the (t, c, z, y, x) array at `url`."""
    if door is TENSORSTORE:
        source = open_tensorstore(url)
        return lambda window: source[0, 0, 0, window.y.slice, window.x.slice].read().result()
    array: Any = zarr.open_array(storage.store(url, read_only=True), mode="r")
    if door.integers:
        return lambda window: array[0, 0, 0, window.y.slice, window.x.slice]
    return lambda window: array[0:1, 0:1, 0:1, window.y.slice, window.x.slice][0, 0, 0]


def blobs(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint16]:
    """Microscopy-like (y, x): blurred blobs on a dim background, with noise that grows with the light."""
    seeds = rng.random((shape[0] // 8 + 2, shape[1] // 8 + 2)) > 0.985
    smooth = zoom(gaussian_filter(seeds.astype(np.float32), 1.2), 8, order=1)[: shape[0], : shape[1]]
    light = 100 + 4000 * smooth / smooth.max()
    return (light + np.sqrt(light) * rng.standard_normal(shape, dtype=np.float32)).clip(0).astype(np.uint16)


def probability_maps(rng: np.random.Generator) -> NDArray[np.float16]:
    """Smooth (c, y, x) maps like a posterior: two classes that sum to 1, a variance and its two parts."""
    logit, share = gaussian_filter(rng.standard_normal((2, *RESULT[1:]), dtype=np.float32), (0, 12, 12))
    p = 1 / (1 + np.exp(-300 * logit))
    total, share = p * (1 - p), 0.3 + 3 * share
    return np.stack([1 - p, p, total, total * share, total * (1 - share)]).astype(np.float16)


def windows(size: int) -> list[Window]:
    """Every region of a plane with its halo, in random order."""
    grid = RegionGrid.make((size, size), REGION)
    regions = [grid.window(int(index)) for index in np.random.default_rng(0).permutation(grid.count)]
    reach = [[max(0, s.start - HALO) for s in (r.y, r.x)] + [min(size, s.stop + HALO) for s in (r.y, r.x)]
             for r in regions]  # fmt: skip
    return [Window.of(y0, y1, x0, x1) for y0, x0, y1, x1 in reach]


def timed(work: Callable[[], int]) -> Timing:
    wall, cpu = time.perf_counter(), time.process_time()
    pixels = work()
    return pixels, time.perf_counter() - wall, time.process_time() - cpu


def read_plane(door: Door, url: str, threads: int, size: int) -> Timing:
    with settings(door), ThreadPoolExecutor(threads) as pool:
        read = open_reader(door, url)
        return timed(lambda: sum(pool.map(lambda window: read(window).size, windows(size))))


def read_fields(door: Door, urls: list[str], threads: int) -> Timing:
    whole = Window.of(0, FIELD[0], 0, FIELD[1])
    with settings(door), ThreadPoolExecutor(threads) as pool:
        return timed(lambda: sum(pool.map(lambda url: open_reader(door, url)(whole).size, urls)))


def write_shard(door: Door, target: Path, maps: NDArray[np.float16], level: int) -> Timing:
    shutil.rmtree(target, ignore_errors=True)
    with settings(door):
        array: Any = zarr.create_array(target, shape=RESULT, dtype="float16", chunks=(1, 512, 512),
                                       shards=RESULT, compressors=ZstdCodec(level=level))  # fmt: skip
        if door is TENSORSTORE:
            opened = open_tensorstore(str(target))
            took = timed(lambda: opened.write(maps).result() or maps.size)
        else:
            took = timed(lambda: array.__setitem__(slice(None), maps) or maps.size)
    with settings(DEFAULT):
        if not np.array_equal(zarr.open_array(target, mode="r")[:], maps):
            sys.exit(f"{door.name} wrote other values than it was given (zstd {level})")
    return took


def store_plane(target: Path, plane: NDArray[np.uint16], layout: Layout) -> None:
    chunk = [min(layout.chunk, length) for length in plane.shape]
    shards = (1, 1, 1, layout.shard, layout.shard) if layout.shard else None
    zarr.create_array(target, data=plane[None, None, None], chunks=(1, 1, 1, *chunk), shards=shards,
                      zarr_format=layout.version, compressors=layout.compressor)  # fmt: skip


def prepare(folder: Path, size: int) -> dict[str, float]:
    """Fill `folder` with the plane in every layout and with small fields; returns the megabytes of each.

    Stops the program when a door does not return what was stored.
    """
    rng = np.random.default_rng(2)
    plane = blobs((size, size), rng)
    for name, layout in LAYOUTS.items():
        store_plane(folder / name, plane, layout)
        for door in (*DOORS, *SETTINGS):
            with settings(door):
                read = open_reader(door, str(folder / name))
                if not all(np.array_equal(read(w), plane[w.y.slice, w.x.slice]) for w in windows(size)[:3]):
                    sys.exit(f"{door.name} returns other pixels than were stored ({name})")
    for number in range(FIELDS):
        for layout in FIELD_LAYOUTS:
            store_plane(folder / f"field-{layout.version}-{number}", blobs(FIELD, rng), layout)
    return {"raw plane": plane.nbytes / 1e6} | {name: megabytes(folder / name) for name in LAYOUTS}


def megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def serve(folder: str, listening: socket.socket) -> None:
    """Serve `folder` on loopback, with range requests, until the process is ended."""
    app = web.Application()
    app.router.add_static("/", folder)
    web.run_app(app, sock=listening, print=None, access_log=None)


def plan(folder: Path, size: int, base_url: str, apart: dict[int, ProcessPoolExecutor]) -> list[Task]:
    def plane_task(case: str, url: str, threads: int, doors: tuple[Door, ...]) -> Task:
        def run(door: Door) -> Timing:
            if door.workers:
                return apart[door.workers].submit(read_plane, door, url, threads, size).result()
            return read_plane(door, url, threads, size)

        return Task(case, threads, doors, run)

    tasks = []
    for name in LAYOUTS:
        doors = (*DOORS, *SETTINGS) if name == TUNED else DOORS
        tasks += [plane_task(name, str(folder / name), threads, doors) for threads in (1, 2)]
    for name in REMOTE:
        url = f"{base_url}/{name.replace(' ', '%20')}"
        tasks += [plane_task(f"http: {name}", url, threads, DOORS) for threads in (1, 2)]
    for form in (2, 3):
        urls = [str(folder / f"field-{form}-{number}") for number in range(FIELDS)]
        for threads in (1, 2):
            read = partial(read_fields, urls=urls, threads=threads)
            tasks.append(Task(f"open and read a field, v{form}", threads, DOORS, read))
    maps = probability_maps(np.random.default_rng(3))
    for level in (0, 1, 3, 5):
        write = partial(write_shard, target=folder / f"result, zstd {level}", maps=maps, level=level)
        tasks.append(Task(f"write float16 shard, zstd {level}", 1, DOORS, write))
    return tasks


def measure(tasks: list[Task], repetitions: int) -> list[Row]:
    """Every task through every door, `repetitions` times, the doors in a new random order each time."""
    rng = np.random.default_rng(1)
    samples: dict[tuple[int, Door], list[tuple[float, float]]] = defaultdict(list)
    for _ in range(repetitions):
        for number, task in enumerate(tasks):
            for index in rng.permutation(len(task.doors)):
                pixels, wall, cpu = task.run(task.doors[index])
                samples[number, task.doors[index]].append((pixels / wall / 1e6, cpu * 1e9 / pixels))
    rows = []
    for number, task in enumerate(tasks):
        baseline = statistics.median(rate for rate, _ in samples[number, DEFAULT])
        for door in task.doors:
            rates, costs = zip(*samples[number, door], strict=True)
            rate, cost, spread = statistics.median(rates), statistics.median(costs), max(rates) / min(rates)
            rows.append(Row(task.case, task.threads, door.name, rate, rate / baseline, cost, spread))
    return rows


def show(rows: list[Row], machine: dict[str, str], stored: dict[str, float]) -> None:
    console = Console(width=130)
    table = Table("case", "threads", "door", "Mpx/s", "of zarr-python", "CPU ms/Mpx", "max/min")
    for _, group in groupby(rows, key=lambda row: (row.case, row.threads)):
        for row in group:
            numbers = (
                f"{row.megapixels_per_second:.0f}",
                f"{row.ratio:.2f}",
                f"{row.cpu_ms_per_megapixel:.1f}",
            )
            table.add_row(row.case, str(row.threads), row.door, *numbers, f"{row.spread:.1f}")
        table.add_section()
    console.print(table)
    console.print("Megabytes:", "; ".join(f"{name}: {size:.1f}" for name, size in stored.items()))
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()) + "; page cache warm")


def describe_machine() -> dict[str, str]:
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    machine = {"CPU": models[0] if models else platform.machine(), "cores": str(os.cpu_count())}
    libraries = ("zarr", "zarrs", "tensorstore", "numcodecs", "fsspec", "aiohttp", "numpy")
    return machine | {"Python": platform.python_version()} | {name: version(name) for name in libraries}


app = typer.Typer(add_completion=False)


@app.command(
    epilog="Examples: python benchmarks/reading.py; "
    "python benchmarks/reading.py --plane 8192 --repetitions 5 --json reading.json"
)
def main(
    plane: Annotated[int, typer.Option(min=4096, max=8192, help="Edge of the plane, in pixels.")] = 6144,
    repetitions: Annotated[int, typer.Option(min=1, help="Times that everything is repeated.")] = 4,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here as well.")] = None,
) -> None:
    """Compare zarr-python, zarrs and tensorstore for reading and writing OME-Zarr as Chorus does."""
    with tempfile.TemporaryDirectory(prefix="chorus-reading-") as name, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        stored = prepare(Path(name), plane)
        server = SPAWN.Process(target=serve, args=(name, listening), daemon=True)
        server.start()
        apart = {
            n: ProcessPoolExecutor(1, SPAWN, limit_workers, (n,)) for n in {door.workers for door in SETTINGS} - {0}
        }
        try:
            rows = measure(plan(Path(name), plane, url, apart), repetitions)
        finally:
            server.terminate()
            for pool in apart.values():
                pool.shutdown()
        stored |= {"raw shard": np.prod(RESULT) * 2 / 1e6}
        stored |= {f"zstd {level}": megabytes(Path(name, f"result, zstd {level}")) for level in (0, 1, 3, 5)}
    machine = describe_machine()
    show(rows, machine, stored)
    if json_file:
        report = {"machine": machine, "megabytes": stored, "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    app()
