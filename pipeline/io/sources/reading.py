"""Choose the channels and the level of an image to read, and read windows of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import FsspecStore, LocalStore

from chorus.pipeline.core.geometry import Axes, Window, of_each
from chorus.pipeline.core.units import micrometers
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import Ngff, SourceImage
from chorus.pipeline.io.opened_arrays import UnknownCodecError, open_array
from chorus.pipeline.io.sources.chunks import check_any_chunk
from chorus.pipeline.io.sources.file_store import FileStore, source_store
from chorus.pipeline.io.storage_failures import failure_sentence, one_line

SAME_SIZE = 0.1  # pixel sizes that differ by less are taken as equal
# Pixels so many times as large, or as small, as the ensemble's show nothing of what it was trained on: a pixel size
# that asks for it is wrong, as that of a printer, and would make a small image fill the memory.
_LARGEST_FACTOR = 16.0
_SMALLEST_FACTOR = 1 / 256


@dataclass(frozen=True, slots=True)
class LevelChoice:
    """A level and the factor by which it is resampled to the ensemble's pixels.

    Attributes
    ----------
    level : index into the image's levels
    factor : source pixel size / wanted pixel size on each axis; 1.0 means as it is, 2.0 twice as many pixels
    """

    level: int
    factor: tuple[float, ...]


def choose_channels(image: SourceImage, requested: Sequence[str], expected: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of the channels that an ensemble gets.

    Parameters
    ----------
    requested : names (case-insensitive) or indices from the user; may be empty
    expected : names of the ensemble's channels

    Raises
    ------
    ImageError
        where the user's channels do not exist or are too few or many, or where nothing says which ones to take
    """
    if requested:
        if len(requested) != len(expected):
            raise ImageError(
                f"{image.url}: {len(requested)} channels were asked for, but the ensemble takes {len(expected)} "
                f"({', '.join(expected)}); give --channel that many times"
            )
        return tuple(_channel(image, name) for name in requested)
    named = [_named(image, name) for name in expected]
    if all(len(indices) == 1 for indices in named):
        return tuple(indices[0] for indices in named)
    if len(image.channels) == len(expected):
        return tuple(range(len(expected)))
    raise ImageError(
        f"{image.url}: has the channels {', '.join(image.channels)}, but the ensemble takes {len(expected)} "
        f"({', '.join(expected)}); say which with --channel NAME"
    )


def _named(image: SourceImage, name: str) -> list[int]:
    return [index for index, own in enumerate(image.channels) if own.casefold() == name.casefold()]


def _channel(image: SourceImage, name: str) -> int:
    """Find the index of a requested channel: by name, or else by index, since names may be numbers such as 488."""
    indices = _named(image, name)
    if len(indices) == 1:
        return indices[0]
    if not indices and name.isdecimal() and int(name) < len(image.channels):
        return int(name)
    problem = f"{len(indices)} channels are called" if indices else "there is no channel"
    raise ImageError(
        f"{image.url}: {problem} {name!r}; give --channel one of {', '.join(image.channels)} or an index from 0 "
        f"to {len(image.channels) - 1}"
    )


def pixel_size_um(image: SourceImage, level: int, axes: Axes = "yx") -> tuple[float, ...] | None:
    """Return the pixel size of a level in micrometres along these axes; None if unit or scale are not usable."""
    sizes = []
    for axis in map(image.axes.index, axes):
        size = (micrometers(image.units[axis]) or 0.0) * image.levels[level].scale[axis]
        if not (math.isfinite(size) and size > 0):
            return None
        sizes.append(size)
    return tuple(sizes)


def choose_level(
    image: SourceImage,
    level: int | None,
    pixel_size_um: float | Sequence[float] | None,
    factor: float | None = None,
    *,
    axes: Axes = "yx",
) -> LevelChoice:
    """Choose the level whose pixels are nearest to the ensemble's without losing detail, and the remaining factor.

    Parameters
    ----------
    level : the user's choice, which wins
    pixel_size_um : micrometres per pixel that the ensemble wants, on all axes or on each; None takes images as they are
    factor : of `LevelChoice`, where something else decides it than the pixel size, which then is not used
    axes : of what members see

    Notes
    -----
    With `factor` the user's level or 0. Otherwise in this order: the finest level within 10 % on all axes, as it is;
    the coarsest that is finer; level 0.

    Raises
    ------
    ImageError : there is no such level, or the pixel size cannot be that of the image
    """
    if level is not None and not 0 <= level < len(image.levels):
        raise ImageError(f"{image.url}: has no level {level}; give --level from 0 to {len(image.levels) - 1}")
    if factor is not None:
        return LevelChoice(level or 0, (factor,) * len(axes))
    if pixel_size_um is None:
        return LevelChoice(level or 0, (1.0,) * len(axes))
    candidates = range(len(image.levels)) if level is None else (level,)
    wanted = of_each(pixel_size_um, len(axes))
    factors = {index: _factor(image, index, wanted) for index in candidates}
    same = [index for index, factor in factors.items() if set(factor) == {1.0}]
    finer = [index for index, factor in factors.items() if max(factor) <= 1 + SAME_SIZE]
    chosen = same[0] if same else finer[-1] if finer else candidates[0]
    _check_factor(image, chosen, wanted, factors[chosen])
    return LevelChoice(chosen, factors[chosen])


def _check_factor(image: SourceImage, level: int, wanted: Sequence[float], factor: tuple[float, ...]) -> None:
    """Raise ImageError where pixels are absurdly large or small beside those that the ensemble wants."""
    size, finest = pixel_size_um(image, level, _axes(wanted)), max(_factor(image, 0, wanted))
    if size is not None and not (finest <= _LARGEST_FACTOR and min(factor) >= _SMALLEST_FACTOR):
        raise ImageError(
            f"{image.url}: its pixel size is {_sizes(size)} micrometers, the ensemble wants {_sizes(wanted)}: "
            "such pixels do not show what it was trained on, or are those of a printer; mend the scale in the "
            "metadata, or convert the file again with chorus convert --pixel-size"
        )


def _axes(wanted: Sequence[float]) -> Axes:
    return "yx" if len(wanted) == 2 else "zyx"


def _sizes(sizes: Sequence[float]) -> str:
    """Return pixel sizes for people: one number where all are equal."""
    shown = [f"{size:.6g}" for size in sizes]
    return shown[0] if len(set(shown)) == 1 else " x ".join(shown)


def unknown_pixel_size(image: SourceImage, wanted: float | Sequence[float] | None, *, axes: Axes = "yx") -> str:
    """Return a sentence if an ensemble wants a pixel size and the image has none; else an empty string."""
    if wanted is None or pixel_size_um(image, 0, axes) is not None:
        return ""
    units = {image.units[image.axes.index(axis)] for axis in axes} - {None}
    unit = f" (its unit is {' and '.join(sorted(map(repr, units)))})" if units else ""
    known = _sizes(of_each(wanted, len(axes)))
    return f"the pixel size is unknown{unit}: taken as it is, where the ensemble wants {known} micrometers"


def _factor(image: SourceImage, level: int, wanted: Sequence[float]) -> tuple[float, ...]:
    """Return source / wanted pixel size on each axis; exactly 1 if unknown or within 10 % on all axes."""
    size = pixel_size_um(image, level, _axes(wanted))
    if size is None or all(abs(own / other - 1) <= SAME_SIZE for own, other in zip(size, wanted, strict=True)):
        return (1.0,) * len(wanted)
    return tuple(own / other for own, other in zip(size, wanted, strict=True))


def open_level(image_url: str, level_path: str, ngff: Ngff | None = None) -> zarr.Array[Any]:
    """Open the array of a level, read-only; raise ImageError if it cannot be opened.

    With `ngff` only the documents of its version of Zarr are requested.
    """
    url = storage.join(image_url, level_path)
    formats: dict[Ngff | None, Literal[2, 3] | None] = {None: None, "0.4": 2, "0.5": 3}
    try:
        return open_array(source_store(url), zarr_format=formats[ngff])
    except ImageError:
        raise
    except UnknownCodecError as error:
        raise ImageError(f"{url}: {error}") from error
    except Exception as error:
        damaged = f"{url}: cannot be opened ({one_line(error)}); copy the image again from its origin"
        raise ImageError(failure_sentence(error, url) or damaged) from error


def read_window(
    array: zarr.Array[Any],
    axes: str,
    t: int,
    z: int,
    channels: Sequence[int],
    window: Window,
    *,
    strict: bool = False,
    source: bool = False,
) -> NDArray[Any]:
    """Read the pixels of a window of one plane, or of one volume.

    Parameters
    ----------
    axes : a letter of ``tczyx`` per axis of `array`, in any order
    t, z : indices of the plane; 0 where the array has no such axis, or the window has a z axis of its own
    channels : indices, in the order of the result; (0,) where the array has no c axis
    window : inside the image
    strict : take a missing chunk for an error. By the specification it is filled with the fill value, and
        writers leave out chunks of nothing but that. Of a sharded array shards are looked for; a chunk that is
        missing within a shard is not noticed, since only the codec reads the shard's index.
    source : take an array of which no chunk at all exists for an error, as where its metadata do not fit its files

    Returns
    -------
    (channels, *window), in the stored type, native byte order

    Raises
    ------
    ImageError
        for chunks that cannot be decoded, storage that fails, NaN or infinite pixels, and missing chunks if
        `strict` or `source`
    ValueError
        for indices outside the array
    """
    is_file = isinstance(array.store_path.store, FileStore)  # its chunks are made when they are read
    selection = _selection(axes, tuple(array.shape), t, z, channels, window)
    plane = "" if "z" in window.axes else f" z {z},"
    spans = ", ".join(f"{axis} {span.start}-{span.stop}" for axis, span in window.by_axis.items())
    location = f"{_url(array)}: t {t},{plane} {spans}"
    try:
        if strict and not is_file and (missing := _first_missing(array, selection)):
            raise ImageError(f"{_url(array)}: chunk {missing} is missing; copy the image again from its origin")
        stored = np.asarray(array.get_orthogonal_selection(selection))
        if source and not is_file and (stored == array.fill_value).all():
            check_any_chunk(array, _url(array))
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # codecs and remote filesystems raise types of many libraries; chained, never swallowed
        raise ImageError(failure_sentence(error, _url(array)) or _damage(error, array, location)) from error
    order = "".join(axis for axis in axes if axis in "c" + window.axes)
    pixels = stored.reshape([stored.shape[axes.index(axis)] for axis in order])
    if "c" not in order:
        pixels, order = pixels[np.newaxis], "c" + order
    pixels = pixels.transpose([order.index(axis) for axis in "c" + window.axes])
    pixels = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
    check_finite(pixels, channels, location, window)
    return pixels


_Selection = tuple[slice | NDArray[np.int64], ...]


def _selection(
    axes: str, shape: tuple[int, ...], t: int, z: int, channels: Sequence[int], window: Window
) -> _Selection:
    """Return one slice per axis; an array only for channels that are not neighbours in ascending order."""
    first, last = min(channels), max(channels)
    neighbours = list(channels) == list(range(first, last + 1))
    bounds = {"t": (t, t + 1), "z": (z, z + 1), "c": (first, last + 1)}
    bounds |= {axis: (span.start, span.stop) for axis, span in window.by_axis.items()}
    lengths = {"t": 1, "z": 1, "c": 1} | dict(zip(axes, shape, strict=True))
    for axis, length in lengths.items():
        start, stop = bounds[axis]
        if not 0 <= start < stop <= length:
            raise ValueError(f"{axis} {start}-{stop} is outside an array of {axes} {shape}")
    return tuple(np.array(channels) if axis == "c" and not neighbours else slice(*bounds[axis]) for axis in axes)


def _first_missing(array: zarr.Array[Any], selection: _Selection) -> str | None:
    """Find the key of the first stored object (chunk or shard) under `selection` that does not exist."""
    url = _url(array)
    return next((key for key in _keys(array, selection) if not storage.exists(storage.join(url, key))), None)


def _keys(array: zarr.Array[Any], selection: _Selection) -> Iterator[str]:
    stored = array.shards or array.chunks
    ranges = [
        range(part.start // size, (part.stop - 1) // size + 1)
        if isinstance(part, slice)
        else np.unique(part // size).tolist()
        for part, size in zip(selection, stored, strict=True)
    ]
    for indices in itertools.product(*ranges):
        yield array.metadata.encode_chunk_key(indices)


def _url(array: zarr.Array[Any]) -> str:
    store = array.store_path.store
    if isinstance(store, FsspecStore):
        return storage.join(store.fs.unstrip_protocol(store.path), array.path)
    if isinstance(store, LocalStore):
        return storage.join(str(store.root), array.path)
    return str(array.store_path)


def _damage(error: Exception, array: zarr.Array[Any], location: str) -> str:
    over_http = storage.is_web(_url(array))
    hint = " or use a server that answers range requests" if array.shards and over_http else ""
    return f"{location}: a chunk cannot be decoded ({one_line(error)}); copy the image again from its origin{hint}"


def check_finite(pixels: NDArray[Any], channels: Sequence[int], location: str, window: Window) -> None:
    """Raise ImageError if pixels are NaN or infinite.

    Parameters
    ----------
    pixels : (channels, *window), any dtype; integers pass
    channels : index in the image of each channel
    location : names the plane or volume in the message
    window : position of `pixels` in it
    """
    if pixels.dtype.kind != "f" or (finite := np.isfinite(pixels)).all():
        return
    number = finite.size - int(np.count_nonzero(finite))
    channel, *at = (int(index) for index in np.unravel_index(np.argmin(finite), finite.shape))
    place = ", ".join(
        f"{axis} {span.start + own}" for (axis, span), own in zip(window.by_axis.items(), at, strict=True)
    )
    first = f"channel {channels[channel]}, {place}"
    raise ImageError(f"{location}: {number} pixels are NaN or infinite, the first at {first}; clean or mask them")
