"""A volume as the planes that it has in three directions: the letters of its axes are exchanged, its pixels stay.

::

    view    its planes are    rows are    columns are    flow:y, flow:x are
    yx      z                 y           x              dy, dx
    zx      y                 z           x              dz, dx
    zy      x                 z           y              dz, dy
"""

from __future__ import annotations

import math
from dataclasses import replace

from chorus.cluster.planning.planned_image import PlannedImage
from chorus.pipeline.core.units import micrometers
from chorus.pipeline.errors import ImageError
from chorus.pipeline.instances.shapes import Spacing
from chorus.pipeline.io.sources.reading import SAME_SIZE

VIEWS = ("yx", "zx", "zy")
# Letter in the view of each letter of the volume.
LETTERS = {
    "yx": {"z": "z", "y": "y", "x": "x"},
    "zx": {"z": "y", "y": "z", "x": "x"},
    "zy": {"z": "y", "y": "x", "x": "z"},
}


def require_volume(image: PlannedImage) -> None:
    """Raise ImageError where an image has no planes in three directions."""
    if "z" not in image.axes:
        raise ImageError(f"{image.url}: has no z axis (its axes are {image.axes}); leave --volumes out")
    if image.planes[1] < 2:
        raise ImageError(f"{image.url}: has one z plane, of which there is no volume; leave --volumes out")


def anisotropy(image: PlannedImage, axis: str = "z") -> float:
    """Return the distance between planes in pixels along y (or another axis); 1 where the scales are unknown."""
    sizes = dict(zip(image.output_axes, zip(image.scale, image.units, strict=True), strict=True))
    (size, unit), (y, unit_y) = sizes[axis], sizes["y"]
    if unit != unit_y:
        size, y = size * (micrometers(unit) or 0.0), y * (micrometers(unit_y) or 0.0)
    ratio = size / y if y else math.nan
    return ratio if math.isfinite(ratio) and ratio > 0 else 1.0


def spacing_of(image: PlannedImage, axes: str) -> Spacing:
    """Return the pixel spacing of `image` along `axes`, relative to y, and the pixel size along y in micrometres."""
    y = image.output_axes.index("y")
    pixel = image.scale[y] * (micrometers(image.units[y]) or 0.0)
    return Spacing(tuple(anisotropy(image, axis) for axis in axes), pixel if pixel > 0 else math.nan)


def turned(image: PlannedImage, view: str) -> PlannedImage:
    """Return the volume `image` as planes of a view, at the pixel size at which members see the other views.

    Raises
    ------
    ImageError : it is no volume
    """
    require_volume(image)
    letters = LETTERS[view]
    lengths = dict(zip(image.output_axes, image.output_shape, strict=True))
    model = {"z": _model_depth(image, lengths["z"]), "y": image.model_height, "x": image.model_width}
    kept = {letter: index for index, letter in enumerate(letters.get(axis, axis) for axis in image.output_axes)}
    order = [kept[letter] for letter in "tzyx" if letter in kept]
    of_view = {letters[axis]: length for axis, length in model.items()}
    return replace(
        image,
        axes="".join(letters.get(axis, axis) for axis in image.axes),
        output_axes="".join(letter for letter in "tzyx" if letter in kept),
        output_shape=tuple(image.output_shape[i] for i in order),
        scale=tuple(image.scale[i] for i in order),
        translation=tuple(image.translation[i] for i in order),
        units=tuple(image.units[i] for i in order),
        model_height=of_view["y"],
        model_width=of_view["x"],
    )


def _model_depth(image: PlannedImage, depth: int) -> int:
    """Return the number of planes after resampling to the model's pixel size."""
    factor = image.model_height / image.height * anisotropy(image)
    return depth if abs(factor - 1) <= SAME_SIZE else max(1, round(depth * factor))
