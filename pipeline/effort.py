"""Fewer samples where more would change nothing: which tiles are done once every member saw them as they are.

With ``--effort adaptive`` each member first sees a tile as it is (the first round: M samples). A pixel is in doubt
where what the members say of it is within one standard error of another label. A tile with few such pixels is done; the
others get all augmentations, which gives what full effort gives, bit by bit. How many are few was measured on
reference images that got full effort, and is kept with the ensemble (`EffortBound`).

What a tile is judged by are its own samples alone, by operations that round alike everywhere: neither the cut into
regions, nor the order, nor the tile's companions change the decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field

from pipeline.about import Strict
from pipeline.errors import RefusedError

# That are tried as a bound.
_THRESHOLDS = 10


class EffortBound(Strict):
    """Which tiles are done after the first round, and what that was measured on: `effort` of ``ensemble.yaml``.

    Attributes
    ----------
    doubtful : largest share of a tile's pixels in doubt with which it is done
    changed : largest share of a tile's pixels whose label may change by what was left out
    shift : largest change of U of a tile by it; U is 0 to 0.25
    risk : largest share of such tiles for which one of the two may be more
    confidence : with which that was found
    ensemble : hash of the ensemble that it was measured with
    tile, overlap, augmentations : it was measured with; it holds for these alone
    images, tiles, stopped : of the reference set, and how many of its tiles are done after the first round
    reference : what the images are
    """

    doubtful: float = Field(ge=0, le=1)
    changed: float = Field(default=0.005, gt=0, lt=1)
    shift: float = Field(default=0.005, gt=0, lt=0.25)
    risk: float = Field(default=0.05, gt=0, lt=1)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    ensemble: str
    tile: int
    overlap: float
    augmentations: list[str] = Field(min_length=2)
    images: int = Field(ge=1)
    tiles: int = Field(ge=1)
    stopped: int = Field(ge=0)
    reference: str = ""


def doubtful_pixels(maps: torch.Tensor, classes: int, samples: int, *, multilabel: bool) -> torch.Tensor:
    """How many pixels of each tile are in doubt, (batch,) int64.

    A pixel is in doubt where ``margin^2 * samples < variance``: margin is the difference of its two largest mean
    probabilities, and variance the largest that this difference can have with the given epistemic variance e (mean over
    K classes of the variance of p_k): var(p_a - p_b) <= 2 (var p_a + var p_b) <= 2 K e, which is exact for two classes.
    Multi-label: the least \\|2 p_k - 1\\| of any class, with 4 K e. So the label would be another one standard error of
    the mean away. Only sums, products and comparisons are used, each of which rounds alike wherever a pixel stands.

    Parameters
    ----------
    maps : (batch, classes + 2 or more, y, x) float32 of `pipeline.posterior.SampleSums.maps`
    samples : that the means are of
    """
    probability, epistemic = maps[:, :classes], maps[:, classes]
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
    variance = (4 if multilabel else 2) * classes * epistemic
    return (margin * margin * samples < variance).sum(dim=(1, 2))


def most_doubtful(bound: EffortBound, tile: int) -> int:
    """The largest number of pixels in doubt with which a tile is done."""
    return int(bound.doubtful * tile * tile)


@dataclass(frozen=True, slots=True)
class TileEffort:
    """What a tile of the reference set came to.

    Attributes
    ----------
    doubtful : share of its pixels in doubt after the first round
    changed : share of its pixels whose label full effort changed
    shift : how far full effort moved its U; 0 where only one of both has a foreground, which `changed` tells
    """

    doubtful: float
    changed: float
    shift: float


def find_bound(tiles: Sequence[TileEffort], changed: float, shift: float, risk: float, confidence: float) -> float:
    """The largest share of pixels in doubt with which tiles may be done.

    Tried are the shares that would stop one tenth of the tiles, two tenths, ..., all. One stands where, of the tiles
    that it stops, at most `risk` are changed by more than `changed` or `shift`, with `confidence` for all ten together
    (upper bound of Clopper and Pearson, Bonferroni), tiles taken as independent. It is never more than was seen.

    Raises
    ------
    RefusedError
        Where there are too few tiles, or none of the shares stands.

    References
    ----------
    Angelopoulos et al., Learn then Test, Annals of Applied Statistics 19:1641 (2025), Algorithm 1 with Bonferroni;
    Clopper & Pearson, Biometrika 26:404 (1934).
    """
    from scipy.stats import beta  # here, not above: the command line would feel it

    level = 1 - (1 - confidence) / _THRESHOLDS
    fewest = int(np.ceil(np.log(1 - level) / np.log(1 - risk)))
    if len(tiles) < fewest:
        raise RefusedError(
            f"{len(tiles)} tiles of reference images cannot show that at most {risk:.0%} fail; give images of {fewest} "
            f"tiles at least"
        )
    doubts = np.array([tile.doubtful for tile in tiles])
    fails = np.array([tile.changed > changed or tile.shift > shift for tile in tiles])
    for part in range(_THRESHOLDS, 0, -1):
        share = float(np.sort(doubts)[-(-part * len(tiles) // _THRESHOLDS) - 1])
        stopped = doubts <= share
        count, failures = int(stopped.sum()), int(fails[stopped].sum())
        if failures < count and beta.ppf(level, failures + 1, count - failures) <= risk:
            return share
    raise RefusedError(
        f"{int(fails.sum())} of {len(tiles)} tiles change by more than --changed {changed:g} or --shift {shift:g} "
        f"allow, the least doubtful ones among them; allow more of either, or use --effort full"
    )


def tile_effort(
    first: tuple[torch.Tensor, torch.Tensor], full: tuple[torch.Tensor, torch.Tensor], doubtful: float
) -> TileEffort:
    """What full effort changed of a tile.

    Parameters
    ----------
    first, full : predictive variance, (y, x) float32, and classes, (y, x) of `pipeline.posterior.class_masks`; after
        the first round, and of all samples
    doubtful : share of its pixels that were in doubt
    """
    u = [variance[masks > 0].to(torch.float64) for variance, masks in (first, full)]
    shift = float((u[0].mean() - u[1].mean()).abs()) if all(len(one) for one in u) else 0.0
    return TileEffort(doubtful, float((first[1] != full[1]).to(torch.float64).mean()), shift)
