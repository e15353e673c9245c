"""Alignment of a pyramid's levels: scales that disagree with shapes, and pixels of the finest level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from chorus.pipeline.io.models import Level

# Scales are written with this many digits at least.
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class AxisPlace:
    """Position of a level's pixels along an axis of the finest one, counted along edges of pixels.

    Attributes
    ----------
    factor : pixels of the finest level that one of the level stands for
    offset : edge of the finest level at which the level's first pixel begins; 0 where levels begin together
    length : of the finest level; None where it does not matter
    """

    factor: float = 1.0
    offset: float = 0.0
    length: int | None = None

    def edge(self, position: float) -> float:
        """Convert an edge of the level to the edge of the finest level at the same position."""
        return position * self.factor + self.offset

    def plane(self, index: int) -> int:
        """Return the middle of the finest level's planes that a plane covers; the first of two."""
        middle = max(math.ceil(round(self.edge(index + 0.5), 6) - 1), 0)
        return middle if self.length is None else min(middle, self.length - 1)


def place_of(finest: Level, level: Level, axis: int) -> AxisPlace:
    """Return the position of `level` along an axis (index) of the finest one.

    By NGFF a translation is where the centre of the first pixel is. Most writers give none (or the same to all levels)
    although a coarse pixel is the mean of those that it covers: then levels begin together, at their edges.
    """
    factor = _factor(finest, level, axis)
    moved = (level.translation[axis] - finest.translation[axis]) / finest.scale[axis] if finest.scale[axis] else 0.0
    offset = moved - (factor - 1) / 2 if math.isfinite(moved) and abs(moved) > 1e-6 else 0.0
    return AxisPlace(round(factor, 6), round(offset, 6), finest.shape[axis])


def _factor(finest: Level, level: Level, axis: int) -> float:
    """Return the pixels of the finest level per pixel of `level`: by scales, or by shapes if scales are missing."""
    ratio = level.scale[axis] / finest.scale[axis] if finest.scale[axis] else math.nan
    if math.isfinite(ratio) and ratio > 0:
        return ratio
    return _of_shapes(finest.shape[axis], level.shape[axis])


def with_scales_of_shapes(axes: str, stored: Sequence[Level]) -> tuple[tuple[Level, ...], str]:
    """Return levels, finest first, with scales that match their shapes, and a sentence if some did not.

    Pixels are where they are, whatever is written of them: the first level's scale is believed, and each other level's
    as long as its shape can be that of the first, shrunk by the ratio of both. Else the ratio of the shapes is taken.
    """
    order = sorted(range(len(stored)), key=lambda index: -_pixels(axes, stored[index]))
    levels = [stored[index] for index in order]
    finest, made, wrong = levels[0], [levels[0]], []
    for level in levels[1:]:
        axes_wrong = [i for i, axis in enumerate(axes) if axis in "tzyx" and not _goes_with(finest, level, i)]
        if axes_wrong:
            level = _mended(finest, level, axes_wrong)
            wrong.append(f"{level.path} ({''.join(axes[i] for i in axes_wrong)})")
        made.append(level)
    if not wrong:
        return tuple(made), ""
    return tuple(made), f"scales disagree with the shapes of levels {', '.join(wrong)}: sizes are those of the shapes"


def _pixels(axes: str, level: Level) -> int:
    return math.prod(length for axis, length in zip(axes, level.shape, strict=True) if axis in "zyx")


def _goes_with(finest: Level, level: Level, axis: int) -> bool:
    """Return whether a level's shape is the finest one's divided by the ratio of their scales, rounded either way."""
    if not finest.scale[axis]:
        return True
    ratio = level.scale[axis] / finest.scale[axis]
    if not (math.isfinite(ratio) and ratio > 0):
        return False
    expected, rounded = finest.shape[axis] / ratio, 1 + finest.shape[axis] / ratio * _ROUNDING
    return abs(expected - level.shape[axis]) <= rounded


def _of_shapes(finest: int, coarse: int) -> float:
    """Return the factor by which a length was shrunk: an integer if one fits, else the ratio."""
    whole = round(finest / coarse)
    return float(whole) if whole >= 1 and abs(finest / whole - coarse) <= 1 else finest / coarse


def _mended(finest: Level, level: Level, axes: Sequence[int]) -> Level:
    scale, translation = list(level.scale), list(level.translation)
    for axis in axes:
        factor = _of_shapes(finest.shape[axis], level.shape[axis])
        scale[axis] = finest.scale[axis] * factor
        if translation[axis] != finest.translation[axis]:  # of the scale that was wrong
            translation[axis] = finest.translation[axis] + (factor - 1) / 2 * finest.scale[axis]
    return replace(level, scale=tuple(scale), translation=tuple(translation))
