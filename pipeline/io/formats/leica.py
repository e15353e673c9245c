"""Read Leica LIF by liffile: each of its images, and each tile of a mosaic, is an image; pixels are mapped into memory.

Only LIF files with their own pixels: what XLEF, XLIF and LOF name lies in other files.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.formats.kind import FormatKind
from chorus.pipeline.io.formats.rasters import MEND, Raster, decoding_errors, raster_of_planes, rounded
from chorus.pipeline.io.formats.tiff_metadata import TiffDescription, in_micrometers

_COLORS = {
    "red": "FF0000",
    "green": "00FF00",
    "blue": "0000FF",
    "cyan": "00FFFF",
    "magenta": "FF00FF",
    "yellow": "FFFF00",
    "gray": "FFFFFF",
    "grey": "FFFFFF",
}
_TAGS = {1: "red", 2: "green", 3: "blue"}


@contextmanager
def _open(url: str, _data: bytes | None, dtypes: Collection[str]) -> Iterator[list[Raster]]:
    liffile: Any = import_module("liffile")
    storage.check_regular(*storage.filesystem(url))
    path = Path(storage.normalise(url))
    with decoding_errors(url):
        file = liffile.LifFile(path, squeeze=False)
        # Closed when the last array in it is gone.
        memory = np.frombuffer(_mapped(path), np.uint8)
    with file:
        with decoding_errors(url):
            if file.type != liffile.LifFileType.LIF:
                raise ImageError(f"{url}: its pixels are in other files; give a LIF file that holds them")
            images = [image for image in file.images if not image.is_flim]
            rasters = [raster for image in images for raster in _images(url, memory, image, dtypes)]
        if not rasters:
            raise ImageError(f"{url}: holds no image; {MEND}")
        yield rasters


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _images(url: str, memory: NDArray[np.uint8], image: Any, dtypes: Collection[str]) -> Iterator[Raster]:
    """Yield an image, or the tiles of a mosaic."""
    # Only these private properties say the steps between elements, and they do not change within a version.
    dimensions = {one.label.lower(): one for one in image._dimensions}
    channels = image._channels
    others = [label for label, one in dimensions.items() if label not in "mtzyx" and one.number_elements > 1]
    if others or not {"y", "x"} <= dimensions.keys() or not channels:
        raise ImageError(f"{url}: {image.path} has the axes {', '.join(dimensions)}; export it as OME-TIFF")
    lengths = {axis: dimensions[axis].number_elements for axis in "tzyx" if axis in dimensions}
    lengths = {axis: length for axis, length in lengths.items() if length > 1 or axis in "yx"} | {"c": len(channels)}
    dtype = np.result_type(*(channel.dtype for channel in channels))
    names = [_TAGS.get(channel.channel_tag, channel.lut_name) for channel in channels]
    described = TiffDescription(tuple(names) if all(names) else (), _scale(dimensions))
    colors = tuple(_COLORS.get(name.lower(), "") for name in names)
    tiles = dimensions["m"].number_elements if "m" in dimensions else 1
    times = image.timestamps
    for tile in range(tiles):
        planes = [_pixels(url, memory, image, dimensions, channel, tile) for channel in channels]
        raster = raster_of_planes(url, lengths, dtype, _plane_reader(planes), described, dtypes)
        yield replace(
            raster,
            name=f"{image.path} tile {tile}" if tiles > 1 else image.path,
            colors=colors if all(colors) else (),
            position=_position(image, tile),
            acquired="" if times is None or not len(times) else str(times[0]),
        )


def _pixels(
    url: str, memory: NDArray[np.uint8], image: Any, dimensions: dict[str, Any], channel: Any, tile: int
) -> NDArray[Any]:
    """Return (t, z, y, x) of a channel as they lie in the file, of which nothing is read yet."""
    block = image.memory_block
    shape, steps = [], []
    for axis in "tzyx":
        shape.append(dimensions[axis].number_elements if axis in dimensions else 1)
        steps.append(dimensions[axis].bytes_inc if axis in dimensions else 0)
    first = channel.bytes_inc + (tile * dimensions["m"].bytes_inc if "m" in dimensions else 0)
    last = first + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
    end = last + channel.dtype.itemsize
    if min(shape) < 1 or min(steps) < 0 or first < 0 or end > block.size or block.offset + end > memory.size:
        raise ImageError(f"{url}: {image.path} is cut short, or its sizes are not those of its pixels; {MEND}")
    return np.ndarray(tuple(shape), channel.dtype, memory.data, block.offset + first, tuple(steps))


def _plane_reader(planes: list[NDArray[Any]]) -> Any:
    def read(t: int, z: int, channel: int, y: slice, x: slice) -> NDArray[Any]:
        return planes[channel][t, z, y, x]

    return read


def _scale(dimensions: dict[str, Any]) -> dict[str, float]:
    """Return micrometers per pixel and seconds between time points: lengths are from the first to the last one."""
    scale = {}
    for axis, one in dimensions.items():
        step = abs(one.length) / (one.number_elements - 1) if one.number_elements > 1 else 0.0
        size = step if axis == "t" else in_micrometers(step, one.unit)
        if axis in "tzyx" and size:
            scale[axis] = rounded(size)
    return scale


def _position(image: Any, tile: int) -> dict[str, float]:
    """Return micrometers of a tile on the stage, which the file has in meters."""
    scan = image.tilescan
    if scan is None or tile >= len(scan):
        return {}
    return {axis: rounded(float(scan[f"pos_{axis}"][tile]) * 1e6) for axis in "yx"}


KIND = FormatKind(
    name="Leica LIF",
    suffixes=(".lif",),
    open=_open,
    reader="liffile",
    licence="BSD-3-Clause",
    modules=("liffile",),
    extra="lif",
    windows=True,
    searched=True,
    parallel=True,
)
