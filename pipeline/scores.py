"""Sums that a region carries and the scores that an image gets from them: additive, and exact in any order.

Maps are summed in fixed point (integers in units of 2^-32), so that neither the cut into regions nor the order in
which they come changes a bit of an image's scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.posterior import Posterior, mask_of

FIXED_POINT = 2**32
# Products of 0/1 rows are counted in float32, exact up to 2^24.
_COUNT_BLOCK = 1 << 22


class RegionSums(BaseModel):
    """What a region adds to its image's scores. All fields are exact integers.

    Attributes
    ----------
    pixels : of the region
    foreground : pixels with any foreground class
    class_pixels : per foreground class, pixels of the prediction
    uncertainty, epistemic, aleatoric : sums over the foreground in units of 2^-32
    overlaps : per foreground class, (members, members): pixels that both members give to the class; the diagonal is
        each member's own size
    """

    model_config = ConfigDict(frozen=True)

    pixels: int
    foreground: int
    class_pixels: list[int]
    uncertainty: int
    epistemic: int
    aleatoric: int
    overlaps: list[list[list[int]]]

    def __add__(self, other: RegionSums) -> RegionSums:
        overlaps = np.asarray(self.overlaps, dtype=object) + np.asarray(other.overlaps, dtype=object)
        return RegionSums(
            pixels=self.pixels + other.pixels,
            foreground=self.foreground + other.foreground,
            class_pixels=[a + b for a, b in zip(self.class_pixels, other.class_pixels, strict=True)],
            uncertainty=self.uncertainty + other.uncertainty,
            epistemic=self.epistemic + other.epistemic,
            aleatoric=self.aleatoric + other.aleatoric,
            overlaps=overlaps.tolist(),
        )


class ImageScores(BaseModel):
    """Scores of an image; variances are None where nothing was predicted as foreground.

    Attributes
    ----------
    uncertainty : U, mean predictive variance over predicted foreground, 0 to 0.25
    epistemic, aleatoric : its two parts
    pairwise_dice : mean over member pairs and foreground classes, 0 to 1; None with a single member
    pairwise_dice_per_class, foreground_fraction : per foreground class
    """

    model_config = ConfigDict(frozen=True)

    uncertainty: float | None
    epistemic: float | None
    aleatoric: float | None
    pairwise_dice: float | None
    pairwise_dice_per_class: list[float | None]
    foreground_fraction: list[float]


def region_sums(posterior: Posterior, classes: int, *, multilabel: bool) -> RegionSums:
    """The sums of one region; `classes` counts the background."""
    foreground = posterior.masks != 0
    return RegionSums(
        pixels=foreground.size,
        foreground=int(np.count_nonzero(foreground)),
        class_pixels=[
            int(np.count_nonzero(mask_of(posterior.masks, k, multilabel=multilabel))) for k in range(1, classes)
        ],
        uncertainty=_fixed_sum(posterior.uncertainty, foreground),
        epistemic=_fixed_sum(posterior.epistemic, foreground),
        aleatoric=_fixed_sum(posterior.aleatoric, foreground),
        overlaps=[_overlaps(posterior.member_masks, k, multilabel=multilabel) for k in range(1, classes)],
    )


def image_scores(sums: Sequence[RegionSums]) -> ImageScores:
    """Scores of an image from the sums of all its regions, in any order.

    References
    ----------
    U: Griebel et al., deepflash2, Nature Communications 14:1679 (2023), Eq. 5. Pairwise Dice: Zenk et al., Medical
    Image Analysis 101:103392 (2025).
    """
    total = sums[0]
    for more in sums[1:]:
        total = total + more
    scale = FIXED_POINT * total.foreground

    def mean(value: int) -> float | None:
        return value / scale if total.foreground else None

    per_class = [_pairwise_dice(overlap) for overlap in total.overlaps]
    known = [dice for dice in per_class if dice is not None]
    return ImageScores(
        uncertainty=mean(total.uncertainty),
        epistemic=mean(total.epistemic),
        aleatoric=mean(total.aleatoric),
        pairwise_dice=sum(known) / len(known) if known else None,
        pairwise_dice_per_class=per_class,
        foreground_fraction=[count / total.pixels for count in total.class_pixels],
    )


def _fixed_sum(values: NDArray[np.float32], where: NDArray[np.bool_]) -> int:
    fixed = np.rint(values[where].astype(np.float64) * FIXED_POINT).astype(np.int64)
    return int(fixed.sum())


def _overlaps(masks: NDArray[np.unsignedinteger], label: int, *, multilabel: bool) -> list[list[int]]:
    members = masks.shape[0]
    flat = masks.reshape(members, -1)
    counts = np.zeros((members, members), np.int64)
    for start in range(0, flat.shape[1], _COUNT_BLOCK):
        rows = mask_of(flat[:, start : start + _COUNT_BLOCK], label, multilabel=multilabel).astype(np.float32)
        counts += (rows @ rows.T).astype(np.int64)
    return [[int(count) for count in row] for row in counts]


def _pairwise_dice(overlap: Sequence[Sequence[int]]) -> float | None:
    """Mean Dice over pairs of members; two that both find nothing agree."""
    dices = []
    for a, b in itertools.combinations(range(len(overlap)), 2):
        size = overlap[a][a] + overlap[b][b]
        dices.append(2 * overlap[a][b] / size if size else 1.0)
    return sum(dices) / len(dices) if dices else None
