"""Statistics of an image's non-zero pixels and of their bounding box, merged block by block and exact.

A pixel is non-zero where any of its channels is not 0. Outside of the bounding box every pixel is 0 in all channels and
adds nothing to sums, so the box's mean and standard deviation follow from the sums of the whole image and the number of
pixels in the box, which is known after the last block. One pass suffices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.preprocessing.sketches import ORIGIN, Corner, Moments, Values, mean_and_std

Within: TypeAlias = Literal["image", "crop", "nonzero"]
"""Which pixels a statistic is of: all, those in the bounding box of the non-zero ones, or the non-zero ones."""


@dataclass
class NonzeroMoments:
    """Sums, extremes and bounds of the non-zero pixels.

    Attributes
    ----------
    moments : sums over all pixels, which are those over the non-zero ones
    nonzero : number of non-zero pixels
    bounds : (first, last) index of the non-zero pixels per axis (t, z, y, x); None where there are none
    counts : per channel, pixels in which the channel itself is not 0
    extremes : per channel, the least and the greatest of its values that are not 0
    """

    moments: Moments
    nonzero: int
    bounds: tuple[tuple[int, int], ...] | None
    counts: tuple[int, ...]
    extremes: tuple[tuple[float, float], ...]

    found: ClassVar[tuple[tuple[str, float, Within], ...]] = (
        ("mean", 0.0, "crop"),
        ("std", 0.0, "crop"),
        ("percentile", 0.0, "crop"),
        ("percentile", 100.0, "crop"),
        ("mean", 0.0, "nonzero"),
        ("std", 0.0, "nonzero"),
    )
    """Kind, percent and pixels of the values that `conclude` gives of each channel, in this order."""

    @classmethod
    def begin(cls, channels: int) -> NonzeroMoments:
        """Return an empty sketch."""
        return cls(Moments.begin(channels), 0, None, (0,) * channels, ((math.inf, -math.inf),) * channels)

    def update(self, block: NDArray[Any], corner: Corner = ORIGIN) -> None:
        """Add the pixels of a block.

        Parameters
        ----------
        block : (channels, y, x) or (channels, z, y, x) of any real dtype
        corner : (t, z, y, x) of its first pixel in the image

        Raises
        ------
        ImageError
            If a value is NaN, infinite or too large for float32.
        """
        self.moments.update(block)
        nonzero = (block != 0).any(axis=0)
        self.nonzero += int(np.count_nonzero(nonzero))
        self.bounds = _joined(self.bounds, _bounds(nonzero, corner))
        counts, extremes = [], []
        for channel, count, (low, high) in zip(block, self.counts, self.extremes, strict=True):
            values = channel[channel != 0].astype(np.float32)
            counts.append(count + values.size)
            own = (float(values.min()), float(values.max())) if values.size else (math.inf, -math.inf)
            extremes.append((min(low, own[0]), max(high, own[1])))
        self.counts, self.extremes = tuple(counts), tuple(extremes)

    def merge(self, other: NonzeroMoments) -> NonzeroMoments:
        """Return the sketch of both sketches' pixels; neither is changed."""
        return replace(
            self,
            moments=self.moments.merge(other.moments),
            nonzero=self.nonzero + other.nonzero,
            bounds=_joined(self.bounds, other.bounds),
            counts=tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            extremes=tuple(
                (min(a, c), max(b, d)) for (a, b), (c, d) in zip(self.extremes, other.extremes, strict=True)
            ),
        )

    def conclude(self) -> Values:
        """Return the values of each channel in the order of `found`; all 0 for an image without non-zero pixels."""
        pixels = math.prod(last - first + 1 for first, last in self.bounds or ())
        if self.bounds is None:
            return ((0.0,) * len(self.found),) * len(self.counts)
        sums = zip(self.moments.total, self.moments.squares, self.counts, self.extremes, strict=True)
        values = []
        for total, squares, count, (low, high) in sums:
            if count < pixels:  # the box holds zeros of this channel
                low, high = min(low, 0.0), max(high, 0.0)
            inside, outside = mean_and_std(pixels, total, squares), mean_and_std(self.nonzero, total, squares)
            values.append((*inside, low, high, *outside))
        return tuple(values)


def _bounds(nonzero: NDArray[np.bool_], corner: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
    """Return the first and the last non-zero index on each of the image's axes (t, z, y, x); None if there is none."""
    if not nonzero.any():
        return None
    missing = len(corner) - nonzero.ndim
    ends = [(start, start) for start in corner[:missing]]
    for axis, start in enumerate(corner[missing:]):
        others = tuple(a for a in range(nonzero.ndim) if a != axis)
        indices = np.flatnonzero(nonzero.any(axis=others))
        ends.append((start + int(indices[0]), start + int(indices[-1])))
    return tuple(ends)


def _joined(
    one: tuple[tuple[int, int], ...] | None, other: tuple[tuple[int, int], ...] | None
) -> tuple[tuple[int, int], ...] | None:
    if one is None or other is None:
        return one or other
    return tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
