"""Read Nikon ND2 by nd2: each stage position is an image; uncompressed frames are mapped into memory."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.formats.kind import FormatKind
from chorus.pipeline.io.formats.rasters import MEND, Raster, decoding_errors, raster_of_planes, rounded
from chorus.pipeline.io.formats.tiff_metadata import TiffDescription


@contextmanager
def _open(url: str, _data: bytes | None, dtypes: Collection[str]) -> Iterator[list[Raster]]:
    nd2: Any = import_module("nd2")
    storage.check_regular(*storage.filesystem(url))
    with decoding_errors(url):
        file = nd2.ND2File(storage.normalise(url))
    with file:
        with decoding_errors(url):
            rasters = _images(url, file, dtypes)
        yield rasters


def _images(url: str, file: Any, dtypes: Collection[str]) -> list[Raster]:
    sizes = dict(file.sizes)
    others = {axis: length for axis, length in sizes.items() if axis not in "PTZCYXS" and length > 1}
    if others:
        raise ImageError(f"{url}: has the axes {', '.join(others)} beside t, c, z, y and x; export it as OME-TIFF")
    positions = sizes.get("P", 1)
    # Time, planes and positions are loops of frames; channels and samples are within a frame.
    loops = {axis: length for axis, length in sizes.items() if axis in "PTZ"}
    frames = int(np.prod(list(loops.values()), dtype=object)) if loops else 1
    _check_frames(url, file, frames)
    lengths = {axis.lower(): sizes[axis] for axis in "TCZYX" if axis in sizes}
    metadata = file.metadata
    channels = list(getattr(metadata, "channels", None) or ())
    names = tuple(str(one.channel.name) for one in channels)
    samples = sizes.get("S", 1)
    described = TiffDescription(names if len(names) == sizes.get("C", 1) else (), _scale(file, channels))
    colors = tuple(f"{one.channel.color.r:02X}{one.channel.color.g:02X}{one.channel.color.b:02X}" for one in channels)
    stages = _stages(file)
    frame = lru_cache(maxsize=1)(lambda index: _frame(file, index, sizes))
    rasters = []
    for position in range(positions):
        read = _plane_reader(frame, loops, position)
        raster = raster_of_planes(url, lengths, file.dtype, read, described, dtypes, samples=samples)
        name, stage = stages[position] if position < len(stages) else ("", {})
        rasters.append(
            replace(
                raster,
                name=name,
                colors=colors if samples == 1 and len(colors) == sizes.get("C", 1) else (),
                position=_first_pixel(stage, raster),
                acquired=str(file.text_info.get("date", "")),
            )
        )
    return rasters


def _check_frames(url: str, file: Any, frames: int) -> None:
    """Refuse a file that lacks frames: nd2 would fill them with zeros."""
    if file.is_legacy:
        return
    offsets = file._rdr._frame_offsets  # no public name says which frames there are
    missing = next((index for index in range(frames) if index not in offsets), None)
    attributes = file.attributes
    size = attributes.heightPx * (attributes.widthBytes or 0) if attributes.compressionType is None else 0
    end = storage.filesystem(url)[0].size(storage.normalise(url))
    if missing is None:
        missing = next((index for index in range(frames) if offsets[index] + size > end), None)
    if missing is not None:
        raise ImageError(f"{url}: frame {missing} of {frames} is missing, the file was cut short; {MEND}")


def _frame(file: Any, index: int, sizes: Mapping[str, int]) -> NDArray[Any]:
    """Return (channels, y, x) or (channels, y, x, samples) of a frame; of an uncompressed one nothing is read yet."""
    if file.attributes.compressionType == "lossless" and not file.is_legacy:
        _check_unpacked(file, index)
    pixels = np.asarray(file.read_frame(index))
    shape = [sizes["Y"], sizes["X"]]
    channels, samples = sizes.get("C", 1), sizes.get("S", 1)
    if pixels.shape == (*shape,):
        return pixels[np.newaxis]
    expected = (*([channels] if "C" in sizes else []), *shape, *([samples] if "S" in sizes else []))
    if pixels.shape != expected:
        raise ValueError(f"frame {index} has the shape {pixels.shape}, not {expected}")
    return pixels if "C" in sizes else pixels[np.newaxis]


def _check_unpacked(file: Any, index: int) -> None:
    """Raise ValueError for a frame that unpacks to other than its size: nd2 would unpack it whatever it takes."""
    expected = file.attributes.heightPx * file.attributes.widthBytes
    packed = file._rdr._load_chunk(f"ImageDataSeq|{index}!".encode())
    length = len(zlib.decompressobj().decompress(packed[8:], expected + 1))
    if length != expected:
        raise ValueError(f"frame {index} does not unpack to the {expected} bytes that it has")


def _plane_reader(frame: Any, loops: Mapping[str, int], position: int) -> Any:
    def read(t: int, z: int, channel: int, y: slice, x: slice) -> NDArray[Any]:
        coordinates = {"P": position, "T": t, "Z": z}
        index = int(np.ravel_multi_index([coordinates[axis] for axis in loops], tuple(loops.values()))) if loops else 0
        return np.array(frame(index)[channel, y, x])

    return read


def _scale(file: Any, channels: list[Any]) -> dict[str, float]:
    """Return micrometers per pixel of a calibrated file, and seconds between time points."""
    scale: dict[str, float] = {}
    if channels:
        size, calibrated = channels[0].volume.axesCalibration, channels[0].volume.axesCalibrated
        for axis, value, known in zip("xyz", size, calibrated, strict=True):
            if known and np.isfinite(value) and value > 0:
                scale[axis] = rounded(float(value))
    for loop in file.experiment:
        if loop.type == "TimeLoop" and loop.parameters.periodMs > 0:
            scale["t"] = rounded(loop.parameters.periodMs / 1000)
    return scale


def _stages(file: Any) -> list[tuple[str, dict[str, float]]]:
    """Return name and place, in micrometers, of each stage position."""
    for loop in file.experiment:
        if loop.type == "XYPosLoop":
            points = loop.parameters.points
            return [
                (point.name or "", dict(zip("xyz", map(float, point.stagePositionUm), strict=True))) for point in points
            ]
    return []


def _first_pixel(stage: Mapping[str, float], raster: Raster) -> dict[str, float]:
    """Return micrometers of the first pixel; the stage's are those of the image's centre."""
    if not {"y", "x"} <= stage.keys() & raster.scale.keys():
        return {}
    return {axis: rounded(stage[axis] - (raster.lengths[axis] - 1) / 2 * raster.scale[axis]) for axis in "yx"}


KIND = FormatKind(
    name="Nikon ND2",
    suffixes=(".nd2",),
    open=_open,
    reader="nd2",
    licence="BSD-3-Clause",
    modules=("nd2",),
    extra="nd2",
    windows=True,
    searched=True,
)
