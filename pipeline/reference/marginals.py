"""A score relative to its values in the reference set: its distance in sigma, and the side on which it is unusual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtri

from chorus.pipeline.scores.registry import column_of, columns_in
from chorus.pipeline.scores.score import Column

Side = Literal["high", "low", "both"]


def side_of(name: str) -> Side:
    """Return the side on which a detector's value is unusual.

    For scores it is the doubtful side; for scores of an image's appearance it is both.
    """
    column = column_of(name)
    if column is None or column.score.doubtful == "neither":
        return "high"
    return column.score.doubtful


def quality_scores(scores: pd.DataFrame) -> list[str]:
    """Return the columns of ``scores.parquet`` from which quality is estimated; of single classes if there are several.

    The variance of flows is not among them: it measures the certainty about objects, which Dice does not count.
    """
    columns = [column for column in columns_in(scores) if column.score.table == "scores" and column.score.quality]
    several = sum(bool(column.part) for column in columns) > 1
    # With one class its Dice is that of the image.
    return [column.key for column in columns if several or not column.part]


def all_scores(scores: pd.DataFrame) -> list[str]:
    """Return the columns of ``scores.parquet`` that a reference keeps: of quality, then all other detectors."""
    known = [column for column in columns_in(scores) if column.score.table == "scores"]
    others = [column for column in known if column.score.detects and not column.score.quality]
    return quality_scores(scores) + [column.key for column in others if column.part or _has_values(scores, column)]


def _has_values(scores: pd.DataFrame, column: Column) -> bool:
    """Return whether some image has the score; ensembles without flows have no variance of them."""
    return bool(scores[column.key].notna().any())


def numbers(scores: pd.DataFrame, names: list[str]) -> NDArray[np.float64]:
    """Return columns of a table as numbers.

    Parameters
    ----------
    scores : a row per image
    names : of the columns

    Returns
    -------
    NDArray[np.float64]
        (images, names); NaN for missing values and columns.
    """
    columns = [
        pd.to_numeric(scores[name], errors="coerce").to_numpy(np.float64, na_value=np.nan)
        if name in scores
        else np.full(len(scores), np.nan)
        for name in names
    ]
    return np.stack(columns, axis=1) if columns else np.empty((len(scores), 0))


def is_constant(values: NDArray[np.float64]) -> bool:
    """Return whether values do not distinguish images: fewer than two are finite, or all are equal up to rounding.

    Parameters
    ----------
    values : (images,) float64
    """
    known = values[np.isfinite(values)]
    return len(known) < 2 or float(np.ptp(known)) <= 1e-9 * max(1e-3, float(np.abs(known).max()))


@dataclass(frozen=True)
class Marginal:
    """Map values of a score to sigmas: the values as if the reference set were normally distributed.

    Within the reference set a value's sigma is the normal quantile of its rank (normal scores), so that a skewed score
    has the same weight as its ranks. Beyond the ends it grows linearly with the distance from the median, with the
    average slope between the median and that end, so that images unlike any reference image can still be distinguished.

    Attributes
    ----------
    knots : (k,) float64, distinct values of the reference set, ascending
    sigmas : (k,) float64, of the knots
    below, above : sigma per unit of the score, beyond the first and the last knot
    """

    knots: NDArray[np.float64]
    sigmas: NDArray[np.float64]
    below: float
    above: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Marginal:
        """Fit to the values of a reference set.

        Parameters
        ----------
        values : (images,) float64; values that are not finite are left out, at least one must remain
        """
        known = np.sort(values[np.isfinite(values)])
        from scipy.stats import rankdata  # imported here, since it would slow down the start of the command line

        sigmas = ndtri((rankdata(known) - 0.5) / len(known))
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
        """Return the sigmas of values.

        Parameters
        ----------
        values : (images,) float64

        Returns
        -------
        NDArray[np.float64]
            (images,), positive above the median; NaN stays NaN.
        """
        within = np.interp(values, self.knots, self.sigmas)
        above = np.maximum(values - self.knots[-1], 0) * self.above
        return np.asarray(within + above - np.maximum(self.knots[0] - values, 0) * self.below, np.float64)


def log_p(sigmas: NDArray[np.float64], side: Side) -> NDArray[np.float64]:
    """Return the logarithm of the normal tail beyond sigmas, without underflow.

    Parameters
    ----------
    sigmas : any shape, float64
    side : on which values are unusual

    Returns
    -------
    NDArray[np.float64]
        Same shape, at most 0; NaN stays NaN.
    """
    if side == "both":
        return np.asarray(np.minimum(np.log(2) + log_ndtr(-np.abs(sigmas)), 0), np.float64)
    return np.asarray(log_ndtr(sigmas if side == "low" else -sigmas), np.float64)
