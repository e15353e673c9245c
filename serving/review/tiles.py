"""Tiles as pictures: channels in grey or a colour between two values, labels filled or as outlines, maps in colours.

Colours and ranges of maps are those of their fields, see `chorus.pipeline.core.fields`: the same in every run.
"""

from __future__ import annotations

import colorsys
import io
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chorus.pipeline.core.field import Colormap
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.report.pictures import INFERNO
from chorus.serving.review.pixels import TILE, Layer, Pixels, Step

Style = Literal["fill", "line"]

MEDIA = {"webp": "image/webp", "png": "image/png"}
# matplotlib's viridis at 0, 0.1, ..., 1.
VIRIDIS = (
    "#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c",
    "#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725",
)  # fmt: skip
# Blue, white, red: for signed values such as flows.
_SIGNED = ("#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b")
COLORMAPS: dict[Colormap, tuple[str, ...]] = {"viridis": VIRIDIS, "inferno": INFERNO, "diverging": _SIGNED}
_HUES = 251  # prime, so that numbers of neighbouring objects rarely share a colour


@dataclass(frozen=True, slots=True)
class Look:
    """How a tile is drawn.

    Attributes
    ----------
    low, high : values that become black and white, or the ends of the colour map; None takes those of `scale`
    color : of a channel, ``rrggbb``
    style : of labels
    """

    low: float | None = None
    high: float | None = None
    color: str = "ffffff"
    style: Style = "line"


def scale(layer: Layer) -> tuple[float, float, tuple[str, ...]]:
    """Return the minimum and maximum of a map's colours, and the colours."""
    colormap = layer.field.display.colormap if layer.field else "viridis"
    return layer.display.low, layer.display.high, COLORMAPS[colormap]


def contrast(values: NDArray[Any]) -> tuple[float, float]:
    """Return the contrast limits of a channel: the 1st and the 99.8th percentile, as in the report.

    Parameters
    ----------
    values : (...) of any real dtype, at least one

    Returns
    -------
    low and high, low < high
    """
    low, high = (float(value) for value in np.percentile(values, (1, 99.8)))
    return (low, high) if high > low else (low, low + 1.0)


def draw_tile(
    pixels: Pixels,
    layer: Layer,
    step: Step,
    corner: tuple[int, int, int, int],
    appearance: Look,
    colors: list[str],
    suffix: str,
) -> bytes:
    """Return a tile as a picture file.

    Parameters
    ----------
    corner : time point, z plane, and row and column of the tile
    colors : of classes, background first, ``#rrggbb``
    suffix : ``webp`` or ``png``

    Raises
    ------
    ImageError
        If the pixels cannot be read.
    """
    t, z, row, column = corner
    top, left = row * TILE, column * TILE
    window = Window.of(top, min(top + TILE, step.height), left, min(left + TILE, step.width))
    if layer.kind == "labels":
        return _encode(_labels(pixels, layer, step, t, z, window, appearance.style, colors), "png")
    values = pixels.window(layer, step, t, z, window)
    if layer.field is None:
        low, high = (appearance.low or 0.0, appearance.high if appearance.high is not None else 1.0)
        return _encode(paint_channel(values, low, high, appearance.color), suffix)
    low, high, anchors = scale(layer)
    low, high = (
        low if appearance.low is None else appearance.low,
        high if appearance.high is None else appearance.high,
    )
    return _encode(paint_map(values, low, high, anchors), suffix)


def paint_channel(values: NDArray[Any], low: float, high: float, color: str) -> NDArray[np.uint8]:
    """Map values linearly from black at `low` to white, or to a colour, at `high`.

    Parameters
    ----------
    values : (y, x) of any real dtype
    color : ``rrggbb``

    Returns
    -------
    uint8, (y, x) if `color` is white, else (y, x, 3)
    """
    share = np.clip((values.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1)
    if color.lower() == "ffffff":
        return np.asarray(np.rint(255 * share), np.uint8)
    full = np.frombuffer(bytes.fromhex(color), np.uint8).astype(np.float32)
    return np.asarray(np.rint(share[..., None] * full), np.uint8)


def paint_map(values: NDArray[Any], low: float, high: float, anchors: tuple[str, ...]) -> NDArray[np.uint8]:
    """Map values to colours, with `anchors` evenly spaced from `low` to `high`.

    Parameters
    ----------
    values : (y, x) of any real dtype
    anchors : ``#rrggbb``

    Returns
    -------
    (y, x, 3) uint8
    """
    share = np.clip((values.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1)
    return np.asarray(lookup(anchors)[np.rint(255 * share).astype(np.uint8)])


@cache
def lookup(anchors: tuple[str, ...]) -> NDArray[np.uint8]:
    """Interpolate a colour table linearly between the anchors, ``#rrggbb``.

    Returns
    -------
    (256, 3) uint8
    """
    known = np.array([tuple(bytes.fromhex(color[1:])) for color in anchors], np.float64)
    at, places = np.linspace(0, len(anchors) - 1, 256), np.arange(len(anchors))
    return np.asarray(np.rint(np.stack([np.interp(at, places, band) for band in known.T], axis=-1)), np.uint8)


def paint_labels(labels: NDArray[Any], colors: NDArray[np.uint8], style: Style, rim: int) -> NDArray[np.uint8]:
    """Paint labels, transparent where there are none.

    An outline is drawn inside an object, at pixels whose neighbour above, below, left or right has another label.

    Parameters
    ----------
    labels : (y + 2 * rim, x + 2 * rim) integer, 0 is background
    colors : (values, 3) uint8, by label
    rim : additional pixels on each side, at least 1 for outlines

    Returns
    -------
    (y, x, 4) uint8, RGBA
    """
    inner = labels[rim : labels.shape[0] - rim, rim : labels.shape[1] - rim]
    seen = inner != 0
    if style == "line":
        edge = np.zeros(inner.shape, bool)
        height, width = labels.shape
        for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            edge |= labels[rim + dy : height - rim + dy, rim + dx : width - rim + dx] != inner
        seen &= edge
    painted = np.zeros((*inner.shape, 4), np.uint8)
    painted[seen, :3] = colors[inner[seen]]
    painted[seen, 3] = 255
    return painted


def _labels(
    pixels: Pixels, layer: Layer, step: Step, t: int, z: int, window: Window, style: Style, colors: list[str]
) -> NDArray[np.uint8]:
    """Paint labels with a rim of one pixel of the neighbouring tiles, so that outlines meet.

    The border of the image itself is no outline.
    """
    wide = Window.of(
        max(window.y.start - 1, 0),
        min(window.y.stop + 1, step.height),
        max(window.x.start - 1, 0),
        min(window.x.stop + 1, step.width),
    )
    values = pixels.window(layer, step, t, z, wide)
    missing = [(1 - (window.y.start - wide.y.start), 1 - (wide.y.stop - window.y.stop))]
    missing += [(1 - (window.x.start - wide.x.start), 1 - (wide.x.stop - window.x.stop))]
    values = np.pad(values, missing, mode="edge")
    if layer.name == "semantic":
        known = np.array([tuple(bytes.fromhex(color[1:])) for color in colors], np.uint8)
        return paint_labels(np.minimum(values, len(known) - 1), known, style, 1)
    return paint_labels(np.where(values == 0, 0, 1 + values % _HUES).astype(np.int64), _object_colors(), style, 1)


@cache
def _object_colors() -> NDArray[np.uint8]:
    """Return colours by the golden angle, so that successive numbers differ; light enough on black.

    Returns
    -------
    (252, 3) uint8, the first is the background's
    """
    colors = [(0.0, 0.0, 0.0)]
    colors += [colorsys.hsv_to_rgb(i * 0.61803398875 % 1, 0.55 + 0.15 * (i % 3), 1.0) for i in range(_HUES)]
    return np.asarray(np.rint(255 * np.array(colors)), np.uint8)


def _encode(picture: NDArray[np.uint8], suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix == "png":
        Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    else:
        # Lossless: decisions must not be based on compression artefacts.
        Image.fromarray(picture).save(buffer, format="WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()
