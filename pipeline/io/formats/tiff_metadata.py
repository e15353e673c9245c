"""Read metadata of a TIFF's images: channel names, pixel sizes, intervals; from OME, ImageJ and plain tags."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree.ElementTree import ParseError

import tifffile

from chorus.pipeline.core.units import micrometers, seconds

_TAG_UNITS = {2: 25_400.0, 3: 1e4}
# Resolutions of print and screen, in dots per inch: such pixels are not a microscope's, whoever wrote them.
_PRINT_DPI = (72, 90, 96, 100, 120, 144, 150, 180, 200, 240, 300, 360, 400, 600, 720, 1200)
# Rational tags and rounded metadata are this near to them.
_NEAR_PRINT = 2e-3
# Where the unit is that of print (inch, cm in ImageJ; any in plain tags), larger pixels are not a microscope's, either.
_LARGEST_PLAIN_PIXEL = 20.0
_PRINT_UNITS = (25_400.0, 1e4)
# "MPP = 0.4990": micrometers per pixel, as Aperio's scanners and who follows them describe a slide.
_MPP = re.compile(r"\bmpp(?:[-_. ]?([xy]))?\s*[=:]\s*(\d*[.,]?\d+(?:e[-+]?\d+)?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TiffDescription:
    """Metadata of one image.

    Attributes
    ----------
    channels : names, one per channel before samples are counted; empty where there are none
    scale : micrometers of a pixel per letter of z, y, x, and seconds for t; only what is known
    """

    channels: tuple[str, ...] = ()
    scale: Mapping[str, float] = field(default_factory=dict)


def describe(
    tiff: tifffile.TiffFile, series: Sequence[tifffile.TiffPageSeries], images: Sequence[int | None]
) -> list[TiffDescription]:
    """Read the metadata of every series of a file; empty if it has none that can be read.

    Parameters
    ----------
    images : index of the image in OME-XML that each series was made of, None where none is known
    """
    if tiff.is_ome and tiff.ome_metadata:
        listed = _ome_images(tiff.ome_metadata)
        if len(listed) == len(series):
            images = [position if index is None else index for position, index in enumerate(images)]
        if any(index is not None for index in images):
            return [TiffDescription() if index is None else _ome(listed[index]) for index in images]
    if tiff.is_imagej and tiff.imagej_metadata:
        return [_imagej(one, tiff.imagej_metadata) for one in series]
    return [TiffDescription(scale=_plain(one)) for one in series]


def _ome_images(xml: str) -> list[Mapping[str, Any]]:
    try:
        content = tifffile.xml2dict(xml)
    except ParseError:
        return []
    return [image for image in _list(content.get("OME", {}).get("Image")) if isinstance(image, Mapping)]


def _ome(image: Mapping[str, Any]) -> TiffDescription:
    pixels = image.get("Pixels", {})
    scale: dict[str, float] = {}
    in_print_units = False
    for axis in "zyx":
        field_name = f"PhysicalSize{axis.upper()}"
        factor = micrometers(str(pixels.get(f"{field_name}Unit", "µm")))
        scale |= _positive(axis, pixels.get(field_name), factor)
        if axis == "y" and factor == _TAG_UNITS[2]:
            in_print_units = True
    scale = _without_print(scale, in_print_units)
    scale |= _positive("t", pixels.get("TimeIncrement"), seconds(str(pixels.get("TimeIncrementUnit", "s"))))
    return TiffDescription(_names([channel.get("Name") for channel in _list(pixels.get("Channel"))]), scale)


def _imagej(series: tifffile.TiffPageSeries, metadata: Mapping[str, Any]) -> TiffDescription:
    factor = micrometers(str(metadata.get("unit", "")))
    scale = _without_print(_resolution(series, factor), factor in _PRINT_UNITS)
    scale |= _positive("z", metadata.get("spacing"), factor) if factor not in _PRINT_UNITS or "y" in scale else {}
    scale |= _positive("t", metadata.get("finterval"), seconds(str(metadata.get("tunit", "s"))))
    labels, sizes = _list(metadata.get("Labels")), series.sizes
    only_channels = len(labels) == metadata.get("channels", 1) == metadata.get("images", 1) and "channel" in sizes
    return TiffDescription(_names(labels) if only_channels else (), scale)


def _plain(series: tifffile.TiffPageSeries) -> dict[str, float]:
    described = _of_slide(series)
    if described:
        return described
    unit = series.keyframe.tags.valueof("ResolutionUnit")
    return _without_print(_resolution(series, _TAG_UNITS.get(int(unit)) if unit else None), True)


def _of_slide(series: tifffile.TiffPageSeries) -> dict[str, float]:
    """Read micrometers per pixel from a slide scanner's description."""
    page = series.keyframe
    text = page.description if isinstance(page, tifffile.TiffPage) else ""
    scale: dict[str, float] = {}
    for axis, value in _MPP.findall(text):
        size = _positive("", float(value.replace(",", ".")), 1.0)
        scale |= {letter: size[""] for letter in (axis.lower() or "yx") if size}
    return scale if len(scale) == 2 else {}


def _without_print(scale: dict[str, float], in_print_units: bool) -> dict[str, float]:
    """Drop the pixel sizes on y and x from `scale` if one of them is a print resolution."""
    for axis in "yx":
        size = scale.get(axis, 0.0)
        dots = any(abs(size * dpi / 25_400 - 1) < _NEAR_PRINT for dpi in _PRINT_DPI)
        if dots or (in_print_units and size >= _LARGEST_PLAIN_PIXEL):
            return {letter: value for letter, value in scale.items() if letter not in "yx"}
    return scale


def _resolution(series: tifffile.TiffPageSeries, factor: float | None) -> dict[str, float]:
    """Read pixel sizes on y and x from the tags that count pixels per unit of `factor` micrometers."""
    scale: dict[str, float] = {}
    for axis in "yx":
        pixels, units = series.keyframe.tags.valueof(f"{axis.upper()}Resolution", default=(0, 0))
        scale |= _positive(axis, units / pixels if pixels else None, factor)
    return scale


def in_micrometers(size: float, unit: str) -> float | None:
    """Convert a length in `unit`, as files write it; None if that is no unit of length or the length not positive."""
    return _positive("", size, micrometers(unit)).get("")


def _positive(axis: str, value: object, factor: float | None) -> dict[str, float]:
    if factor is None or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        return {}
    # What was rounded in the file (a rational of pixels per unit) is not made longer by the conversion.
    return {axis: float(f"{value * factor:.9g}")}


def _names(values: Sequence[object]) -> tuple[str, ...]:
    """Convert names to text; missing ones become their index, unless all are missing."""
    if all(value is None or value == "" for value in values):
        return ()
    return tuple(str(index) if value is None or value == "" else str(value) for index, value in enumerate(values))


def _list(value: object) -> list[Any]:
    """Wrap an element of an XML document that may occur once or many times in a list."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
