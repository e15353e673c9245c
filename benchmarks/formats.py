"""Measure how fast, and in how much memory, files of other formats are read by region.

    python benchmarks/formats.py --edge 8192 --json formats.json

Each format's file holds one plane of `edge` x `edge` (uint16 of one channel; slides uint8 of three). It is read in
regions of 2048 x 2048 as `chorus convert` reads them, and in regions with a halo through the Zarr store that `chorus
predict` reads, each in a process of its own. Its memory is the peak above what it had before the file was opened,
its seconds are those of processors, so that a busy machine gives the same.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.io.formats.registry import open_rasters
from chorus.pipeline.io.models import SourceImage
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.sources.reading import open_level, read_window
from tests.support.format_files import LifImage, write_czi, write_ilastik, write_lif, write_nd2

REGION, WINDOW, WINDOWS = 2048, 2048 + 128, 12


def texture(edge: int) -> NDArray[np.uint16]:
    """Blobs with noise, as compressible as a fluorescence image."""
    y, x = np.ogrid[:edge, :edge]
    clean = 2000 * (1 + np.sin(y / 9) * np.sin(x / 11))
    return (clean + np.random.default_rng(0).normal(100, 8, (edge, edge))).astype(np.uint16)


def slide(path: Path, edge: int) -> None:
    """An Aperio slide with JPEG tiles of 256, written tile by tile."""
    block = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8).repeat(4, 0).repeat(4, 1)

    def tiles(count: int) -> Iterator[NDArray[np.uint8]]:
        for index in range(count):
            yield np.roll(block, index % 256, 0)

    about = f"Aperio Image Library v12\r\n{edge}x{edge} (256x256)|AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for size in (edge, edge // 4, edge // 16):
            count = (-(-size // 256)) ** 2
            options = {"shape": (size, size, 3), "dtype": np.uint8, "tile": (256, 256), "photometric": "rgb"}
            file.write(tiles(count), compression="jpeg", description=about, metadata=None, **options)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "tiled.tif": lambda p, n: tifffile.imwrite(p, texture(n), tile=(512, 512), compression="zlib"),
    "strips.tif": lambda p, n: tifffile.imwrite(p, texture(n), rowsperstrip=64, compression="zlib"),
    "plain.czi": lambda p, n: write_czi(p, [texture(n)[np.newaxis]], tile=2048),
    "zstd.czi": lambda p, n: write_czi(p, [texture(n)[np.newaxis]], tile=2048, compression="zstd1:"),
    "a.nd2": lambda p, n: write_nd2(p, texture(n).reshape(1, 1, 1, n, n, 1)),
    "a.lif": lambda p, n: write_lif(p, [LifImage("a", texture(n).reshape(1, 1, 1, n, n, 1))]),
    "tifffile.svs": slide,
    "openslide.ndpi": slide,
    "gzip.h5": lambda p, n: write_ilastik(p, texture(n), "yx"),
    "a.npy": lambda p, n: np.save(p, texture(n)),
}


def peak() -> int:
    """Peak of this program's memory in bytes (that of `getrusage` counts what the parent had)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def resting() -> int:
    """Memory in bytes of this program now, from which on its peak is counted."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def by_region(path: str, send: Callable[[object], None]) -> None:
    """Read all of a file's first image in regions, as `chorus convert` does."""
    before, started, pixels = resting(), time.process_time(), 0
    with open_rasters(path) as found:
        raster = found[0]  # type: ignore[index]
        lengths = raster.lengths
        for y in range(0, lengths["y"], REGION):
            for x in range(0, lengths["x"], REGION):
                window = Window.of(y, min(y + REGION, lengths["y"]), x, min(x + REGION, lengths["x"]))
                pixels += raster.read(0, 0, range(lengths.get("c", 1)), window)[0].size
    send((pixels / 1e6 / (time.process_time() - started), (peak() - before) >> 20))


def by_window(path: str, send: Callable[[object], None]) -> None:
    """Read windows at random places through the Zarr store that the file is seen as."""
    before, started, pixels = resting(), time.process_time(), 0
    (image,) = find_images([path])
    assert isinstance(image, SourceImage)
    array = open_level(image.url, image.levels[0].path, image.ngff)
    lengths = dict(zip(image.axes, image.levels[0].shape, strict=True))
    rng = np.random.default_rng(1)
    for _ in range(WINDOWS):
        y, x = (int(rng.integers(0, lengths[axis] - WINDOW)) for axis in "yx")
        window = Window.of(y, y + WINDOW, x, x + WINDOW)
        pixels += read_window(array, image.axes, 0, 0, range(len(image.channels)), window)[0].size
    send((pixels / 1e6 / (time.process_time() - started), (peak() - before) >> 20))


def measured(work: Callable[[str, Callable[[object], None]], None], path: Path) -> tuple[float, int]:
    """Run `work` in a new process: megapixels per second of a core, MiB."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(str(path), send.send))
    process.start()
    answer: tuple[float, int] = receive.recv()
    process.join()
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=8192)
    parser.add_argument("--only", nargs="*", default=list(WRITERS))
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            path = Path(folder) / name
            WRITERS[name](path, options.edge)
            regions, windows = measured(by_region, path), measured(by_window, path)
            row = {"file": name, "MB": path.stat().st_size >> 20, "regions_mp_s": round(regions[0], 1)}
            row |= {"regions_mib": regions[1], "windows_mp_s": round(windows[0], 1), "windows_mib": windows[1]}
            rows.append(row)
            print(row, flush=True)
            path.unlink()
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
