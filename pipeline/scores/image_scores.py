"""Sums of a region, and the scores of an image that follow from them: additive, and exact in any order.

Maps are summed in fixed point (integers in units of 2^-32), so that neither the partition into regions nor their order
changes a bit of an image's scores.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from chorus.pipeline.core.fields import AFFINITY_VARIANCE, BOUNDARY_EPISTEMIC, RAY_VARIATION
from chorus.pipeline.core.posterior import Posterior, mask_of
from chorus.pipeline.scores.registry import score_columns

FIXED_POINT = 2**32
# Pixels of the members that are compared at once: bounds the memory of their masks.
_COUNT_BLOCK = 1 << 22
# Pixels that are summed at once: bounds the memory of float64 copies.
_BAND = 1 << 20
_PATCH = 16
DISAGREEMENTS = (RAY_VARIATION, BOUNDARY_EPISTEMIC, AFFINITY_VARIANCE)
"""Maps of which the mean over the foreground is a score, where the members have them."""


def patch_edge(chunk: int) -> int:
    """Return the edge in pixels of the patches of ``patch_uncertainty_max``: a divisor of the chunk.

    It is the smallest divisor from 16 on, so 16 for every chunk that is a multiple of 16. Regions consist of whole
    chunks, so that a patch of the grid that begins at the plane's origin never lies in two of them.

    Parameters
    ----------
    chunk : edge of a chunk of the output in pixels, at least 16
    """
    return next(edge for edge in range(_PATCH, chunk + 1) if chunk % edge == 0)


class RegionSums(BaseModel):
    """A region's contribution to its image's scores. All fields are exact integers.

    Attributes
    ----------
    pixels : of the region
    foreground : pixels with any foreground class
    class_pixels : per foreground class, pixels of the prediction
    uncertainty, epistemic, aleatoric, entropy : sums over the foreground in units of 2^-32
    patch : of the patch with the largest mean uncertainty, its sum in units of 2^-32 and its number of pixels; (0, 0)
        if no patch is large enough
    overlaps : per foreground class, (members, members): pixels that both members assign to the class; the diagonal is
        each member's own size
    flow_variance : sum over the foreground in units of 2^-32; None without flows, and in records of earlier versions
    disagreements : the same of further maps of disagreement (`DISAGREEMENTS`), by field; those that the members have
    """

    model_config = ConfigDict(frozen=True)

    pixels: int
    foreground: int
    class_pixels: list[int]
    uncertainty: int
    epistemic: int
    aleatoric: int
    entropy: int
    patch: tuple[int, int]
    overlaps: list[list[list[int]]]
    flow_variance: int | None = None
    disagreements: dict[str, int] = Field(default_factory=dict, exclude_if=lambda sums: not sums)

    def __add__(self, other: RegionSums) -> RegionSums:
        overlaps = np.asarray(self.overlaps, dtype=object) + np.asarray(other.overlaps, dtype=object)
        return RegionSums(
            pixels=self.pixels + other.pixels,
            foreground=self.foreground + other.foreground,
            class_pixels=[a + b for a, b in zip(self.class_pixels, other.class_pixels, strict=True)],
            uncertainty=self.uncertainty + other.uncertainty,
            epistemic=self.epistemic + other.epistemic,
            aleatoric=self.aleatoric + other.aleatoric,
            entropy=self.entropy + other.entropy,
            patch=_larger(self.patch, other.patch),
            overlaps=overlaps.tolist(),
            flow_variance=(
                None
                if self.flow_variance is None or other.flow_variance is None
                else self.flow_variance + other.flow_variance
            ),
            disagreements={
                name: value + other.disagreements[name]
                for name, value in self.disagreements.items()
                if name in other.disagreements
            },
        )


@dataclass(frozen=True)
class RegionTotal:
    """The sums of a whole image, and quantities that several of its scores share."""

    sums: RegionSums

    def mean(self, value: int) -> float | None:
        """Return the mean over the foreground of a sum in units of 2^-32; None without foreground."""
        return value / (FIXED_POINT * self.sums.foreground) if self.sums.foreground else None

    def disagreement(self, field: str) -> float | None:
        """Return the mean over the foreground of a map of `DISAGREEMENTS`; None if the members have none."""
        value = self.sums.disagreements.get(field)
        return None if value is None else self.mean(value)

    @property
    def patch_maximum(self) -> float | None:
        """The largest mean uncertainty of a patch; None without foreground, or if no patch is large enough."""
        patch, pixels = self.sums.patch
        return patch / (FIXED_POINT * pixels) if self.sums.foreground and pixels else None

    @cached_property
    def dices(self) -> list[list[float]]:
        """Per foreground class the Dice of each pair of members; empty with a single member."""
        return [_pairwise_dices(overlap) for overlap in self.sums.overlaps]

    @cached_property
    def class_dices(self) -> list[float | None]:
        """Per foreground class the mean over pairs; None with a single member."""
        return [sum(pairs) / len(pairs) if pairs else None for pairs in self.dices]

    @property
    def mean_dice(self) -> float | None:
        """Mean of `class_dices`."""
        known = [dice for dice in self.class_dices if dice is not None]
        return sum(known) / len(known) if known else None


def region_sums(posterior: Posterior, classes: int, *, multilabel: bool, patch: int) -> RegionSums:
    """Return the sums of one region.

    Parameters
    ----------
    posterior : of the region
    classes : number of classes, including the background
    multilabel : whether masks have a bit per class
    patch : edge of a patch in pixels (`patch_edge`); the region begins at a multiple of it on both axes
    """
    foreground = posterior.masks != 0
    uncertainty = posterior.uncertainty
    return RegionSums(
        pixels=foreground.size,
        foreground=int(np.count_nonzero(foreground)),
        class_pixels=[
            int(np.count_nonzero(mask_of(posterior.masks, k, multilabel=multilabel))) for k in range(1, classes)
        ],
        uncertainty=_fixed_sum(uncertainty, foreground),
        epistemic=_fixed_sum(posterior.epistemic, foreground),
        aleatoric=_fixed_sum(posterior.aleatoric, foreground),
        entropy=_entropy_sum(posterior.probability, foreground, multilabel=multilabel),
        patch=_patch_maximum(uncertainty, patch),
        overlaps=[_overlaps(posterior.member_masks, k, multilabel=multilabel) for k in range(1, classes)],
        flow_variance=_fixed_sum(posterior.flow_variance[0], foreground) if len(posterior.flow_variance) else None,
        disagreements={
            field.name: _fixed_sum(posterior.maps(field)[0], foreground)
            for field in DISAGREEMENTS
            if field.name in posterior.fields
        },
    )


def image_scores(sums: Sequence[RegionSums], classes: Sequence[str]) -> dict[str, float | None]:
    """Return the scores of an image from the sums of all its regions, in any order.

    Parameters
    ----------
    sums : of each region
    classes : names of the foreground classes

    Returns
    -------
    dict
        By column of ``scores.parquet``, the scores of `chorus.pipeline.scores.region_scores`; None if undefined.
    """
    total = RegionTotal(functools.reduce(operator.add, sums))
    return {
        column.key: column.score.from_regions(total, classes.index(column.part) if column.part else 0)
        for column in score_columns(classes, ())
        if column.score.from_regions is not None
    }


def _fixed(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Convert to units of 2^-32."""
    return np.rint(values.astype(np.float64) * FIXED_POINT).astype(np.int64)


def _fixed_sum(values: NDArray[np.float32], where: NDArray[np.bool_]) -> int:
    return int(_fixed(values[where]).sum())


def _bands(shape: tuple[int, int], step: int = 1) -> Iterator[slice]:
    """Yield rows of a plane, a few at a time; each band but the last is a multiple of `step` rows."""
    rows = step * max(1, _BAND // (step * shape[1]))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def _entropy_sum(probability: NDArray[np.float32], where: NDArray[np.bool_], *, multilabel: bool) -> int:
    """Sum -sum_k p_k ln p_k / ln K over pixels; multi-label: the mean over classes of the entropy in bits."""
    from scipy.special import entr  # imported here, since it would slow down the start of the command line

    classes, total = len(probability), 0
    for rows in _bands(where.shape):
        inside = where[rows]
        entropy = np.zeros(np.count_nonzero(inside))
        # Class by class, since the order in which NumPy sums over an axis depends on the array's shape.
        for one in probability[:, rows]:
            # Weighted means may leave 0 to 1 by a rounding error.
            p = np.clip(one[inside].astype(np.float64), 0, 1)
            entropy += entr(p) + entr(1 - p) if multilabel else entr(p)
        total += int(_fixed(entropy / (classes * math.log(2) if multilabel else math.log(classes))).sum())
    return total


def _patch_maximum(uncertainty: NDArray[np.float32], edge: int) -> tuple[int, int]:
    """Return sum and number of pixels of the patch with the largest mean.

    Patches at the plane's edge count with the pixels that they have, if these are at least a quarter of a whole patch.
    """
    height, width = uncertainty.shape
    largest = [(0, 0)]
    for rows in _bands((height, width), edge):
        down, right = np.arange(0, rows.stop - rows.start, edge), np.arange(0, width, edge)
        sums = np.add.reduceat(np.add.reduceat(_fixed(uncertainty[rows]), right, axis=1), down, axis=0)
        pixels = np.outer(np.diff(down, append=rows.stop - rows.start), np.diff(right, append=width))
        largest += [(int(sums[pixels == n].max()), int(n)) for n in np.unique(pixels) if 4 * n >= edge**2]
    return functools.reduce(_larger, largest)


def _larger(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """Return, of two (sum, pixels), the one with the larger mean, with more pixels if these are equal."""
    return max(a, b, key=lambda patch: (Fraction(patch[0], patch[1] or 1), patch[1]))


def _overlaps(masks: NDArray[np.unsignedinteger], label: int, *, multilabel: bool) -> list[list[int]]:
    members = masks.shape[0]
    flat = masks.reshape(members, -1)
    counts = np.zeros((members, members), np.int64)
    for start in range(0, flat.shape[1], _COUNT_BLOCK):
        inside = mask_of(flat[:, start : start + _COUNT_BLOCK], label, multilabel=multilabel)
        bits = np.packbits(inside, axis=1)
        padded = np.zeros((members, bits.shape[1] + -bits.shape[1] % 8), np.uint8)
        padded[:, : bits.shape[1]] = bits
        words = padded.view(np.uint64)
        for a, b in itertools.combinations_with_replacement(range(members), 2):
            counts[a, b] += np.bitwise_count(words[a] & words[b]).sum(dtype=np.int64)
    counts = np.triu(counts) + np.triu(counts, 1).T
    return [[int(count) for count in row] for row in counts]


def _pairwise_dices(overlap: Sequence[Sequence[int]]) -> list[float]:
    """Return the Dice of each pair of members; 1 if both are empty."""
    dices = []
    for a, b in itertools.combinations(range(len(overlap)), 2):
        size = overlap[a][a] + overlap[b][b]
        dices.append(2 * overlap[a][b] / size if size else 1.0)
    return dices
