"""Thumbnails: one small file per image, made when the image is finished, so that a report of 10^5 images is fast.

A thumbnail is a strip of three panels: the image, the image with its predicted outlines, the uncertainty map::

    OUT/report/thumbnails/<name of the image>.webp

    +-------+----------+-------------+
    | image | outlines | uncertainty |    a panel that cannot be drawn is crossed out
    +-------+----------+-------------+
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.models import ClassInfo
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.report.pictures import Panels, encode, paint_panels

SIDE = 192
"""Longer side of a panel in pixels."""

_GAP = 4
_SUFFIX = ".webp"
_QUALITY = 60  # some 15 kB each
# Both are visible on light and on dark pages.
_BLANK, _CROSS = (96, 96, 96), (140, 140, 140)


def thumbnails_url(out: str) -> str:
    """Return the URL of the folder of a run's thumbnails."""
    return storage.join(out, "report", "thumbnails")


def thumbnail_url(out: str, name: str) -> str:
    """Return the URL of the thumbnail of the image called `name`."""
    return inside(thumbnails_url(out), name + _SUFFIX)


def draw_thumbnail(
    source_url: str, result_url: str, labels_url: str, classes: Sequence[ClassInfo], channel: int = 0
) -> bytes:
    """Return the thumbnail of an image as a WEBP file.

    The parameters are those of `chorus.pipeline.report.pictures.draw_views`.
    """
    return encode(_strip(paint_panels(source_url, result_url, labels_url, classes, channel, SIDE)), _QUALITY)


def write_thumbnail(
    out: str,
    name: str,
    source_url: str,
    labels_url: str,
    classes: Sequence[ClassInfo],
    channel: int = 0,
) -> bytes:
    """Draw the thumbnail of an image of the run `out`, write it, and return it.

    Panels that cannot be drawn are crossed out.

    Raises
    ------
    OutputError
        If storage does not accept the file.
    """
    data = draw_thumbnail(source_url, storage.join(out, "images", name), labels_url, classes, channel)
    url = thumbnail_url(out, name)
    with storage_errors(url):
        storage.write_bytes(url, data)
    return data


def thumbnails_present(out: str) -> set[str]:
    """Return the names of the images that have a thumbnail, from one listing."""
    url = thumbnails_url(out)
    with storage_errors(url):
        names = (file.name for file in storage.files_below(url))
        return {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)}


def _strip(panels: Panels) -> NDArray[np.uint8]:
    """Return the three panels side by side, (y, x, 3) uint8; all have the size of the first one that could be drawn."""
    height, width = next((each.shape[:2] for each in panels.pixels if each is not None), (SIDE, SIDE))
    strip = np.full((height, 3 * width + 2 * _GAP, 3), _BLANK, np.uint8)
    for index, panel in enumerate(panels.pixels):
        left = index * (width + _GAP)
        if panel is None:
            strip[:, left : left + width] = _crossed(height, width)
        else:
            # Sizes of coarse levels may differ by a pixel due to rounding.
            same = panel if panel.shape[:2] == (height, width) else _resized(panel, height, width)
            strip[:, left : left + width] = same
    return strip


def _resized(panel: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(panel).resize((width, height)), np.uint8)


def _crossed(height: int, width: int) -> NDArray[np.uint8]:
    picture = Image.new("RGB", (width, height), _BLANK)
    pen = ImageDraw.Draw(picture)
    pen.line((0, 0, width - 1, height - 1), fill=_CROSS, width=2)
    pen.line((0, height - 1, width - 1, 0), fill=_CROSS, width=2)
    return np.asarray(picture, np.uint8)
