"""Read whole slides by OpenSlide, in windows: NDPI, MRXS, SCN and others, and DICOM.

A slide is one image in red, green and blue, with the coarser levels that its file holds. What was not scanned has the
slide's background colour, or white. Labels, overviews and thumbnails are not images to segment.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.units import finite_number
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.formats.kind import FormatKind
from chorus.pipeline.io.formats.rasters import (
    MEND,
    CoarserLevel,
    PartOf,
    Raster,
    decoding_errors,
    planes_reader,
    raster_of_planes,
    rounded,
)
from chorus.pipeline.io.formats.tiff_metadata import TiffDescription
from chorus.pipeline.io.inside import fault, shown

_CACHE_BYTES = 128 << 20
_DICOM = ".dcm"
# Keys, in lower case, of the indices of 3DHISTECH and Hamamatsu.
_NAMES_A_FILE = re.compile(r"file_\d+|indexfile|imagefile.*|mapfile|optimisationfile|macroimage")


@contextmanager
def _open(url: str, _data: bytes | None, dtypes: Collection[str]) -> Iterator[list[Raster] | PartOf]:
    openslide: Any = import_module("openslide")
    path = storage.normalise(url)
    storage.check_regular(*storage.filesystem(url))
    with decoding_errors(url):
        _check_names(url)
        if openslide.OpenSlide.detect_format(path) is None:
            raise ImageError(f"{url}: is no whole slide that OpenSlide reads; {MEND}")
        slide = openslide.OpenSlide(path)
    with slide:
        slide.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
        with decoding_errors(url):
            first = _first_of_series(openslide, slide, url) if url.lower().endswith(_DICOM) else url
            opened = PartOf(first) if first != url else [_image(url, slide, dtypes)]
        yield opened


def _check_names(url: str) -> None:
    """Refuse a slide of several files whose index names one outside its folder, which OpenSlide would open."""
    suffix = url.lower().rpartition(".")[2]
    if suffix not in ("mrxs", "vms", "vmu"):
        return
    index = storage.join(url[: -len(".mrxs")], "Slidedat.ini") if suffix == "mrxs" else url
    parser = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    parser.read_string(storage.read_bytes(index).decode("utf-8-sig", errors="replace"))
    for section in parser.sections():
        for key, value in parser.items(section):
            if value and _NAMES_A_FILE.fullmatch(key) and (reason := fault(value)):
                raise ImageError(f"{url}: names the file {shown(value)}, which {reason}; {MEND}")


def _first_of_series(openslide: Any, slide: Any, url: str) -> str:
    """Return the first file, by name, of the slide that a DICOM file is a part of."""
    series = slide.properties.get("dicom.SeriesInstanceUID")
    folder = url.rpartition("/")[0]
    for name in storage.entries(folder):
        other = storage.join(folder, name)
        if other == url or not name.lower().endswith(_DICOM):
            if other == url:
                break
            continue
        try:
            with openslide.OpenSlide(storage.normalise(other)) as sibling:
                if series and sibling.properties.get("dicom.SeriesInstanceUID") == series:
                    return other
        except openslide.OpenSlideError:
            continue  # of no slide
    return url


def _image(url: str, slide: Any, dtypes: Collection[str]) -> Raster:
    width, height = slide.dimensions
    properties = slide.properties
    scale = {}
    for axis in "yx":
        size = finite_number(properties.get(f"openslide.mpp-{axis}"))
        if size > 0:
            scale[axis] = rounded(size)
    background = _background(properties.get("openslide.background-color"))
    described = TiffDescription(scale=scale if len(scale) == 2 else {})

    def reader(level: int) -> Any:
        down = [full / own for full, own in zip(slide.dimensions, slide.level_dimensions[level], strict=True)]

        def read(_t: int, _z: int, _channel: int, y: slice, x: slice) -> NDArray[Any]:
            corner = (round(x.start * down[0]), round(y.start * down[1]))
            pixels = np.asarray(slide.read_region(corner, level, (x.stop - x.start, y.stop - y.start)))
            if pixels[..., 3].all():
                return pixels[..., :3]
            colours = pixels[..., :3].copy()
            colours[pixels[..., 3] == 0] = background
            return colours

        return read

    raster = raster_of_planes(
        url, {"y": height, "x": width}, np.dtype(np.uint8), reader(0), described, dtypes, samples=3
    )
    levels = tuple(
        CoarserLevel(rows, columns, planes_reader(url, reader(level), "uint8", 3))
        for level, (columns, rows) in enumerate(slide.level_dimensions)
        if level > 0
    )
    acquired = properties.get("aperio.Date", "") or properties.get("tiff.DateTime", "")
    return replace(raster, levels=levels, acquired=acquired)


def _background(color: str | None) -> NDArray[np.uint8]:
    """Return red, green, blue of ``RRGGBB``; white if there is none."""
    try:
        return np.frombuffer(bytes.fromhex(color or "FFFFFF"), np.uint8)[:3]
    except ValueError:
        return np.full(3, 255, np.uint8)


KIND = FormatKind(
    name="whole slides",
    suffixes=(".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide"),
    open=_open,
    reader="OpenSlide",
    licence="LGPL-2.1",
    modules=("openslide",),
    extra="slides",
    windows=True,
    searched=True,
    parallel=True,
)
DICOM = replace(KIND, name="DICOM slides", suffixes=(_DICOM,), in_folders=False, searched=False)
