"""A score against its values in the reference set: how many sigma out it is, and on which side that is bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_ndtr
from scipy.stats import norm, rankdata

from chorus.pipeline.scores.image_quality import PIXEL_FIELDS, RADIUS
from chorus.pipeline.scores.image_scores import FLOW_VARIANCE, SCORE_FIELDS
from chorus.pipeline.scores.ranking import LOW_IS_BAD

Side = Literal["high", "low", "both"]
FOREGROUND = "foreground_fraction:"
CLASS_DICE = "pairwise_dice:"
LOOKS = tuple(f"{field}:" for field in (*PIXEL_FIELDS, RADIUS))


def side_of(name: str) -> Side:
    """On which side a detector's value is strange: a score where it is bad, what an image looks like on both."""
    if name.startswith((FOREGROUND, *LOOKS)):
        return "both"
    return "low" if name.startswith(LOW_IS_BAD) else "high"


def quality_scores(scores: pd.DataFrame) -> list[str]:
    """Columns of ``scores.parquet`` from which quality is foretold; those of single classes where there are several.

    The variance of flows is none of them: it tells how sure the members are of objects, which Dice does not count.
    """
    found = [name for name in SCORE_FIELDS if name in scores and name != FLOW_VARIANCE]
    return found + _of_classes(scores, CLASS_DICE, fewest=2)


def all_scores(scores: pd.DataFrame) -> list[str]:
    """Columns of ``scores.parquet`` that a reference keeps: of quality, the share of each class, and the looks.

    And the variance of flows, where the ensemble gives any.
    """
    found = quality_scores(scores) + _of_classes(scores, FOREGROUND, fewest=1)
    if FLOW_VARIANCE in scores and scores[FLOW_VARIANCE].notna().any():
        found.append(FLOW_VARIANCE)
    return found + [name for prefix in LOOKS for name in _of_classes(scores, prefix, fewest=1)]


def _of_classes(scores: pd.DataFrame, prefix: str, fewest: int) -> list[str]:
    found = [str(name) for name in scores.columns if str(name).startswith(prefix)]
    return found if len(found) >= fewest else []


def numbers(scores: pd.DataFrame, names: list[str]) -> NDArray[np.float64]:
    """(images, names) float64; NaN where there is no value, or no such column."""
    columns = [
        pd.to_numeric(scores[name], errors="coerce").to_numpy(np.float64, na_value=np.nan)
        if name in scores
        else np.full(len(scores), np.nan)
        for name in names
    ]
    return np.stack(columns, axis=1) if columns else np.empty((len(scores), 0))


def is_constant(values: NDArray[np.float64]) -> bool:
    """Whether there is nothing to tell images apart by: no value, or the same but for rounding."""
    known = values[np.isfinite(values)]
    return len(known) < 2 or float(np.ptp(known)) <= 1e-9 * max(1e-3, float(np.abs(known).max()))


@dataclass(frozen=True)
class Marginal:
    """Turns values of a score into sigmas: what they would be if the reference set's were normally distributed.

    Within the reference set a value's sigma is the normal quantile of its rank (normal scores), so that a skewed
    score says no more than its ranks do. Beyond its ends it grows with the distance from the median, at the pace at
    which it does so up to the end: so images that no reference image resembles can still be told apart.

    Attributes
    ----------
    knots : (k,) float64, distinct values of the reference set, ascending
    sigmas : (k,) float64, of them
    below, above : sigma per unit of the score, beyond the first and the last knot
    """

    knots: NDArray[np.float64]
    sigmas: NDArray[np.float64]
    below: float
    above: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Marginal:
        """Of the values in a reference set; those that are not numbers are left out, and at least one must be left."""
        known = np.sort(values[np.isfinite(values)])
        sigmas = norm.ppf((rankdata(known) - 0.5) / len(known))
        knots, first = np.unique(known, return_index=True)
        sigmas = sigmas[first]
        median, spread = float(np.median(known)), float(known.std())

        def pace(end: int) -> float:
            distance = abs(float(knots[end]) - median)
            if distance > 0:
                return abs(float(sigmas[end])) / distance
            return 1 / spread if spread > 0 else 0.0  # more than half of the images share the value at this end

        return cls(knots, sigmas, pace(0), pace(-1))

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sigmas of `values`, positive above the median; NaN stays NaN."""
        within = np.interp(values, self.knots, self.sigmas)
        above = np.maximum(values - self.knots[-1], 0) * self.above
        return np.asarray(within + above - np.maximum(self.knots[0] - values, 0) * self.below, np.float64)


def log_p(sigmas: NDArray[np.float64], side: Side) -> NDArray[np.float64]:
    """Logarithm of the normal tail beyond `sigmas` on a side, exact as far out as floats go; NaN stays NaN."""
    if side == "both":
        return np.asarray(np.minimum(np.log(2) + log_ndtr(-np.abs(sigmas)), 0), np.float64)
    return np.asarray(log_ndtr(sigmas if side == "low" else -sigmas), np.float64)
