"""Resampling of an image to another pixel size as a pure function of global coordinates.

A window that is computed alone has the same bits as the same window cut from the whole image: weights depend on the
global index of a target pixel, and taps are added in a fixed order::

    source pixels   | 0 | 1 | 2 | 3 | 4 | 5 |          centre of target pixel i, in source coordinates:
    target pixels   |   0   |   1   |   2   |          (i + 0.5) * source / target - 0.5

Linear interpolation, with a wider triangle when shrinking, so that every source pixel contributes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Span, Window


@dataclass(frozen=True, slots=True)
class AxisMap:
    """Mapping from the pixels of a source axis to those of the resampled axis.

    Attributes
    ----------
    source, target : pixels on the axis before and after, at least 1
    """

    source: int
    target: int

    @classmethod
    def make(cls, source: int, target: int) -> AxisMap:
        """Return the mapping; raise ValueError if an axis has no pixels."""
        if source < 1 or target < 1:
            raise ValueError(f"cannot resample {source} to {target} pixels")
        return cls(source, target)

    def needed(self, target_span: Span) -> Span:
        """Return the source pixels that contribute to the target pixels (never empty, always inside the source)."""
        first, _ = self.taps(Span(target_span.start, target_span.start + 1))
        last, _ = self.taps(Span(target_span.stop - 1, target_span.stop))
        return Span(int(first.min()), int(last.max()) + 1)

    def taps(self, target_span: Span) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the source pixels and weights of each target pixel.

        Weights are normalised over the taps inside the source. The index of a tap with weight zero is that of the pixel
        under the target's centre, so that no other pixels are read.

        Parameters
        ----------
        target_span : target pixels

        Returns
        -------
        index : (taps, target pixels) int64
        weight : (taps, target pixels) float32, sums to 1 over the taps
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
        """Return the source pixel under the centre of each target pixel, floor((i + 0.5) * source / target).

        Parameters
        ----------
        target_span : target pixels

        Returns
        -------
        NDArray[np.int64]
            (target pixels,).
        """
        index = np.arange(target_span.start, target_span.stop)
        return (2 * index + 1) * self.source // (2 * self.target)


def shape_of(shape: Sequence[int], factor: Sequence[float]) -> tuple[int, ...]:
    """Return the shape of an image scaled by `factor` on each axis, at least one pixel on each."""
    return tuple(max(1, round(length * own)) for length, own in zip(shape, factor, strict=True))


def resample(
    window: NDArray[np.float32], source_window: Window, target_window: Window, *axes: AxisMap
) -> NDArray[np.float32]:
    """Compute the pixels of `target_window` by linear interpolation, one axis after another.

    Parameters
    ----------
    window : (channels, *source_window) float32
    source_window : in the source image, containing all pixels that `target_window` needs
    target_window : in the resampled image
    axes : mapping of each axis, in the windows' order

    Returns
    -------
    NDArray[np.float32]
        (channels, *target_window).

    Raises
    ------
    ValueError
        If `source_window` has another shape than `window`, or lacks a pixel that is needed.
    """
    _check(window, source_window, target_window, axes)
    pixels = window
    for dimension, (have, wanted, axis) in enumerate(zip(source_window.spans, target_window.spans, axes, strict=True)):
        pixels = _interpolate(pixels, have, wanted, axis, dimension=dimension + 1)
    return pixels


def nearest(labels: NDArray[Any], source_window: Window, target_window: Window, *axes: AxisMap) -> NDArray[Any]:
    """Compute the pixels of `target_window` by nearest neighbour: each is the source pixel under its centre.

    Parameters
    ----------
    labels : (channels, *source_window) of any dtype
    source_window, target_window, axes : as in `resample`

    Returns
    -------
    NDArray
        (channels, *target_window), in the dtype of `labels`.

    Raises
    ------
    ValueError
        If `source_window` has another shape than `labels`, or lacks a pixel that is needed.
    """
    _check(labels, source_window, target_window, axes)
    spans = zip(source_window.spans, target_window.spans, axes, strict=True)
    picked = labels
    for dimension, (have, wanted, axis) in enumerate(spans, start=1):
        picked = np.take(picked, axis.nearest(wanted) - have.start, axis=dimension)
    return picked


def _check(window: NDArray[Any], source: Window, target: Window, axes: Sequence[AxisMap]) -> None:
    if window.shape[1:] != source.shape:
        raise ValueError(f"pixels of shape {window.shape} are not those of {source}")
    for have, axis, wanted in zip(source.spans, axes, target.spans, strict=True):
        needed = axis.needed(wanted)
        if needed.start < have.start or needed.stop > have.stop:
            raise ValueError(f"{have} lacks pixels of {needed}, which {wanted} needs")


def _interpolate(
    pixels: NDArray[np.float32], have: Span, wanted: Span, axis_map: AxisMap, *, dimension: int
) -> NDArray[np.float32]:
    taps, weights = axis_map.taps(wanted)
    shape = [1] * pixels.ndim
    shape[dimension] = len(wanted)
    result: NDArray[np.float32] | None = None
    for tap, weight in zip(taps - have.start, weights, strict=True):
        part = np.take(pixels, tap, axis=dimension) * weight.reshape(shape)
        result = part if result is None else result + part
    assert result is not None
    return result
