"""Resampling of a plane to another pixel size as a pure function of global coordinates.

A window that is computed alone has the same bits as the same window cut from the whole plane: weights belong to the
global index of a target pixel, and taps are added in a fixed order::

    source pixels   | 0 | 1 | 2 | 3 | 4 | 5 |          centre of target pixel i, in source coordinates:
    target pixels   |   0   |   1   |   2   |          (i + 0.5) * source / target - 0.5

Linear interpolation, with the triangle widened when shrinking, so that every source pixel counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Span, Window


@dataclass(frozen=True, slots=True)
class AxisMap:
    """How the pixels of a resampled axis come from those of its source.

    Attributes
    ----------
    source, target : pixels on the axis before and after, at least 1
    """

    source: int
    target: int

    @classmethod
    def make(cls, source: int, target: int) -> AxisMap:
        if source < 1 or target < 1:
            raise ValueError(f"cannot resample {source} to {target} pixels")
        return cls(source, target)

    def needed(self, target_span: Span) -> Span:
        """Source pixels that the target pixels are made of (never empty, always inside the source)."""
        first, _ = self.taps(Span(target_span.start, target_span.start + 1))
        last, _ = self.taps(Span(target_span.stop - 1, target_span.stop))
        return Span(int(first.min()), int(last.max()) + 1)

    def taps(self, target_span: Span) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Source pixels and weights of each target pixel, both (taps, target pixels).

        Weights are normalised over the taps inside the source. A tap without weight names a pixel that has one, so
        that nothing else is ever read.
        """
        support = max(1.0, self.source / self.target)
        index = np.arange(target_span.start, target_span.stop)
        centre = (index + 0.5) * self.source / self.target - 0.5
        first = np.floor(centre - support).astype(np.int64) + 1
        tap = first + np.arange(math.ceil(2 * support))[:, None]
        weight = np.maximum(0.0, 1 - np.abs(tap - centre) / support)
        weight[(tap < 0) | (tap >= self.source)] = 0
        total = weight[0].copy()
        for row in weight[1:]:  # not sum(): its order of additions depends on the array's shape
            total += row
        return np.where(weight > 0, tap, self.nearest(target_span)), (weight / total).astype(np.float32)

    def nearest(self, target_span: Span) -> NDArray[np.int64]:
        """The source pixel under the centre of each target pixel, floor((i + 0.5) * source / target)."""
        index = np.arange(target_span.start, target_span.stop)
        return (2 * index + 1) * self.source // (2 * self.target)


def plane_shape(shape: tuple[int, int], factor: tuple[float, float]) -> tuple[int, int]:
    """(height, width) of a plane that has `factor` (y, x) times as many pixels, at least one on each axis."""
    return max(1, round(shape[0] * factor[0])), max(1, round(shape[1] * factor[1]))


def resample(
    window: NDArray[np.float32], source_window: Window, target_window: Window, y: AxisMap, x: AxisMap
) -> NDArray[np.float32]:
    """The pixels of `target_window`, (channels, y, x) float32, linearly interpolated.

    Parameters
    ----------
    window : (channels, y, x) float32, the pixels of `source_window`
    source_window : in the source plane, holding what `target_window` needs of `y` and `x`
    target_window : in the resampled plane

    Raises
    ------
    ValueError
        If `source_window` is not the window's shape or lacks a pixel that is needed.
    """
    _check(window, source_window, target_window, y, x)
    rows = _interpolate(window, source_window.y, target_window.y, y, axis=1)
    return _interpolate(rows, source_window.x, target_window.x, x, axis=2)


def nearest(labels: NDArray[Any], source_window: Window, target_window: Window, y: AxisMap, x: AxisMap) -> NDArray[Any]:
    """The pixels of `target_window` as `resample`, but each the source pixel under its centre.

    `labels` is (channels, y, x) of any dtype, which the result keeps.
    """
    _check(labels, source_window, target_window, y, x)
    rows = y.nearest(target_window.y) - source_window.y.start
    columns = x.nearest(target_window.x) - source_window.x.start
    return labels[:, rows[:, None], columns]


def _check(window: NDArray[Any], source: Window, target: Window, y: AxisMap, x: AxisMap) -> None:
    if window.shape[1:] != source.shape:
        raise ValueError(f"pixels of shape {window.shape} are not those of {source}")
    for have, axis, wanted in ((source.y, y, target.y), (source.x, x, target.x)):
        needed = axis.needed(wanted)
        if needed.start < have.start or needed.stop > have.stop:
            raise ValueError(f"{have} lacks pixels of {needed}, which {wanted} needs")


def _interpolate(
    pixels: NDArray[np.float32], have: Span, wanted: Span, axis_map: AxisMap, *, axis: int
) -> NDArray[np.float32]:
    taps, weights = axis_map.taps(wanted)
    shape = [1, 1, 1]
    shape[axis] = len(wanted)
    result: NDArray[np.float32] | None = None
    for tap, weight in zip(taps - have.start, weights, strict=True):
        part = np.take(pixels, tap, axis=axis) * weight.reshape(shape)
        result = part if result is None else result + part
    assert result is not None
    return result
