"""How an image looks: brightness, contrast, noise, sharpness, and how large what was found is.

These numbers say nothing of how right a segmentation is. They tell images of another microscope, stain or specimen from
those of a reference set, also where normalisation hides the difference from the members. They are of stored values, at
the level that was segmented, and exact: a region's sums are integers, and whatever looks at a pixel's neighbours stays
within a patch of the grid that begins at the plane's origin, so that no cut is felt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.core.posterior import mask_of
from chorus.pipeline.preprocessing.sketches import Moments

PIXEL_FIELDS = ("intensity_mean", "intensity_std", "background", "contrast", "noise", "sharpness")
"""Columns of ``scores.parquet`` per input channel of the ensemble, each followed by a colon and the channel."""
RADIUS = "object_radius"
"""Column per foreground class, followed by a colon and the class."""


class Sums(BaseModel):
    """`chorus.pipeline.preprocessing.sketches.Moments` as a record: pixels; sums of values and squares per channel."""

    model_config = ConfigDict(frozen=True)

    pixels: int
    total: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def of(cls, fields: Sequence[NDArray[Any]]) -> Self:
        """Of one array of values per channel, all of the same size."""
        sums = Moments.begin(len(fields))
        sums.update(np.stack([field.reshape(-1, 1) for field in fields]))
        return cls(pixels=sums.pixels, total=sums.total, squares=sums.squares)

    def __add__(self, other: Sums) -> Sums:
        sums = self.moments().merge(other.moments())
        return Sums(pixels=sums.pixels, total=sums.total, squares=sums.squares)

    def moments(self) -> Moments:
        return Moments(self.pixels, self.total, self.squares)

    def mean_and_std(self, channel: int) -> tuple[float, float]:
        """Of a channel; not numbers where there are no pixels."""
        if not self.pixels:
            return math.nan, math.nan
        mean, std = self.moments().conclude()[channel]
        return mean, std


class Appearance(BaseModel):
    """What a region adds to its image's appearance. All fields are exact integers.

    Attributes
    ----------
    pixels : of all pixels, per channel
    background : of those that no class was given
    noise, laplacian : of the absolute answers to Immerkær's mask and of the Laplacian, where the 3 x 3 pixels around
        are in one patch
    class_pixels : per foreground class, its pixels
    edges : per foreground class, pairs of neighbours in a patch of which one is of the class
    pairs : of neighbours in a patch
    """

    model_config = ConfigDict(frozen=True)

    pixels: Sums
    background: Sums
    noise: Sums
    laplacian: Sums
    class_pixels: tuple[int, ...]
    edges: tuple[int, ...]
    pairs: int

    def __add__(self, other: Appearance) -> Appearance:
        return Appearance(
            pixels=self.pixels + other.pixels,
            background=self.background + other.background,
            noise=self.noise + other.noise,
            laplacian=self.laplacian + other.laplacian,
            class_pixels=tuple(a + b for a, b in zip(self.class_pixels, other.class_pixels, strict=True)),
            edges=tuple(a + b for a, b in zip(self.edges, other.edges, strict=True)),
            pairs=self.pairs + other.pairs,
        )


def appearance(
    pixels: NDArray[Any], masks: NDArray[np.unsignedinteger], classes: int, *, multilabel: bool, patch: int
) -> Appearance:
    """The sums of one region.

    Parameters
    ----------
    pixels : (channels, y, x) stored values
    masks : (y, x) of `Posterior.masks`
    classes : counts the background
    patch : edge of a patch in pixels, at least 3; the region begins at a multiple of it on both axes
    """
    outside = masks == 0
    # Sums of what is no larger than 16-bit values are quick; float32 holds all others as normalisation sees them.
    whole = pixels.dtype.kind in "biu" and pixels.dtype.itemsize <= 2
    values = pixels.astype(np.int32 if whole else np.float32)
    answers = [_filtered(channel, patch) for channel in values]
    found = [mask_of(masks, k, multilabel=multilabel) for k in range(1, classes)]
    return Appearance(
        pixels=Sums.of(list(values)),
        background=Sums.of([channel[outside] for channel in values]),
        noise=Sums.of([noise for noise, _ in answers]),
        laplacian=Sums.of([laplacian for _, laplacian in answers]),
        class_pixels=tuple(int(np.count_nonzero(mask)) for mask in found),
        edges=tuple(_edges(mask, patch) for mask in found),
        pairs=sum(int(together.sum()) * across for together, across in _neighbours(values.shape[1:], patch)),
    )


def _filtered(channel: NDArray[Any], patch: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Absolute answers to Immerkær's mask, and the Laplacian, of the pixels whose 3 x 3 around are in one patch."""
    rows, columns = (
        np.flatnonzero(np.isin(np.arange(1, n - 1) % patch, (0, patch - 1), invert=True)) for n in channel.shape
    )

    def inner(values: NDArray[Any]) -> NDArray[Any]:
        return values.take(rows, axis=0).take(columns, axis=1)

    if channel.dtype.kind == "f":
        channel = channel.astype(np.float64)
    down, right = np.diff(channel, n=2, axis=0), np.diff(channel, n=2, axis=1)
    # The mask is the outer product of (1, -2, 1) with itself: blind to edges, not to noise.
    answers = np.abs(inner(np.diff(down, n=2, axis=1))), inner(down[:, 1:-1] + right[1:-1])
    if channel.dtype.kind == "f":
        limit = np.finfo(np.float32).max
        return np.clip(answers[0], 0, limit).astype(np.float32), np.clip(answers[1], -limit, limit).astype(np.float32)
    return answers


def _neighbours(shape: tuple[int, ...], patch: int) -> list[tuple[NDArray[np.bool_], int]]:
    """Per axis which neighbours along it are in one patch, and how many lines of pixels there are across."""
    return [(np.arange(1, n) % patch > 0, across) for n, across in (shape, shape[::-1])]


def _edges(mask: NDArray[np.bool_], patch: int) -> int:
    (down, _), (right, _) = _neighbours(mask.shape, patch)
    vertical = (mask[1:] != mask[:-1])[down]
    horizontal = (mask[:, 1:] != mask[:, :-1])[:, right]
    return int(np.count_nonzero(vertical)) + int(np.count_nonzero(horizontal))


def column_names(channels: Sequence[str], classes: Sequence[str]) -> list[str]:
    """All that `appearance_columns` may give, in order."""
    return [f"{field}:{name}" for name in channels for field in PIXEL_FIELDS] + [f"{RADIUS}:{name}" for name in classes]


def appearance_columns(sums: Sequence[Appearance], channels: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    """Columns of ``scores.parquet`` from the sums of all regions of an image, in any order.

    Parameters
    ----------
    channels : names of the ensemble's input channels
    classes : names of its foreground classes

    Returns
    -------
    By column, without those that are not defined. In stored values: ``intensity_mean``, ``intensity_std``,
    ``background`` (mean outside of what was found) and ``noise`` (standard deviation, Immerkær). Without unit:
    ``contrast`` (mean of what was found less the background, by ``intensity_std``) and ``sharpness`` (standard
    deviation of the Laplacian by ``intensity_std``). In pixels: ``object_radius``, of discs with the same mean chord as
    what was found; larger where objects touch.

    References
    ----------
    Noise: Immerkær, Computer Vision and Image Understanding 64:300 (1996), Eq. 3. Sharpness: Pech-Pacheco et al., ICPR
    2000 (LAPV). Mean chord: Cauchy; Underwood, Quantitative Stereology (1970): 2 area / crossings, and pi r / 2 for
    discs.
    """
    total = sums[0]
    for more in sums[1:]:
        total = total + more
    found: dict[str, float] = {}
    for index, name in enumerate(channels):
        mean, std = total.pixels.mean_and_std(index)
        outside, inside = total.background.mean_and_std(index)[0], _mean_inside(total, index)
        values = (
            mean,
            std,
            outside,
            (inside - outside) / std if std > 0 else math.nan,
            math.sqrt(math.pi / 2) / 6 * total.noise.mean_and_std(index)[0],
            total.laplacian.mean_and_std(index)[1] / std if std > 0 else math.nan,
        )
        found |= {f"{field}:{name}": value for field, value in zip(PIXEL_FIELDS, values, strict=True)}
    for name, pixels, edges in zip(classes, total.class_pixels, total.edges, strict=True):
        # Each line of pixels crosses edges along one axis; both axes see all pixels, so chords are 2 * 2 area / edges.
        seen = 2 * total.pixels.pixels
        chord = 4 * pixels * total.pairs / (seen * edges) if edges else math.nan
        found[f"{RADIUS}:{name}"] = 2 * chord / math.pi
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _mean_inside(total: Appearance, channel: int) -> float:
    """Mean of what was found: of all pixels less those outside."""
    count = total.pixels.pixels - total.background.pixels
    sums = Moments(
        count,
        (total.pixels.total[channel] - total.background.total[channel],),
        (total.pixels.squares[channel] - total.background.squares[channel],),
    )
    return sums.conclude()[0][0] if count else math.nan
