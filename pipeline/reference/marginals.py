"""A score against its values in the reference set: how many sigma out it is, and on which side that is bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_ndtr
from scipy.stats import norm, rankdata

from chorus.pipeline.scores.registry import column_of, columns_in
from chorus.pipeline.scores.score import Column

Side = Literal["high", "low", "both"]


def side_of(name: str) -> Side:
    """On which side a detector's value is unusual: a score where it is doubtful, what an image looks like on both."""
    column = column_of(name)
    if column is None or column.score.doubtful == "neither":
        return "high"
    return column.score.doubtful


def quality_scores(scores: pd.DataFrame) -> list[str]:
    """Columns of ``scores.parquet`` from which quality is estimated; those of single classes where there are several.

    The variance of flows is none of them: it tells how sure the members are of objects, which Dice does not count.
    """
    found = [column for column in columns_in(scores) if column.score.table == "scores" and column.score.quality]
    several = sum(bool(column.of) for column in found) > 1
    # With one class its Dice is that of the image.
    return [column.key for column in found if several or not column.of]


def all_scores(scores: pd.DataFrame) -> list[str]:
    """Columns of ``scores.parquet`` that a reference keeps: of quality, then all others that detect something."""
    known = [column for column in columns_in(scores) if column.score.table == "scores"]
    others = [column for column in known if column.score.detects and not column.score.quality]
    return quality_scores(scores) + [column.key for column in others if column.of or _has_values(scores, column)]


def _has_values(scores: pd.DataFrame, column: Column) -> bool:
    """Whether some image has the score; ensembles without flows have no variance of them."""
    return bool(scores[column.key].notna().any())


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
