"""Read TIFF, OME-TIFF, ImageJ TIFF and SVS in windows, with the coarser levels that a file holds.

Axes whose meaning a TIFF does not say (``I``, ``Q``, ...) are taken as z, then t, then c, the last one first.
Values are those that are stored: palette images keep their indices, bits become 0 and 1.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import tifffile
import zarr

from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.formats.kind import FormatKind
from chorus.pipeline.io.formats.rasters import MEND, CoarserLevel, PartOf, Raster, decoding_errors, raster_of_array
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
from chorus.pipeline.io.formats.tiff_segments import bound_segments

# tifffile's log goes only to handlers of the program; without any, Python would print it between our own lines.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
# In the description of Aperio's slides.
_DATE = re.compile(r"\|Date = ([^|\r\n]{1,40})")


@contextmanager
def _open(url: str, data: bytes | None, dtypes: Collection[str]) -> Iterator[list[Raster] | PartOf]:
    with ExitStack() as stack:
        with decoding_errors(url), _complete(url):
            tiff = open_tiff(url, data, stack)
            series = series_of(url, tiff)
        if not series:
            raise ImageError(f"{url}: holds no image; {MEND}")
        with decoding_errors(url):
            rasters = _images(url, tiff, series, dtypes)
        yield rasters or PartOf(storage.join(url.rpartition("/")[0], _first_file(series[0])))


def _images(
    url: str, tiff: tifffile.TiffFile, series: list[tifffile.TiffPageSeries], dtypes: Collection[str]
) -> list[Raster]:
    """Return the images that begin in a file; raises ImageError where planes of them are missing."""
    check_promises(url, tiff, series)
    elements = ome_images(tiff.ome_metadata if tiff.is_ome else None)
    of_series = image_of_series(tiff, series, elements)
    described = describe(tiff, series, of_series)
    kept, aside = main_images(series)
    rasters = []
    for one, index, metadata in zip(series, of_series, described, strict=True):
        if one in kept and not _elsewhere(one, tiff):
            check_planes(url, tiff, one, None if index is None else elements[index])
            rasters.append(_from_series(url, one, metadata, dtypes))
    if rasters and aside:
        note = f"{url}: {', '.join(aside)} left out, since these are no images to segment"
        rasters[0] = replace(rasters[0], note=note)
    return rasters


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
    array = _array(series)
    meaning = _meaning(url, stored, array.shape)
    levels = []
    for level in series.levels[1:]:
        if level.axes == series.axes:
            smaller = raster_of_array(url, _array(level), meaning, described, dtypes)
            levels.append(CoarserLevel(smaller.lengths["y"], smaller.lengths["x"], smaller.read))
    raster = raster_of_array(url, array, meaning, described, dtypes)
    return replace(raster, levels=tuple(levels), acquired=_acquired(series))


def _acquired(series: tifffile.TiffPageSeries) -> str:
    """Return the date that a slide's description, or the tag DateTime, holds; empty if there is none."""
    page = series.keyframe
    text = page.description if isinstance(page, tifffile.TiffPage) else ""
    match = _DATE.search(text)
    return match[1].strip() if match else str(page.tags.valueof("DateTime") or "").strip()


def _array(series: tifffile.TiffPageSeries) -> zarr.Array[Any]:
    bound_segments(series)
    store = series.aszarr(level=0)
    # A file object that could be written to makes a store that cannot be opened for reading alone.
    return zarr.open_array(store, mode="r" if store.read_only else "r+")  # noqa: TID251 - chunks that tifffile decodes


def _meaning(url: str, stored: str, shape: tuple[int, ...]) -> str:
    """Return a letter of ``tczyxs`` per stored axis; ``_`` for one that is dropped, unknown and of length 1."""
    known = set(stored) & set("tczyxs")
    if not {"y", "x"} <= known:
        raise ImageError(f"{url}: axes are {stored!r}, without a plane of y and x; {MEND}")
    spare = [letter for letter in "zt" if letter not in known] + (["c"] if not known & set("cs") else [])
    letters = list(stored)
    for index in reversed(range(len(letters))):
        if letters[index] not in "tczyxs":
            if shape[index] == 1:
                letters[index] = "_"
            elif spare:
                letters[index] = spare.pop(0)
            else:
                raise ImageError(
                    f"{url}: axes are {stored!r} of lengths {shape}, more than time, channel, z, y and x; save it as "
                    "several files or as OME-TIFF"
                )
    return "".join(letters)


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
        raise ImageError(f"{url}: is cut short, pages beyond its end are missing; {MEND}")


KIND = FormatKind(
    name="TIFF",
    suffixes=(".ome.tiff", ".ome.tif", ".ome.btf", ".tiff", ".tif", ".btf"),
    open=_open,
    reader="tifffile",
    licence="BSD-3-Clause",
    windows=True,
    in_memory=True,
)
# A tenth of the memory and twice the speed of OpenSlide, measured by benchmarks/formats.py.
SVS = replace(KIND, name="Aperio SVS", suffixes=(".svs",), searched=True)
