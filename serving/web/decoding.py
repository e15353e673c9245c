"""Decodes an uploaded file; sizes in its header are checked against the limits before anything is decoded."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import tifffile
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ChorusError
from chorus.pipeline.io.formats.rasters import PartOf, Raster, sample_names
from chorus.pipeline.io.formats.registry import open_rasters
from chorus.pipeline.io.models import DTYPES, Level, SourceImage, pyramid_levels
from chorus.serving.contract.problems import RequestError, said
from chorus.serving.contract.settings import Limits
from chorus.serving.contract.sources import Uploaded

MEDIA = ("image/tiff", "image/png", "image/jpeg", "application/x-npy")
# Maximum of pages of a TIFF: planes times channels.
_PAGES = 4096
# A file of a set of OME-TIFFs names others, which would be opened on this machine.
_OTHER_FILES = re.compile(r"<\s*(?:\w+:)?(?:BinaryOnly|UUID[^>]*FileName)", re.IGNORECASE)
_NPY = b"\x93NUMPY"
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# Maximum of bytes of a tile or strip, against decompression bombs.
_SEGMENT_BYTES = 1 << 28


def decode(data: bytes, name: str, limits: Limits) -> Uploaded:
    """Decode the image of a file; its first bytes tell the format.

    Parameters
    ----------
    data : the file
    name : the client's name of the file; only its stem is used, for messages and for the results of jobs
    limits : of pixels

    Raises
    ------
    RequestError
        413, too large; 415, unknown format; 422, damaged or of an unsupported form.
    """
    if data.startswith(_NPY):
        pixels = _decode_npy(data, limits)
        colors = sample_names(pixels.shape)
        if colors:
            pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        lengths, axes = pixels.shape, "cyx"[3 - pixels.ndim :]
        return _uploaded(name, axes, lengths, pixels.reshape(1, -1, 1, *lengths[-2:]), colors, {}, {})
    for kind, start in (("PNG", _PNG), ("JPEG", _JPEG)):
        if data.startswith(start):
            _check_picture(data, kind, limits)
            return _raster(data, f"{_stem(name)}.{kind.lower()}", limits)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _check_tiff(data, limits)
        return _raster(data, f"{_stem(name)}.tif", limits)
    raise RequestError(415, f"send a TIFF, OME-TIFF, PNG, JPEG or NPY file ({', '.join(MEDIA)})")


def _decode_npy(data: bytes, limits: Limits) -> NDArray[Any]:
    """Return (y, x), (c, y, x) or (y, x, 3 or 4) of an NPY file; refuse object arrays, which would be unpickled."""
    stream = io.BytesIO(data)
    try:
        version = npy.read_magic(stream)
        read: Callable[..., Any] = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, _, dtype = read(stream, max_header_size=10_000)
    except Exception as error:  # the header is a literal of Python, and its parser raises many types of exceptions
        raise RequestError(422, "the NPY file's header is damaged") from error
    if dtype.hasobject or dtype.newbyteorder("=").name not in (*DTYPES, "bool"):
        raise RequestError(422, f"the NPY file holds {dtype}; save one of {', '.join(DTYPES)}")
    if len(shape) not in (2, 3) or any(length < 1 for length in shape):
        raise RequestError(422, f"the NPY file has shape {shape}; save (y, x), (channels, y, x) or (y, x, 3)")
    _check_pixels(math.prod(shape), limits)
    if len(data) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise RequestError(422, "the NPY file is cut short, or longer than its header says")
    pixels = np.load(io.BytesIO(data), allow_pickle=False)
    pixels = pixels.astype(np.uint8) if dtype.kind == "b" else pixels.astype(dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(pixels)


def _check_picture(data: bytes, kind: str, limits: Limits) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[kind]) as image:
                width, height = image.size
                channels = len(image.getbands())
    except Exception as error:  # Pillow raises many types of exceptions for damaged files
        raise RequestError(422, f"the {kind} file's header is damaged") from error
    _check_pixels(width * height * channels, limits)


def _check_tiff(data: bytes, limits: Limits) -> None:
    """Check the headers of all pages; nothing is decoded, and no other file is opened."""
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            total = 0
            for index in range(_PAGES + 1):
                try:
                    page = tiff.pages[index]
                except IndexError:
                    break
                if index == _PAGES:
                    raise RequestError(413, f"the TIFF file has more than {_PAGES} pages")
                assert isinstance(page, tifffile.TiffPage)
                total += math.prod(page.shape)
                _check_pixels(total, limits)
                _check_segments(page)
                if _OTHER_FILES.search(page.description):
                    _check_alone(page.description)
            if not total:
                raise RequestError(422, "the TIFF file holds no image")
    except RequestError:
        raise
    except Exception as error:  # tifffile raises many types of exceptions for damaged files
        raise RequestError(422, "the TIFF file's header is damaged") from error


def _check_segments(page: tifffile.TiffPage) -> None:
    if 0 in page.shape or page.dtype is None:
        raise RequestError(422, "the TIFF file has a page without pixels, or of a type that is not read")
    depth, *size = (page.tiledepth, page.tilelength, page.tilewidth) if page.is_tiled else (1, *page.chunks[:2])
    if depth * math.prod(size) * page.samplesperpixel * page.dtype.itemsize > _SEGMENT_BYTES:
        raise RequestError(413, "the TIFF file's tiles or strips are too large; save it in smaller ones")
    if max(page.databytecounts, default=0) > _SEGMENT_BYTES or len(page.dataoffsets) > 1 << 20:
        raise RequestError(422, "the TIFF file's tiles or strips are not where its header says")


def _check_alone(description: str) -> None:
    """Refuse a file of a set: an OME-TIFF whose planes are in several files, or in another one."""
    names = set(re.findall(r"FileName\s*=\s*[\"']([^\"']*)", description))
    if "BinaryOnly" in description or len(names) > 1:
        raise RequestError(422, "the OME-TIFF is one of a set of files; save it as one file, or convert the set")


def _check_pixels(pixels: int, limits: Limits) -> None:
    if pixels > limits.pixels:
        raise RequestError(413, f"the image has {pixels} values, more than the {limits.pixels} that are taken here")


def _raster(data: bytes, name: str, limits: Limits) -> Uploaded:
    """Read a TIFF, PNG or JPEG as `chorus convert` does."""
    try:
        with open_rasters(name, data) as rasters:
            if isinstance(rasters, PartOf):
                raise RequestError(422, "the OME-TIFF is one of a set of files; save it as one file")
            if len(rasters) != 1:
                raise RequestError(422, f"the file holds {len(rasters)} images; send one")
            return _whole(rasters[0], name, limits)
    except ChorusError as error:
        raise RequestError(422, said(str(error), name)) from error


def _whole(raster: Raster, name: str, limits: Limits) -> Uploaded:
    lengths = raster.lengths
    _check_pixels(math.prod(raster.shape), limits)
    if raster.channels:
        lengths.setdefault("c", 1)
    sizes = [lengths.get(axis, 1) for axis in "tczyx"]
    pixels = np.empty(sizes, raster.dtype)
    window = Window.of(0, lengths["y"], 0, lengths["x"])
    for t in range(sizes[0]):
        for z in range(sizes[2]):
            pixels[t, :, z] = raster.read(t, z, range(sizes[1]), window)
    axes = "".join(axis for axis in "tczyx" if axis in lengths)
    shape = tuple(lengths[axis] for axis in axes)
    return _uploaded(name, axes, shape, pixels, raster.channels, raster.scale, raster.units)


def _uploaded(
    name: str,
    axes: str,
    shape: tuple[int, ...],
    pixels: NDArray[Any],
    channels: tuple[str, ...],
    scale: Any,
    units: Any,
) -> Uploaded:
    """Add the levels that `chorus convert` would create, each half of the one before.

    Parameters
    ----------
    pixels : (t, c, z, y, x)
    """
    lengths = dict(zip(axes, shape, strict=True))
    levels = []
    for index in range(pyramid_levels(lengths["y"], lengths["x"])):
        factor = {axis: 2**index if axis in "yx" else 1 for axis in axes}
        size = tuple(-(-lengths[axis] // factor[axis]) for axis in axes)
        levels.append(
            Level(
                path=f"s{index}",
                shape=size,
                chunks=size,
                dtype=pixels.dtype.name,
                scale=tuple(float(scale.get(axis, 1.0)) * factor[axis] for axis in axes),
                translation=tuple(0.0 for _ in axes),
            )
        )
    count = pixels.shape[1]
    image = SourceImage(
        root=_stem(name),
        kind="image",
        path="",
        name=f"{_stem(name)}.ome.zarr",
        ngff="0.5",
        axes=axes,
        units=tuple(units.get(axis) for axis in axes),
        levels=tuple(levels),
        channels=tuple(channels) if len(channels) == count else tuple(map(str, range(count))),
    )
    return Uploaded(image, pixels)


def _stem(name: str) -> str:
    """Return a file's name without folders, suffix, and characters that have a meaning elsewhere."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePosixPath(name.replace("\\", "/")).name.split(".")[0])
    return stem.strip("-")[:80] or "image"
