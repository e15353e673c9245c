"""One image of an open file: what every reader of a format gives.

Axes become those of OME-Zarr, in the order t, c, z, y, x (those that the file has). Samples (RGB) become channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ChorusError, ImageError
from chorus.pipeline.io.formats.tiff_metadata import TiffDescription
from chorus.pipeline.io.storage_failures import failure_sentence

MEND = "copy or export the file again, or leave it out"
# Names of the samples of a pixel, by their number.
SAMPLES = {1: ("grey",), 2: ("grey", "alpha"), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}
# Rows of a file that is stored in strips as wide as the plane are decoded once for all windows in them, up to this.
_BAND_BYTES = 256 << 20

Read: TypeAlias = Callable[[int, int, range, Window], NDArray[Any]]
"""Gives (channels, y, x) of time point t, plane z, a range of channels and a window."""

ReadPlane: TypeAlias = Callable[[int, int, int, slice, slice], NDArray[Any]]
"""Gives (y, x), or (y, x, samples), of time point t, plane z, a stored channel, and spans of y and x."""


@dataclass(frozen=True, slots=True)
class CoarserLevel:
    """A smaller copy of an image that its file holds.

    Attributes
    ----------
    height, width : in pixels
    read : as that of `Raster`
    """

    height: int
    width: int
    read: Read


@dataclass(frozen=True, slots=True)
class Raster:
    """One image of an open file.

    Attributes
    ----------
    url : of the file
    axes, shape : letters of ``tczyx`` in this order
    dtype : NumPy name, one of `chorus.pipeline.io.sources.ngff.DTYPES`
    channels : names; empty where the file has none
    samples : consecutive channels that the file stores together, pixel by pixel
    scale, units : per axis that the file gives them for, in ``micrometer`` and ``second``
    read : see `Read`
    note : other content or metadata of the file that are not used; empty or a sentence
    name : of the image in its file; empty where it has none
    colors : RRGGBB per channel; empty where the file has none
    position : micrometers, per letter of z, y, x that the file gives it for, of the centre of the first pixel
    acquired : when, as the file writes it; empty where it does not say
    levels : coarser copies, the finest of them first
    """

    url: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    channels: tuple[str, ...]
    samples: int
    scale: Mapping[str, float]
    units: Mapping[str, str]
    read: Read
    note: str = ""
    name: str = ""
    colors: tuple[str, ...] = ()
    position: Mapping[str, float] = field(default_factory=dict)
    acquired: str = ""
    levels: tuple[CoarserLevel, ...] = ()

    @property
    def lengths(self) -> dict[str, int]:
        """Length per letter of `axes`."""
        return dict(zip(self.axes, self.shape, strict=True))


@dataclass(frozen=True, slots=True)
class PartOf:
    """A file that holds planes of images that begin in another one: they are read from there."""

    url: str


def sample_names(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of the colours of an array (y, x, 3 or 4); none if its last axis is clearly no samples."""
    if len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) > 4:
        return SAMPLES[shape[2]]
    return ()


def only_one(opened: list[Raster] | PartOf, url: str) -> Raster:
    """Return the only image of a file; raises ImageError where it holds several, or planes of another file."""
    if isinstance(opened, PartOf):
        raise ImageError(f"{url}: its planes begin in {opened.url}; give that file alone")
    if len(opened) > 1:
        raise ImageError(f"{url}: holds {len(opened)} images; save each as a file of its own")
    return opened[0]


def raster_of_array(url: str, pixels: Any, meaning: str, described: TiffDescription, dtypes: Collection[str]) -> Raster:
    """Return an image of an array.

    Parameters
    ----------
    pixels : anything that is sliced like an array
    meaning : a letter of ``tczyxs`` per axis, ``s`` for samples (RGB); ``_`` for one of length 1 that is dropped
    dtypes : names of the types that pixels may have

    Raises
    ------
    ImageError : they are of another type, or there are none
    """
    dtype = stored_dtype(url, pixels.dtype, dtypes)
    sizes = dict(zip(meaning, pixels.shape, strict=True))
    if 0 in pixels.shape:
        raise ImageError(f"{url}: has no pixels (shape {pixels.shape}); {MEND}")
    samples, planes = sizes.get("s", 1), sizes.get("c", 1)
    names = _channel_names(described.channels, planes, samples) if {"s", "c"} & set(meaning) else described.channels
    lengths = {axis: sizes[axis] for axis in "tczyx" if axis in sizes}
    if "c" in sizes or "s" in sizes or len(names) == 1:
        lengths["c"] = planes * samples
    axes = "".join(axis for axis in "tczyx" if axis in lengths)
    scale = {axis: size for axis, size in described.scale.items() if axis in axes}
    units = {axis: "second" if axis == "t" else "micrometer" for axis in scale}
    shape = tuple(lengths[axis] for axis in axes)
    read = _Reader(url, pixels, meaning, samples, dtype)
    return Raster(url, axes, shape, dtype, names, samples, scale, units, read)


def raster_of_planes(
    url: str,
    lengths: Mapping[str, int],
    pixels: np.dtype[Any],
    read: ReadPlane,
    described: TiffDescription,
    dtypes: Collection[str],
    *,
    samples: int = 1,
) -> Raster:
    """Return an image that is read plane by plane.

    Parameters
    ----------
    lengths : per letter of ``tczyx`` that the file has; ``c`` before samples are counted
    pixels : type of what `read` returns
    samples : that `read` returns per pixel; with 1 it returns (y, x)

    Raises
    ------
    ImageError : pixels are of another type, or there are none
    """
    dtype = stored_dtype(url, pixels, dtypes)
    if min(lengths.values()) < 1:
        raise ImageError(f"{url}: has no pixels; {MEND}")
    planes = lengths.get("c", 1)
    names = _channel_names(described.channels, planes, samples)
    sizes = {axis: lengths[axis] for axis in "tczyx" if axis in lengths}
    if "c" in lengths or samples > 1 or len(names) == 1:
        sizes["c"] = planes * samples
    axes = "".join(axis for axis in "tczyx" if axis in sizes)
    scale = {axis: size for axis, size in described.scale.items() if axis in axes}
    units = {axis: "second" if axis == "t" else "micrometer" for axis in scale}
    shape = tuple(sizes[axis] for axis in axes)
    return Raster(url, axes, shape, dtype, names, samples, scale, units, planes_reader(url, read, dtype, samples))


def planes_reader(url: str, read: ReadPlane, dtype: str, samples: int) -> Read:
    """Return a function that reads channels of a window, as type `dtype`, from stored planes."""

    def read_channels(t: int, z: int, channels: range, window: Window) -> NDArray[Any]:
        first, last = channels.start // samples, -(-channels.stop // samples)
        data = np.empty((last - first, samples, *window.shape), dtype)
        with decoding_errors(url):
            for position, plane in enumerate(range(first, last)):
                pixels = read(t, z, plane, window.y.slice, window.x.slice)
                data[position] = pixels[np.newaxis] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        skip = channels.start - first * samples
        return data.reshape(-1, *window.shape)[skip : skip + len(channels)]

    return read_channels


def stored_dtype(url: str, dtype: np.dtype[Any], dtypes: Collection[str]) -> str:
    """Return the name of the type that pixels get; raise ImageError for one that is not among `dtypes`."""
    name = "uint8" if dtype.kind == "b" else dtype.newbyteorder("=").name
    if name not in dtypes:
        raise ImageError(f"{url}: data type {name} is not supported; save it as one of {', '.join(dtypes)}")
    return name


def rounded(value: float) -> float:
    """Return a number that was rounded in a file, and then converted, without more digits than it had."""
    return float(f"{value:.9g}") if math.isfinite(value) else value


def _channel_names(names: tuple[str, ...], planes: int, samples: int) -> tuple[str, ...]:
    if samples == 1:
        return names if len(names) == planes else ()
    colors = SAMPLES.get(samples, tuple(map(str, range(samples))))
    if planes == 1:
        return colors
    groups = names if len(names) == planes else tuple(map(str, range(planes)))
    return tuple(f"{group} {color}" for group in groups for color in colors)


class _Reader:
    """Reads windows; of a file stored in strips as wide as the plane it keeps the decoded rows of the last window."""

    def __init__(self, url: str, pixels: Any, meaning: str, samples: int, dtype: str) -> None:
        self._url, self._pixels, self._meaning = url, pixels, meaning
        self._samples, self._dtype = samples, dtype
        self._width = pixels.shape[meaning.index("x")]
        chunks = getattr(pixels, "chunks", None)
        self._strips = chunks is not None and chunks[meaning.index("x")] >= self._width
        self._kept: tuple[object, NDArray[Any]] | None = None

    def __call__(self, t: int, z: int, channels: range, window: Window) -> NDArray[Any]:
        size = len(channels) * len(window.y) * self._width * np.dtype(self._dtype).itemsize
        with decoding_errors(self._url):
            if not self._strips or size > _BAND_BYTES:
                return self._read(t, z, channels, window.y.slice, window.x.slice)
            key = (t, z, channels, window.y)
            if self._kept is None or self._kept[0] != key:
                self._kept = None
                self._kept = key, self._read(t, z, channels, window.y.slice, slice(0, self._width))
            return self._kept[1][:, :, window.x.slice]

    def _read(self, t: int, z: int, channels: range, y: slice, x: slice) -> NDArray[Any]:
        """Read (channels, y, x) in the native byte order."""
        first, last = channels.start // self._samples, -(-channels.stop // self._samples)
        at = {"t": t, "z": z, "c": slice(first, last), "s": slice(None), "y": y, "x": x, "_": 0}
        data = np.asarray(self._pixels[tuple(at[letter] for letter in self._meaning)])
        left = "".join(letter for letter in self._meaning if letter in "csyx")
        data = data.transpose([left.index(letter) for letter in "csyx" if letter in left])
        data = data.reshape(-1, *data.shape[-2:]).astype(self._dtype, copy=False)
        skip = channels.start - first * self._samples
        return data[skip : skip + len(channels)]


@contextmanager
def decoding_errors(url: str) -> Iterator[None]:
    """Convert what decoders raise, of many libraries' types, to an ImageError of one sentence."""
    try:
        yield
    except ChorusError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        sentence = failure_sentence(error, url) if isinstance(error, OSError) and error.errno else None
        raise ImageError(sentence or f"{url}: cannot be read ({reason}); {MEND}") from error
