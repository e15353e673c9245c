"""What a TIFF says of its images besides pixels: channel names, pixel sizes, intervals; OME, ImageJ and plain tags."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree.ElementTree import ParseError

import tifffile

_MICROMETERS = {
    "m": 1e6, "cm": 1e4, "mm": 1e3, "nm": 1e-3, "pm": 1e-6, "Å": 1e-4, "in": 25_400.0, "inch": 25_400.0,
    "µm": 1.0, "μm": 1.0, "um": 1.0, "\\u00B5m": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
}  # fmt: skip
_SECONDS = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "µs": 1e-6, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_TAG_UNITS = {2: 25_400.0, 3: 1e4}
# Plain resolution tags are mostly of print or screen (72, 96, 300, 600, 1200 dpi): such pixels are not a microscope's.
_LARGEST_PLAIN_PIXEL = 20.0


@dataclass(frozen=True, slots=True)
class Described:
    """Metadata of one image.

    Attributes
    ----------
    channels : names, one per channel before samples are counted; empty where there are none
    scale : micrometers of a pixel per letter of z, y, x, and seconds for t; only what is known
    """

    channels: tuple[str, ...] = ()
    scale: Mapping[str, float] = field(default_factory=dict)


def describe(tiff: tifffile.TiffFile, series: Sequence[tifffile.TiffPageSeries]) -> list[Described]:
    """The metadata of every series of a file; empty where it has none that can be read."""
    if tiff.is_ome and tiff.ome_metadata:
        images = _ome_images(tiff.ome_metadata)
        if len(images) == len(series):
            return [_ome(image) for image in images]
    if tiff.is_imagej and tiff.imagej_metadata:
        return [_imagej(one, tiff.imagej_metadata) for one in series]
    return [Described(scale=_plain(one)) for one in series]


def _ome_images(xml: str) -> list[Mapping[str, Any]]:
    try:
        content = tifffile.xml2dict(xml)
    except ParseError:
        return []
    return [image for image in _list(content.get("OME", {}).get("Image")) if isinstance(image, Mapping)]


def _ome(image: Mapping[str, Any]) -> Described:
    pixels = image.get("Pixels", {})
    scale: dict[str, float] = {}
    for axis in "zyx":
        field_name = f"PhysicalSize{axis.upper()}"
        factor = _MICROMETERS.get(str(pixels.get(f"{field_name}Unit", "µm")))
        scale |= _positive(axis, pixels.get(field_name), factor)
    interval = _SECONDS.get(str(pixels.get("TimeIncrementUnit", "s")))
    scale |= _positive("t", pixels.get("TimeIncrement"), interval)
    return Described(_names([channel.get("Name") for channel in _list(pixels.get("Channel"))]), scale)


def _imagej(series: tifffile.TiffPageSeries, metadata: Mapping[str, Any]) -> Described:
    factor = _MICROMETERS.get(str(metadata.get("unit", "")).strip())
    scale = _positive("z", metadata.get("spacing"), factor) | _resolution(series, factor)
    scale |= _positive("t", metadata.get("finterval"), _SECONDS.get(str(metadata.get("tunit", "s"))))
    labels, sizes = _list(metadata.get("Labels")), series.sizes
    only_channels = len(labels) == metadata.get("channels", 1) == metadata.get("images", 1) and "channel" in sizes
    return Described(_names(labels) if only_channels else (), scale)


def _plain(series: tifffile.TiffPageSeries) -> dict[str, float]:
    unit = series.keyframe.tags.valueof("ResolutionUnit")
    scale = _resolution(series, _TAG_UNITS.get(int(unit)) if unit else None)
    return {axis: size for axis, size in scale.items() if size < _LARGEST_PLAIN_PIXEL}


def _resolution(series: tifffile.TiffPageSeries, factor: float | None) -> dict[str, float]:
    """Pixel sizes on y and x from the tags that count pixels per unit of `factor` micrometers."""
    scale: dict[str, float] = {}
    for axis in "yx":
        pixels, units = series.keyframe.tags.valueof(f"{axis.upper()}Resolution", default=(0, 0))
        scale |= _positive(axis, units / pixels if pixels else None, factor)
    return scale


def in_micrometers(size: float, unit: str) -> float | None:
    """A length in `unit`, as files write it; None where that is no unit of length, or the length not positive."""
    return _positive("", size, _MICROMETERS.get(unit.strip())).get("")


def _positive(axis: str, value: object, factor: float | None) -> dict[str, float]:
    if factor is None or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        return {}
    # What was rounded in the file (a rational of pixels per unit) is not made longer by the conversion.
    return {axis: float(f"{value * factor:.9g}")}


def _names(values: Sequence[object]) -> tuple[str, ...]:
    """Names as text; places without one keep their index, and none at all are none."""
    if all(value is None or value == "" for value in values):
        return ()
    return tuple(str(index) if value is None or value == "" else str(value) for index, value in enumerate(values))


def _list(value: object) -> list[Any]:
    """An element of an XML document that may stand once or many times."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
