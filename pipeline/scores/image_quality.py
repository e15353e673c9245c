"""The appearance of an image: brightness, contrast, noise, sharpness, and the size of the predicted objects.

These numbers do not measure whether a segmentation is correct. They separate images of another microscope, stain or
specimen from those of a reference set, also if normalisation hides the difference from the members. They are computed
on stored values, at the level that was segmented, and are exact: a region's sums are integers, and whatever depends on
a pixel's neighbours stays within a patch of the grid that begins at the plane's origin, so that the partition into
regions has no effect.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.core.posterior import mask_of
from chorus.pipeline.preprocessing.sketches import Moments
from chorus.pipeline.scores.registry import score_columns
from chorus.pipeline.scores.sums import Sums
from chorus.pipeline.scores.texture import SCALES, Detail, added, details, texture_sums


class Appearance(BaseModel):
    """A region's contribution to its image's appearance. All fields are exact integers.

    Attributes
    ----------
    pixels : of all pixels, per channel
    background : of the pixels without a foreground class
    noise, laplacian : of the absolute response to Immerkær's mask and of the Laplacian, for pixels whose 3 x 3
        neighbourhood is in one patch
    class_pixels : per foreground class, number of its pixels
    edges : per foreground class, pairs of neighbours in a patch of which exactly one is of the class
    pairs : number of pairs of neighbours in a patch
    texture : see `chorus.pipeline.scores.texture.texture_sums`; None in records of earlier versions
    """

    model_config = ConfigDict(frozen=True)

    pixels: Sums
    background: Sums
    noise: Sums
    laplacian: Sums
    class_pixels: tuple[int, ...]
    edges: tuple[int, ...]
    pairs: int
    texture: tuple[Sums, ...] | None = None

    def __add__(self, other: Appearance) -> Appearance:
        return Appearance(
            pixels=self.pixels + other.pixels,
            background=self.background + other.background,
            noise=self.noise + other.noise,
            laplacian=self.laplacian + other.laplacian,
            class_pixels=tuple(a + b for a, b in zip(self.class_pixels, other.class_pixels, strict=True)),
            edges=tuple(a + b for a, b in zip(self.edges, other.edges, strict=True)),
            pairs=self.pairs + other.pairs,
            texture=None if self.texture is None or other.texture is None else added(self.texture, other.texture),
        )


def appearance(
    pixels: NDArray[Any], masks: NDArray[np.unsignedinteger], classes: int, *, multilabel: bool, patch: int
) -> Appearance:
    """Return the sums of one region.

    Parameters
    ----------
    pixels : (channels, y, x) of any real dtype, stored values
    masks : (y, x) unsigned, as `Posterior.masks`
    classes : number of classes, including the background
    multilabel : whether `masks` has a bit per class
    patch : edge of a patch in pixels, at least 3; the region begins at a multiple of it on both axes
    """
    outside = masks == 0
    # Sums of integers of up to 16 bits are fast; all other dtypes become float32, as in normalisation.
    whole = pixels.dtype.kind in "biu" and pixels.dtype.itemsize <= 2
    values = pixels.astype(np.int32 if whole else np.float32)
    answers = [_filtered(channel, patch) for channel in values]
    class_masks = [mask_of(masks, k, multilabel=multilabel) for k in range(1, classes)]
    return Appearance(
        pixels=Sums.of(list(values)),
        background=Sums.of([channel[outside] for channel in values]),
        noise=Sums.of([noise for noise, _ in answers]),
        laplacian=Sums.of([laplacian for _, laplacian in answers]),
        class_pixels=tuple(int(np.count_nonzero(mask)) for mask in class_masks),
        edges=tuple(_edges(mask, patch) for mask in class_masks),
        pairs=sum(int(together.sum()) * across for together, across in _neighbours(values.shape[1:], patch)),
        texture=texture_sums(values, patch),
    )


def _filtered(channel: NDArray[Any], patch: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the absolute response to Immerkær's mask, and the Laplacian.

    Only pixels whose 3 x 3 neighbourhood is in one patch are included.
    """
    rows, columns = (
        np.flatnonzero(np.isin(np.arange(1, n - 1) % patch, (0, patch - 1), invert=True)) for n in channel.shape
    )

    def inner(values: NDArray[Any]) -> NDArray[Any]:
        return values.take(rows, axis=0).take(columns, axis=1)

    if channel.dtype.kind == "f":
        channel = channel.astype(np.float64)
    down, right = np.diff(channel, n=2, axis=0), np.diff(channel, n=2, axis=1)
    # The mask is the outer product of (1, -2, 1) with itself: it responds to noise, but not to edges.
    answers = np.abs(inner(np.diff(down, n=2, axis=1))), inner(down[:, 1:-1] + right[1:-1])
    if channel.dtype.kind == "f":
        limit = np.finfo(np.float32).max
        return np.clip(answers[0], 0, limit).astype(np.float32), np.clip(answers[1], -limit, limit).astype(np.float32)
    return answers


def _neighbours(shape: tuple[int, ...], patch: int) -> list[tuple[NDArray[np.bool_], int]]:
    """Return, per axis, which neighbours along it are in one patch, and the number of lines of pixels across."""
    return [(np.arange(1, n) % patch > 0, across) for n, across in (shape, shape[::-1])]


def _edges(mask: NDArray[np.bool_], patch: int) -> int:
    (down, _), (right, _) = _neighbours(mask.shape, patch)
    vertical = (mask[1:] != mask[:-1])[down]
    horizontal = (mask[:, 1:] != mask[:, :-1])[:, right]
    return int(np.count_nonzero(vertical)) + int(np.count_nonzero(horizontal))


@dataclass(frozen=True)
class AppearanceTotal:
    """The sums of a whole image as means and standard deviations, (mean, std) of each channel; NaN without pixels."""

    sums: Appearance

    @cached_property
    def pixels(self) -> list[tuple[float, float]]:
        """Of all pixels."""
        return self.sums.pixels.means_and_stds()

    @cached_property
    def background(self) -> list[tuple[float, float]]:
        """Of the pixels outside of the foreground."""
        return self.sums.background.means_and_stds()

    @cached_property
    def noise(self) -> list[tuple[float, float]]:
        """Of the absolute response to Immerkær's mask."""
        return self.sums.noise.means_and_stds()

    @cached_property
    def laplacian(self) -> list[tuple[float, float]]:
        """Of the Laplacian."""
        return self.sums.laplacian.means_and_stds()

    def detail(self, scale: int, channel: int) -> Detail | None:
        """Return the details of a channel at one of `SCALES`; None if its pixels, or the details, are not known."""
        known = None if self.sums.texture is None else self.sums.texture[SCALES.index(scale)]
        return details(known, channel) if known is not None and known.pixels else None

    def by_std(self, value: float, channel: int) -> float:
        """Divide by the standard deviation of a channel's pixels; NaN if that is zero."""
        std = self.pixels[channel][1]
        return value / std if std > 0 else math.nan

    def foreground_mean(self, channel: int) -> float:
        """Return the mean of a channel's pixels in the foreground: from the sums of all pixels less those outside."""
        every, outside = self.sums.pixels, self.sums.background
        count = every.pixels - outside.pixels
        total = (every.total[channel] - outside.total[channel],)
        squares = (every.squares[channel] - outside.squares[channel],)
        return Moments(count, total, squares).conclude()[0][0] if count else math.nan

    def disc_radius(self, index: int) -> float:
        """Return the radius in pixels of discs with the mean chord of a foreground class."""
        edges = self.sums.edges[index]
        # Each line of pixels crosses edges along one axis; both axes see all pixels, so chords are 2 * 2 area / edges.
        seen = 2 * self.sums.pixels.pixels
        chord = 4 * self.sums.class_pixels[index] * self.sums.pairs / (seen * edges) if edges else math.nan
        return 2 * chord / math.pi


def appearance_columns(sums: Sequence[Appearance], channels: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    """Return columns of ``scores.parquet`` from the sums of all regions of an image, in any order.

    Parameters
    ----------
    sums : of each region
    channels : names of the ensemble's input channels
    classes : names of its foreground classes

    Returns
    -------
    dict
        By column, the scores of `chorus.pipeline.scores.appearance_scores`, without those that are undefined.
    """
    total = AppearanceTotal(functools.reduce(operator.add, sums))
    columns: dict[str, float] = {}
    for column in score_columns(classes, channels):
        if column.score.from_appearance is not None:
            names = channels if column.score.per == "channel" else classes
            value = column.score.from_appearance(total, names.index(column.part))
            if value is not None and math.isfinite(value):
                columns[column.key] = value
    return columns
