"""Read TIFF, OME-TIFF, ImageJ TIFF, PNG, JPEG, NIfTI, NRRD and MHA: list a file's images and read windows of them.

Axes become those of OME-Zarr, in the order t, c, z, y, x (those that the file has). Samples (RGB) become channels.
Axes whose meaning a TIFF does not say (``I``, ``Q``, ...) are taken as z, then t, then c, the last one first.
Values are those that are stored: palette images keep their indices, bits become 0 and 1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ChorusError, ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.formats import cellpose_files, itk_files
from chorus.pipeline.io.formats.tiff_metadata import TiffDescription, describe
from chorus.pipeline.io.formats.tiff_planes import (
    check_planes,
    check_promises,
    image_of_series,
    main_images,
    ome_images,
    open_tiff,
    series_of,
)
from chorus.pipeline.io.sources.ngff import DTYPES

TIFF_SUFFIXES = (".ome.tiff", ".ome.tif", ".ome.btf", ".tiff", ".tif", ".btf")
SUFFIXES = (*TIFF_SUFFIXES, ".png", ".jpeg", ".jpg", *itk_files.SUFFIXES)

_MEND = "copy or export the file again, or leave it out"
_SAMPLES = {1: ("grey",), 2: ("grey", "alpha"), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}
# Rows of a file that is stored in strips as wide as the plane are decoded once for all windows in them, up to this.
_BAND_BYTES = 256 << 20

# tifffile's log goes only to handlers of the program; without any, Python would print it between our own lines.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
# Pillow refuses large images as an attack; here the user names the files.
Image.MAX_IMAGE_PIXELS = None


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
    read : gives (channels, y, x) of time point t, plane z, a range of channels and a window
    note : other content or metadata of the file that are not used; empty or a sentence
    """

    url: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    channels: tuple[str, ...]
    samples: int
    scale: Mapping[str, float]
    units: Mapping[str, str]
    read: Callable[[int, int, range, Window], NDArray[Any]]
    note: str = ""

    @property
    def lengths(self) -> dict[str, int]:
        """Length per letter of `axes`."""
        return dict(zip(self.axes, self.shape, strict=True))


@dataclass(frozen=True, slots=True)
class PartOf:
    """A file that holds planes of images that begin in another one: they are read from there."""

    url: str


def stem(name: str) -> str | None:
    """Strip the suffix of a raster file from `name`; None if it has none."""
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), None)
    return None if suffix is None else name[: -len(suffix)]


@contextmanager
def open_rasters(
    url: str, data: bytes | None = None, *, dtypes: Collection[str] = DTYPES
) -> Iterator[list[Raster] | PartOf]:
    """Return the images of a file, for as long as it is open; at least one.

    Parameters
    ----------
    data : the file, where it is in memory; then `url` is only its name
    dtypes : names of the types that its pixels may have

    Raises
    ------
    ImageError : it cannot be read, or holds what OME-Zarr or Chorus cannot take; reading a window raises it, too
    """
    if url.lower().endswith(itk_files.SUFFIXES):
        with _errors(url):
            raster = _raster(url, *itk_files.read_itk(url, data), dtypes)
        yield [raster]
        return
    if url.lower().endswith(cellpose_files.SUFFIX):
        with _errors(url):
            masks = cellpose_files.read_masks(url, storage.read_bytes(url) if data is None else data)
            raster = _raster(url, masks, "zyx"[-masks.ndim :], TiffDescription(), dtypes)
        yield [raster]
        return
    if not url.lower().endswith(TIFF_SUFFIXES):
        yield _flat(url, data, dtypes)
        return
    with ExitStack() as stack:
        with _errors(url), _complete(url):
            tiff = open_tiff(url, data, stack)
            series = series_of(url, tiff)
        if not series:
            raise ImageError(f"{url}: holds no image; {_MEND}")
        with _errors(url):
            found = _images(url, tiff, series, dtypes)
        yield found or PartOf(storage.join(url.rpartition("/")[0], _first_file(series[0])))


def _images(
    url: str, tiff: tifffile.TiffFile, series: list[tifffile.TiffPageSeries], dtypes: Collection[str]
) -> list[Raster]:
    """Return the images that begin in a file; raises ImageError where planes of them are missing."""
    check_promises(url, tiff, series)
    elements = ome_images(tiff.ome_metadata if tiff.is_ome else None)
    of_series = image_of_series(tiff, series, elements)
    described = describe(tiff, series, of_series)
    kept, aside = main_images(series)
    found = []
    for one, index, metadata in zip(series, of_series, described, strict=True):
        if one in kept and not _elsewhere(one, tiff):
            check_planes(url, tiff, one, None if index is None else elements[index])
            found.append(_from_series(url, one, metadata, dtypes))
    if found and aside:
        note = f"{url}: {', '.join(aside)} left out, since these are no images to segment"
        found[0] = replace(found[0], note=note)
    return found


def only_one(opened: list[Raster] | PartOf, url: str) -> Raster:
    """Return the only image of a file; raises ImageError where it holds several, or planes of another file."""
    if isinstance(opened, PartOf):
        raise ImageError(f"{url}: its planes begin in {opened.url}; give that file alone")
    if len(opened) > 1:
        raise ImageError(f"{url}: holds {len(opened)} images; save each as a file of its own")
    return opened[0]


def _elsewhere(series: tifffile.TiffPageSeries, tiff: tifffile.TiffFile) -> bool:
    """Return whether an image that is spread over files begins in another one than `tiff`."""
    return bool(series.is_multifile) and _first_file(series) not in ("", tiff.filename)


def _first_file(series: tifffile.TiffPageSeries) -> str:
    """Name of the file that holds the first plane; empty where that is missing."""
    first = series.pages[0]
    return "" if first is None else str(first.parent.filename)


def _from_series(
    url: str, series: tifffile.TiffPageSeries, described: TiffDescription, dtypes: Collection[str]
) -> Raster:
    """Return an image of a TIFF, read in windows through tifffile's own Zarr store."""
    stored = series.axes.lower()
    store = series.aszarr(level=0)
    # A file object that could be written to makes a store that cannot be opened for reading alone.
    array = zarr.open_array(store, mode="r" if store.read_only else "r+")
    meaning = _meaning(url, stored, array.shape)
    return _raster(url, array, meaning, described, dtypes)


def _flat(url: str, data: bytes | None, dtypes: Collection[str]) -> list[Raster]:
    """Return the image of a PNG or JPEG file, decoded whole."""
    with _errors(url):
        if data is None:
            data = storage.read_bytes(url)
        # Pillow would cut 16 bits of colour to 8.
        if data.startswith(b"\x89PNG") and data[24:25] == b"\x10":
            pixels = imagecodecs.png_decode(data)
        else:
            with Image.open(BytesIO(data), formats=["PNG", "JPEG"]) as image:
                pixels = np.asarray(image.convert("RGB") if image.mode in ("CMYK", "YCbCr") else image)
        return [_raster(url, pixels, "yxs"[: pixels.ndim], TiffDescription(), dtypes)]


def _meaning(url: str, stored: str, shape: tuple[int, ...]) -> str:
    """Return a letter of ``tczyxs`` per stored axis; ``_`` for one that is dropped, unknown and of length 1."""
    known = set(stored) & set("tczyxs")
    if not {"y", "x"} <= known:
        raise ImageError(f"{url}: axes are {stored!r}, without a plane of y and x; {_MEND}")
    spare = [letter for letter in "zt" if letter not in known] + (["c"] if not known & set("cs") else [])
    letters = list(stored)
    for place in reversed(range(len(letters))):
        if letters[place] not in "tczyxs":
            if shape[place] == 1:
                letters[place] = "_"
            elif spare:
                letters[place] = spare.pop(0)
            else:
                raise ImageError(
                    f"{url}: axes are {stored!r} of lengths {shape}, more than time, channel, z, y and x; save it as "
                    "several files or as OME-TIFF"
                )
    return "".join(letters)


def _raster(url: str, pixels: Any, meaning: str, described: TiffDescription, dtypes: Collection[str]) -> Raster:
    """`pixels` (anything that is sliced like an array) whose axes mean `meaning`, as an image in t, c, z, y, x."""
    dtype = "uint8" if pixels.dtype.kind == "b" else pixels.dtype.newbyteorder("=").name
    if dtype not in dtypes:
        raise ImageError(f"{url}: data type {dtype} is not supported; save it as one of {', '.join(dtypes)}")
    sizes = dict(zip(meaning, pixels.shape, strict=True))
    if 0 in pixels.shape:
        raise ImageError(f"{url}: has no pixels (shape {pixels.shape}); {_MEND}")
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


def _channel_names(names: tuple[str, ...], planes: int, samples: int) -> tuple[str, ...]:
    if samples == 1:
        return names if len(names) == planes else ()
    colors = _SAMPLES.get(samples, tuple(map(str, range(samples))))
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
        with _errors(self._url):
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
def _errors(url: str) -> Iterator[None]:
    """Convert what decoders raise, of many libraries' types, to an ImageError of one sentence."""
    try:
        yield
    except ChorusError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        sentence = storage.explain(error, url) if isinstance(error, OSError) and error.errno else None
        raise ImageError(sentence or f"{url}: cannot be read ({reason}); {_MEND}") from error


class _Losses(logging.Handler):
    """Collects lost planes that tifffile only logs: a chain of pages that leads out of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.found = ""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "invalid page offset" in message or "invalid offset to first page" in message:
            self.found = message


@contextmanager
def _complete(url: str) -> Iterator[None]:
    """Raise ImageError if a file that is opened in this context ends too early."""
    log, losses = logging.getLogger("tifffile"), _Losses()
    log.addHandler(losses)
    try:
        yield
    finally:
        log.removeHandler(losses)
    if losses.found:
        raise ImageError(f"{url}: is cut short, pages beyond its end are missing; {_MEND}")
