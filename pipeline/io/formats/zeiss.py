"""Read Zeiss CZI by libCZI, in windows: each scene is an image, its tiles (M) are joined by their places.

Where a scene has no tile pixels are 0. Colours are stored as blue, green, red, and come as red, green, blue.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.units import finite_number
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.formats.kind import FormatKind
from chorus.pipeline.io.formats.rasters import Raster, decoding_errors, raster_of_planes, rounded
from chorus.pipeline.io.formats.tiff_metadata import TiffDescription

# Compressed tiles that are decoded already, of one open file.
_CACHE_BYTES = 256 << 20
_TYPES = {
    "Gray8": ("uint8", 1),
    "Gray16": ("uint16", 1),
    "Gray32Float": ("float32", 1),
    "Bgr24": ("uint8", 3),
    "Bgr48": ("uint16", 3),
}
# Axes of CZI that OME-Zarr lacks: phase, view, illumination, rotation, block.
_OTHER_AXES = "HVIRB"


@contextmanager
def _open(url: str, _data: bytes | None, dtypes: Collection[str]) -> Iterator[list[Raster]]:
    czi: Any = import_module("pylibCZIrw.czi")
    storage.check_regular(*storage.filesystem(url))
    cache = czi.CacheOptions(type=czi.CacheType.Standard, max_memory_usage=_CACHE_BYTES)
    with decoding_errors(url):
        reader = czi.CziReader(storage.normalise(url), cache_options=cache)
    try:
        with decoding_errors(url):
            rasters = _images(url, reader, dtypes)
        yield rasters
    finally:
        reader.close()


def _images(url: str, reader: Any, dtypes: Collection[str]) -> list[Raster]:
    root = ElementTree.fromstring(reader.raw_metadata)
    image = root.find("./Metadata/Information/Image")
    image = ElementTree.Element("Image") if image is None else image
    for axis in _OTHER_AXES:
        if finite_number(image.findtext(f"Size{axis}")) > 1:
            raise ImageError(f"{url}: has several values on the axis {axis} of CZI; export it as several OME-TIFFs")
    box = reader.total_bounding_box_no_pyramid
    lengths = {letter.lower(): box[letter][1] - box[letter][0] for letter in "TCZ" if letter in box}
    lengths = {axis: length for axis, length in lengths.items() if length > 1}
    types = [_TYPES.get(str(kind)) for kind in reader.pixel_types.values()]
    known = [kind for kind in types if kind is not None]
    if not known or len(known) < len(types) or len({samples for _, samples in known}) > 1:
        kinds = ", ".join(map(str, reader.pixel_types.values()))
        raise ImageError(f"{url}: its pixels are {kinds or 'missing'}, which are not read; export it as OME-TIFF")
    dtype, samples = np.result_type(*(kind for kind, _ in known)), known[0][1]
    scale = _scale(root, image)
    channels = [element.get("Name", "") for element in image.findall("./Dimensions/Channels/Channel")]
    named = tuple(channels) if all(channels) else ()
    described = TiffDescription(named, scale)
    scenes = dict(sorted(reader.scenes_bounding_rectangle_no_pyramid.items()))
    names = {int(one.get("Index", -1)): one for one in image.findall("./Dimensions/S/Scenes/Scene")}
    rasters = []
    for scene, rectangle in scenes.items() or [(None, reader.total_bounding_rectangle_no_pyramid)]:
        read = _plane_reader(reader, scene, (rectangle.x, rectangle.y))
        sizes = lengths | {"y": rectangle.h, "x": rectangle.w}
        raster = raster_of_planes(url, sizes, dtype, read, described, dtypes, samples=samples)
        element = names.get(-1 if scene is None else scene)
        rasters.append(
            replace(
                raster,
                name="" if element is None else element.get("Name", ""),
                colors=_colors(root, len(channels)) if samples == 1 else (),
                position={} if element is None else _position(element, (rectangle.h, rectangle.w), scale),
                acquired=(image.findtext("AcquisitionDateAndTime") or "").strip(),
            )
        )
    return rasters


def _plane_reader(reader: Any, scene: int | None, corner: tuple[int, int]) -> Any:
    left, top = corner

    def read(t: int, z: int, channel: int, y: slice, x: slice) -> NDArray[Any]:
        roi = (left + x.start, top + y.start, x.stop - x.start, y.stop - y.start)
        pixels: NDArray[Any] = reader.read(roi=roi, plane={"T": t, "Z": z, "C": channel}, scene=scene)
        return pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., ::-1]

    return read


def _scale(root: ElementTree.Element, image: ElementTree.Element) -> dict[str, float]:
    """Return micrometers per pixel, which the file has in meters, and seconds between time points."""
    scale = {}
    for axis in "zyx":
        meters = finite_number(root.findtext(f"./Metadata/Scaling/Items/Distance[@Id='{axis.upper()}']/Value"))
        if meters > 0:
            scale[axis] = rounded(meters * 1e6)
    seconds = finite_number(image.findtext("./Dimensions/T/Positions/Interval/Increment"))
    return scale | ({"t": seconds} if seconds > 0 else {})


def _colors(root: ElementTree.Element, count: int) -> tuple[str, ...]:
    """Return RRGGBB per channel; empty unless every channel has one."""
    by_id: dict[str, str] = {}
    for channel in root.findall("./Metadata/DisplaySetting/Channels/Channel"):
        color = (channel.findtext("Color") or "").lstrip("#")
        if len(color) in (6, 8) and not set(color.lower()) - set("0123456789abcdef"):
            by_id[channel.get("Id", "")] = color[-6:].upper()
    colors = tuple(by_id.get(f"Channel:{index}", "") for index in range(count))
    return colors if all(colors) else ()


def _position(scene: ElementTree.Element, size: tuple[int, int], scale: Mapping[str, float]) -> dict[str, float]:
    """Return micrometers of the first pixel, which the file has of the centre."""
    x, _, y = (scene.findtext("CenterPosition") or "").partition(",")
    if not (x and y and {"y", "x"} <= scale.keys()):
        return {}
    centre = {"y": finite_number(y), "x": finite_number(x)}
    lengths = dict(zip("yx", size, strict=True))
    return {axis: rounded(centre[axis] - (lengths[axis] - 1) / 2 * scale[axis]) for axis in "yx"}


KIND = FormatKind(
    name="Zeiss CZI",
    suffixes=(".czi",),
    open=_open,
    reader="pylibCZIrw",
    licence="LGPL-3.0",
    modules=("pylibCZIrw",),
    extra="czi",
    windows=True,
    searched=True,
)
