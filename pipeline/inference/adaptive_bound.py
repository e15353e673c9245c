"""Stopping rule of adaptive effort: which tiles are done before they got all augmentations.

With ``--effort adaptive`` each member first sees a tile without augmentation (one sample per member). A pixel is in
doubt if its label is within one standard error of another label. The share of such pixels bounds how many labels the
remaining samples could change: at most a factor times that share, where the factor was measured on reference images
processed with full effort (`EffortBound`). A tile of which few pixels could change is done. For the others, each
member sees one more augmentation, which shows how much a member disagrees with itself and not only with the other
members, and the tile is judged again. The tiles that are left get all augmentations, and so the same bits as with full
effort.

A tile is judged by its own samples alone, with operations that round alike everywhere: neither the partition into
regions, nor the order, nor the other tiles of the batch change the decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field, model_validator

from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.strict import Strict
from chorus.pipeline.errors import RefusedError

LOOKS = 2
"""How often a tile is judged at most: after each member's first sample, and after its second one."""
# Lower limit of the share of pixels in doubt; it keeps ratios finite.
_LEAST = 0.0005


class EffortBound(Strict):
    """Stopping rule of adaptive effort, and what it was measured on: `effort` of ``ensemble.yaml``.

    Attributes
    ----------
    changed : largest share of a tile's pixels whose label may change by the samples left out
    factors : for each look, upper bound of (share of labels that change) / (share of pixels in doubt)
    shift : largest change of a tile's U by the samples left out; U is 0 to 0.25
    risk : largest share of tiles that may exceed `factors` or `shift`
    confidence : of that statement, all looks together
    ensemble : hash of the ensemble that it was measured with
    tile, overlap, augmentations : settings that it was measured with; it holds for these alone
    images, tiles : number of each in the reference set
    stopped : number of its tiles that are done at each look
    reference : description of the images
    """

    changed: float = Field(default=0.01, gt=0, lt=1)
    factors: list[float] = Field(min_length=1, max_length=LOOKS)
    shift: float = Field(default=0.005, gt=0, lt=0.25)
    risk: float = Field(default=0.05, gt=0, lt=1)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    ensemble: str
    tile: int
    overlap: float
    augmentations: list[str] = Field(min_length=2)
    images: int = Field(ge=1)
    tiles: int = Field(ge=1)
    stopped: list[int]
    reference: str = ""

    @model_validator(mode="after")
    def _looks(self) -> EffortBound:
        """Check that there is one factor per look."""
        if len(self.factors) != looks_of(len(self.augmentations)):
            raise ValueError(f"factors: {len(self.augmentations)} augmentations have one for each look")
        return self

    @property
    def doubtful(self) -> list[float]:
        """Largest share of pixels in doubt with which a tile is done, per look; negative if no tile is done there."""
        return [_largest(factor, self.changed) for factor in self.factors]


def _largest(factor: float, changed: float) -> float:
    return changed / factor if factor * _LEAST <= changed else -1.0


def looks_of(augmentations: int) -> int:
    """Return how often tiles are judged, given the number of augmentations: something must be left to draw."""
    return min(LOOKS, augmentations - 1)


def doubtful_pixels(
    probability: torch.Tensor, variance: torch.Tensor, classes: int, *, multilabel: bool
) -> torch.Tensor:
    """Count the pixels in doubt of each tile.

    A pixel is in doubt where ``margin^2 < v``: margin is the difference of its two largest mean probabilities, and v
    the largest variance that this difference can have, 2 K times `variance`: var(p_a - p_b) <= 2 (var p_a + var p_b)
    <= 2 K var, exact for two classes. Multi-label: margin is the minimum of abs(2 p_k - 1) over the classes, and v is
    4 K times `variance`. Only sums, products, quotients and comparisons are used, each of which rounds alike at every
    position of a pixel.

    Parameters
    ----------
    probability : (batch, classes, y, x) float32, mean probabilities, 0 to 1
    variance : (batch, y, x) float32, squared standard error of the mean probabilities, averaged over the K classes
    classes : K
    multilabel : whether classes are independent of each other

    Returns
    -------
    torch.Tensor
        Number of pixels in doubt, (batch,) int64.
    """
    if multilabel:
        margin = (2 * probability[:, 0] - 1).abs()
        for k in range(1, classes):
            margin = torch.minimum(margin, (2 * probability[:, k] - 1).abs())
    else:
        best, second = probability[:, 0], torch.full_like(probability[:, 0], -1)
        for k in range(1, classes):
            second = torch.maximum(second, torch.minimum(best, probability[:, k]))
            best = torch.maximum(best, probability[:, k])
        margin = best - second
    return (margin * margin < (4 if multilabel else 2) * classes * variance).sum(dim=(1, 2))


def spread_within(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor], augmentations: int) -> torch.Tensor:
    """Estimate the squared error of the mean of two samples per member, compared with the mean of all samples.

    Per member the variance of its samples is half the square of the difference of two, and the mean of 2 of T differs
    from that of all T by a variance of ``s^2 (1/2 - 1/T)`` (drawing without replacement). The variance of the mean over
    M members is the mean of these divided by M. Disagreement between members is no part of it: all members answer in
    either case.

    Parameters
    ----------
    first, second : one tensor per member, (batch, classes, y, x) float32, probabilities of its two samples
    augmentations : T, samples per member with full effort

    Returns
    -------
    torch.Tensor
        (batch, y, x) float32, averaged over the classes.

    References
    ----------
    Cochran, Sampling Techniques, 3rd ed. (1977), Theorem 2.2.
    """
    total = torch.zeros_like(first[0][:, 0])
    for a, b in zip(first, second, strict=True):
        for k in range(a.shape[1]):
            difference = a[:, k] - b[:, k]
            total = total + difference * difference
    members, classes = len(first), first[0].shape[1]
    return total * ((0.5 - 1 / augmentations) / (2 * members * members * classes))


@dataclass(frozen=True, slots=True)
class TileEffort:
    """What full effort changes in a tile of the reference set, at each look.

    Attributes
    ----------
    doubtful : share of its pixels in doubt
    changed : share of its pixels whose label full effort changed
    shift : absolute change of its U by full effort; 0 if only one of the two results has a foreground, which `changed`
        shows
    empty : whether it has no foreground, neither at the first look nor with full effort
    """

    doubtful: tuple[float, ...]
    changed: tuple[float, ...]
    shift: tuple[float, ...]
    empty: bool = False


def find_factors(
    tiles: Sequence[TileEffort], changed: float, shift: float, risk: float, confidence: float
) -> list[float]:
    """Find the factor between pixels in doubt and labels that change, for each look.

    For each look the factor is an upper tolerance limit of (labels changed) / (pixels in doubt): with `confidence`, at
    most `risk` of all tiles exceed it, tiles taken as independent. Of the tiles that are then done, at most `risk` may
    have a U that moves by more than `shift` (upper bound of Clopper and Pearson). All of these statements hold together
    (Bonferroni).

    Parameters
    ----------
    tiles : measured on the reference set
    changed : largest share of a tile's labels that may change, 0 to 1
    shift : largest change of a tile's U, 0 to 0.25
    risk : largest share of tiles that may exceed either, 0 to 1
    confidence : of all statements together, 0 to 1

    Returns
    -------
    list of float
        One factor per look, at least 0.01.

    Raises
    ------
    RefusedError
        If there are too few tiles, no tile is done early, or U moves too often.

    References
    ----------
    Wilks, Annals of Mathematical Statistics 12:91 (1941): tolerance limits from order statistics; Clopper & Pearson,
    Biometrika 26:404 (1934).
    """
    from scipy.stats import beta, binom  # imported here, since it would slow down the start of the command line

    looks = len(tiles[0].doubtful) if tiles else LOOKS
    level = 1 - (1 - confidence) / (2 * looks)
    fewest = int(np.ceil(np.log(1 - level) / np.log(1 - risk)))
    if len(tiles) < fewest:
        raise RefusedError(
            f"{len(tiles)} tiles of reference images cannot show that at most {risk:.0%} are beyond a bound; give "
            f"images of {fewest} tiles at least"
        )
    counts = np.arange(len(tiles))
    beyond = int(np.flatnonzero(binom.cdf(counts, len(tiles), risk) <= 1 - level)[-1])
    factors = []
    for step in range(looks):
        doubts = np.array([max(tile.doubtful[step], _LEAST) for tile in tiles])
        ratios = np.sort(np.array([tile.changed[step] for tile in tiles]) / doubts)[::-1]
        # If nothing changes at all, assume that one label in a hundred pixels in doubt might.
        factors.append(max(float(ratios[beyond]), 0.01))
        done = doubts <= _largest(factors[-1], changed)
        moved = int(sum(tile.shift[step] > shift for tile, stops in zip(tiles, done, strict=True) if stops))
        count = int(done.sum())
        if count == moved or beta.ppf(level, moved + 1, count - moved) > risk:
            raise RefusedError(
                f"of {len(tiles)} tiles {count} could be done after {step + 1} samples a member, and U of {moved} of "
                f"these would move by more than --shift {shift:g}; allow a larger --changed, --shift or --risk, or "
                f"give more reference images"
            )
    return factors


def stopped_at(tiles: Sequence[TileEffort], factors: Sequence[float], changed: float) -> list[int]:
    """Count the tiles that are done at each look."""
    limits = [_largest(factor, changed) for factor in factors]
    counts = [0] * len(limits)
    for tile in tiles:
        first = next((step for step, most in enumerate(limits) if tile.doubtful[step] <= most), None)
        if first is not None:
            counts[first] += 1
    return counts


def difference(
    early: tuple[torch.Tensor, torch.Tensor], full: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float, float, bool]:
    """Compare a tile's early result with that of full effort.

    Parameters
    ----------
    early, full : predictive variance, (y, x) float32, and class masks, (y, x) int32, of
        `chorus.pipeline.core.class_labels.class_masks`

    Returns
    -------
    changed : share of pixels whose label differs, 0 to 1
    shift : absolute difference of U; 0 unless both have a foreground
    empty : whether neither has a foreground
    """
    device = device_of(early[0].device)
    u = [device.in_float64(variance[masks > 0]) for variance, masks in (early, full)]
    shift = float((u[0].mean() - u[1].mean()).abs()) if all(len(one) for one in u) else 0.0
    changed = float(device.in_float64(early[1] != full[1]).mean())
    return changed, shift, not any(len(one) for one in u)
