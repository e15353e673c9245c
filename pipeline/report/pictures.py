"""Small pictures for the report: an image, its predicted outlines and its uncertainty map.

Only a coarse pyramid level is read, so a picture of a whole slide costs as little as one of a field.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

from chorus.pipeline.core.fields import CLASS_VARIANCES
from chorus.pipeline.errors import ChorusError, ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import ClassInfo, Level, SourceImage
from chorus.pipeline.io.sources.ngff import open_image
from chorus.pipeline.io.sources.reading import open_level
from chorus.pipeline.io.storage_failures import failure_sentence

LONGEST_SIDE = 512
# The scale of all variances of classes, the same in every report.
UNCERTAINTY_TOP = CLASS_VARIANCES[0].display.high
_UNCERTAINTY = tuple(field.name for field in CLASS_VARIANCES)

# Maximum number of pixels of a level; larger ones are not read, not even with a stride.
_READ_PIXELS = 2**28
_GAP = 4  # pixels between panels
_COLORS = 64
# In smaller pictures an outline of two pixels would hide what it surrounds.
_THIN = 256

# matplotlib's inferno at 0, 0.1, ..., 1.
INFERNO = (
    "#000004", "#160b39", "#420a68", "#6a176e", "#932667", "#bc3754",
    "#dd513a", "#f37819", "#fca50a", "#f6d746", "#fcffa4",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture inside the page: its data URI, its size in pixels and a description."""

    uri: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True, slots=True)
class Views:
    """The pictures of one image; None if one cannot be drawn, and `notes` say why."""

    image: Picture | None
    outlines: Picture | None
    uncertainty: Picture | None
    uncertainty_name: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plane:
    """A (y, x) plane of a coarse level, with the name of its channel and notes on what was left out."""

    pixels: NDArray[Any]
    name: str
    notes: tuple[str, ...]


def draw_views(
    source_url: str,
    result_url: str,
    classes: Sequence[ClassInfo],
    *,
    labels_url: str | None = None,
    channel: int = 0,
) -> Views:
    """Draw the three pictures of one image.

    Parameters
    ----------
    source_url : the multiscales group that was segmented
    result_url : its results, ``OUT/images/<name>``
    classes : background first; outlines take their colours
    labels_url : group that has ``labels/semantic``; by default `result_url`
    channel : of the source, to be shown
    """
    painted = paint_panels(source_url, result_url, labels_url or result_url, classes, channel, LONGEST_SIDE)
    names = ", ".join(c.name for c in classes[1:]) or "foreground"
    caption = (
        f"Microscopy image, {painted.image_name}",
        f"The same image with the predicted outlines of {names}",
        f"Map of {painted.uncertainty_name}; brighter means more uncertainty",
    )
    image, outlines, uncertainty = (
        None if pixels is None else _picture(pixels, alt) for pixels, alt in zip(painted.pixels, caption, strict=True)
    )
    return Views(image, outlines, uncertainty, painted.uncertainty_name, painted.notes)


@dataclass(frozen=True, slots=True)
class Panels:
    """The pictures of one image as pixels.

    Attributes
    ----------
    pixels : image, outlines, uncertainty map: (y, x, 3) uint8, each None if it cannot be drawn
    image_name, uncertainty_name : of the channel and of the map; empty if there is none
    notes : what is not shown, and why
    """

    pixels: tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None, NDArray[np.uint8] | None]
    image_name: str
    uncertainty_name: str
    notes: tuple[str, ...]


def paint_panels(
    source_url: str, result_url: str, labels_url: str, classes: Sequence[ClassInfo], channel: int, longest: int
) -> Panels:
    """Paint the three pictures of an image, `longest` pixels on their longer side; see `draw_views`."""
    notes: list[str] = []
    source = _attempt(lambda: _read_plane(source_url, (), channel, longest), notes)
    labels = _attempt(lambda: _read_plane(storage.join(labels_url, "labels", "semantic"), (), 0, longest), notes)
    uncertainty = _attempt(lambda: _read_plane(result_url, _UNCERTAINTY, 0, longest), notes)
    if uncertainty is not None and uncertainty.name not in _UNCERTAINTY:
        uncertainty = None
        notes.append("no uncertainty map was kept in this run")
    grey = outlines = shown = None
    if source is not None:
        notes += source.notes
        grey = _stretch(_shrink(source.pixels, longest))
        if labels is not None:
            outlines = _outline(grey, labels.pixels, classes)
    if uncertainty is not None:
        shown = _inferno(_shrink(uncertainty.pixels, longest))
    names = (source.name if source else "", uncertainty.name if uncertainty else "")
    return Panels((grey, outlines, shown), *names, tuple(dict.fromkeys(notes)))


def paint_result(
    pixels: NDArray[Any],
    labels: NDArray[Any],
    objects: Sequence[NDArray[Any]],
    uncertainty: NDArray[Any] | None,
    classes: Sequence[ClassInfo],
    longest: int,
) -> NDArray[np.uint8]:
    """Return an image with the outlines of what was found, beside its uncertainty map: (y, x, 3) uint8.

    Parameters
    ----------
    pixels, labels : (y, x) of a plane and its classes; they may be of different sizes
    objects : (y, x) numbered objects of each class but the background; empty where there are none
    uncertainty : (y, x) uncertainty, 0 to `UNCERTAINTY_TOP`; None paints the image alone
    longest : pixels on the longer side of a panel

    Returns
    -------
    NDArray[np.uint8]
        (y, x, 3) RGB.
    """
    grey = _stretch(_shrink(pixels, longest))
    drawn = _outline(grey, labels, classes)
    if objects:
        drawn = grey.copy()
        for numbers, info in zip(objects, classes[1:], strict=True):
            drawn[_borders(_sampled(numbers, grey.shape))] = _rgb(info.color)
    return drawn if uncertainty is None else beside(drawn, _inferno(_shrink(uncertainty, longest)))


def beside(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Join two pictures of one size side by side, with a white gap.

    Parameters
    ----------
    left, right : (y, x, 3) uint8 RGB

    Returns
    -------
    NDArray[np.uint8]
        (y, x, 3) RGB.
    """
    gap = np.full((len(left), _GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode pixels as a PNG file of `_COLORS` colours: a third of the size, without a visible difference.

    Parameters
    ----------
    pixels : (y, x, 3) uint8 RGB
    """
    buffer = io.BytesIO()
    few = Image.fromarray(pixels).quantize(_COLORS, dither=Image.Dither.NONE)
    few.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def draw_image(source_url: str) -> tuple[Picture | None, tuple[str, ...]]:
    """Return the picture of a source image alone, and notes on it."""
    notes: list[str] = []
    plane = _attempt(lambda: _read_plane(source_url, (), 0, LONGEST_SIDE), notes)
    if plane is None:
        return None, tuple(notes)
    return _picture(_stretch(_shrink(plane.pixels, LONGEST_SIDE)), f"Microscopy image, {plane.name}"), plane.notes


def _attempt(read: Callable[[], _Plane], notes: list[str]) -> _Plane | None:
    """Return the result of `read`; None, with the reason in `notes`, if the image cannot be read."""
    try:
        return read()
    except ChorusError as error:
        notes.append(str(error))
        return None


def _read_plane(url: str, channels: Sequence[str], otherwise: int, longest: int) -> _Plane:
    """Read the first plane of the image group at `url`: the first of `channels` that it has, else channel `otherwise`.

    At least `longest` pixels of its longer side are read, if it has them, and not many more.

    Raises
    ------
    ChorusError
        If it is missing or cannot be read.
    """
    image = open_image(url, "image", "", storage.basename(url))
    channel = next((image.channels.index(name) for name in channels if name in image.channels), otherwise)
    most = 2 * longest
    level = next((each for each in image.levels if max(_size(image, each)) <= most), image.levels[-1])
    height, width = _size(image, level)
    if height * width > _READ_PIXELS:
        raise ImageError(f"{url}: has no pyramid level small enough for a picture; add coarser levels to see it here")
    stride = -(-max(height, width) // most)
    at: dict[str, int | slice] = {
        "c": channel,
        "y": slice(None, None, stride),
        "x": slice(None, None, stride),
    }
    try:
        array = open_level(image.url, level.path, image.ngff)
        pixels = np.asarray(array[tuple(at.get(axis, 0) for axis in image.axes)])
    except Exception as error:
        # Codecs raise types of many libraries, also of levels that the run itself did not read.
        raise ImageError(failure_sentence(error, url) or f"{url}: cannot be read ({error})") from error
    notes = _left_out(image, level, channel) if not channels else ()
    return _Plane(pixels, image.channels[channel], notes)


def _size(image: SourceImage, level: Level) -> tuple[int, int]:
    return level.shape[image.axes.index("y")], level.shape[image.axes.index("x")]


def _left_out(image: SourceImage, level: Level, channel: int) -> tuple[str, ...]:
    """Return notes on what a picture of one plane does not show."""
    lengths = dict(zip(image.axes, level.shape, strict=True))
    notes = [
        f"first of {lengths[axis]} {word}"
        for axis, word in (("t", "time points"), ("z", "z planes"))
        if lengths.get(axis, 1) > 1
    ]
    if len(image.channels) > 1:
        notes.append(f"channel {image.channels[channel]}, one of {len(image.channels)}")
    return tuple(notes)


def _shown_size(shape: tuple[int, ...], longest: int) -> tuple[int, int]:
    """Return height and width of a picture of `shape`: its longer side is `longest`, small images are enlarged."""
    factor = longest / max(shape)
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _shrink(plane: NDArray[Any], longest: int) -> NDArray[np.float32]:
    """Resize `plane` (y, x) to the size of a picture, by averaging."""
    height, width = _shown_size(plane.shape, longest)
    resized = Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.HAMMING)
    return np.asarray(resized, np.float32)


def _stretch(plane: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return grey values (y, x, 3) uint8 between the 1st and the 99.8th percentile."""
    finite = plane[np.isfinite(plane)]
    low, high = np.percentile(finite, (1, 99.8)) if finite.size else (0.0, 1.0)
    grey = np.clip((np.nan_to_num(plane) - low) / max(float(high - low), 1e-12), 0, 1)
    return np.repeat(np.rint(255 * grey).astype(np.uint8)[..., None], 3, axis=2)


def _outline(grey: NDArray[np.uint8], labels: NDArray[Any], classes: Sequence[ClassInfo]) -> NDArray[np.uint8]:
    """Return `grey` (y, x, 3) with the outlines of each class of `labels` (any size, same extent) in its colour."""
    labels = _sampled(labels, grey.shape)
    drawn = grey.copy()
    for value, info in enumerate(classes):
        mask = labels == value
        if value and mask.any():
            outer = mask if max(mask.shape) <= _THIN else binary_dilation(mask)
            drawn[outer & ~binary_erosion(mask, border_value=1)] = _rgb(info.color)
    return drawn


def _sampled(labels: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Sample `labels` (y, x) at the nearest pixels of a picture of `shape`."""
    rows = (np.arange(shape[0]) + 0.5) * labels.shape[0] / shape[0]
    columns = (np.arange(shape[1]) + 0.5) * labels.shape[1] / shape[1]
    return np.asarray(labels[np.ix_(rows.astype(int), columns.astype(int))])


def _borders(numbers: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where pixels of an object touch something else by a side, (y, x) bool."""
    wide = np.pad(numbers, 1, mode="edge")
    inner = (slice(1, -1), slice(1, -1))
    touching = np.zeros(numbers.shape, bool)
    for axis in (0, 1):
        for step in (-1, 1):
            touching |= np.roll(wide, step, axis)[inner] != numbers
    return np.asarray(touching & (numbers != 0))


def _inferno(plane: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the colours (y, x, 3) uint8 of a map from 0 to UNCERTAINTY_TOP."""
    anchors = np.array([_rgb(color) for color in INFERNO])
    places = np.clip(np.nan_to_num(plane) / UNCERTAINTY_TOP, 0, 1) * (len(INFERNO) - 1)
    bands = [np.interp(places, np.arange(len(INFERNO)), anchors[:, band]) for band in range(3)]
    return np.asarray(np.rint(np.stack(bands, axis=-1)), np.uint8)


def _rgb(color: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue


def encode(pixels: NDArray[np.uint8], quality: int = 80) -> bytes:
    """Encode pixels as a WEBP file.

    Parameters
    ----------
    pixels : (y, x, 3) uint8
    quality : of the compression, 0 to 100
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", quality=quality, method=2)
    return buffer.getvalue()


def data_uri(webp: bytes) -> str:
    """Return a WEBP file as a data URI for a page."""
    return "data:image/webp;base64," + base64.b64encode(webp).decode()


def _picture(pixels: NDArray[np.uint8], alt: str) -> Picture:
    return Picture(data_uri(encode(pixels)), pixels.shape[1], pixels.shape[0], alt)
