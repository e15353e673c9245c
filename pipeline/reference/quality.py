"""Expected quality of a segmentation: scores are combined into one failure score, and that is mapped to a Dice.

Learnt from reference images with a ground truth, 10 to some 1000 of them. Each score predicts a loss of Dice by a line
of its own, and the failure score is the largest of these losses: members that agree must not outvote a score that is
far out, as they would in a weighted sum, since images that are out of distribution are doubtful in some scores and
inconspicuous in others. An isotonic regression maps it to a Dice. Both are monotonic: a worse score never predicts a
better segmentation.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.reference.conformal import fold_numbers
from chorus.pipeline.reference.marginals import is_constant, numbers, side_of

# The common slope of all scores has the weight of this many images: with fewer images all scores have about the common
# slope, with many more each score has its own.
_PRIOR_IMAGES = 20


class QualityModel(BaseModel):
    """Model of Dice given scores.

    Attributes
    ----------
    scores : names of the scores that are used
    location, scale : per score, mean and standard deviation of its badness (the score, negated if low values are bad)
        in the reference set
    slopes : per score, at least 0: loss of Dice per standard deviation
    intercept : mean loss (1 - Dice) of the reference set
    failure_knots, dice_knots : the isotonic regression of Dice on the failure score; linear between the knots
    images : number of images that it was fitted to
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: list[str]
    location: list[float]
    scale: list[float]
    slopes: list[float]
    intercept: float
    failure_knots: list[float]
    dice_knots: list[float]
    images: int

    def failure_scores(self, scores: pd.DataFrame) -> NDArray[np.float64]:
        """Return the loss in Dice that the most pessimistic score predicts: the higher the worse.

        Parameters
        ----------
        scores : a row per image

        Returns
        -------
        NDArray[np.float64]
            (images,), unbounded; NaN if an image has none of the scores.
        """
        if not self.scores:
            return np.full(len(scores), self.intercept)
        z = (_badness(scores, self.scores) - np.asarray(self.location)) / np.asarray(self.scale)
        return self.intercept + _worst(z, np.asarray(self.slopes))

    def expected_dice(self, scores: pd.DataFrame) -> NDArray[np.float64]:
        """Return the expected Dice.

        Parameters
        ----------
        scores : a row per image

        Returns
        -------
        NDArray[np.float64]
            (images,), 0 to 1; NaN if an image has none of the scores.
        """
        return self.dice_of(self.failure_scores(scores))

    def dice_of(self, failure: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the expected Dice at failure scores.

        Beyond the worst reference image it falls as the failure score rises.

        Parameters
        ----------
        failure : (images,) float64

        Returns
        -------
        NDArray[np.float64]
            (images,), 0 to 1; NaN stays NaN.
        """
        within = np.interp(failure, self.failure_knots, self.dice_knots)
        beyond = np.maximum(failure - self.failure_knots[-1], 0)
        return np.asarray(np.clip(within - beyond, 0, 1), np.float64)


def fit_quality(scores: pd.DataFrame, dice: NDArray[np.float64], names: list[str]) -> QualityModel:
    """Fit to reference images; scores that are the same for all of them, or that some of them lack, are left out.

    The isotonic regression is fitted to out-of-fold failure scores, whose slopes were learnt without the image, so that
    the relation is not better than it is for new images.

    Parameters
    ----------
    scores : a row per image
    dice : (images,) float64, 0 to 1
    names : columns of `scores` to use
    """
    usable = [name for name in names if usable_score(scores, name)]
    badness = _badness(scores, usable)
    location, scale = badness.mean(axis=0), badness.std(axis=0)
    z, loss = (badness - location) / scale, 1 - dice
    from sklearn.isotonic import IsotonicRegression  # takes a second to import

    isotonic = IsotonicRegression(y_min=0, y_max=1, increasing=False, out_of_bounds="clip")
    isotonic.fit(_out_of_fold(z, loss), dice)
    return QualityModel(
        scores=usable,
        location=location.tolist(),
        scale=scale.tolist(),
        slopes=_slopes(z, loss).tolist(),
        intercept=float(loss.mean()),
        failure_knots=isotonic.X_thresholds_.tolist(),
        dice_knots=isotonic.y_thresholds_.tolist(),
        images=len(dice),
    )


def usable_score(scores: pd.DataFrame, name: str) -> bool:
    """Return whether every image has the score, and these are not all equal."""
    values = numbers(scores, [name])[:, 0]
    return bool(np.isfinite(values).all()) and not is_constant(values)


def cross_fitted(
    scores: pd.DataFrame, dice: NDArray[np.float64], names: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return failure scores and expected Dice, each from a model that was fitted without the image.

    Parameters
    ----------
    scores : a row per image
    dice : (images,) float64, 0 to 1
    names : columns of `scores` to use

    Returns
    -------
    failure, expected : (images,) float64 each, as of `QualityModel`
    """
    failure, expected = np.empty(len(dice)), np.empty(len(dice))
    folds = fold_numbers(len(dice))
    for fold in np.unique(folds):
        held_out = folds == fold
        model = fit_quality(scores[~held_out], dice[~held_out], names)
        failure[held_out] = model.failure_scores(scores[held_out])
        expected[held_out] = model.dice_of(failure[held_out])
    return failure, expected


def _badness(scores: pd.DataFrame, names: list[str]) -> NDArray[np.float64]:
    signs = np.array([-1.0 if side_of(name) == "low" else 1.0 for name in names])
    return np.asarray(numbers(scores, names) * signs, np.float64)


def _out_of_fold(z: NDArray[np.float64], loss: NDArray[np.float64]) -> NDArray[np.float64]:
    failure = np.empty(len(loss))
    folds = fold_numbers(len(loss))
    for fold in np.unique(folds):
        held_out = folds == fold
        rest = loss[~held_out]
        centre = z[~held_out].mean(axis=0)
        failure[held_out] = rest.mean() + _worst(z[held_out] - centre, _slopes(z[~held_out], rest))
    return failure


def _worst(z: NDArray[np.float64], slopes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest loss that any score predicts, (images,); 0 without scores, NaN for images that have none."""
    if z.shape[1] == 0:
        return np.zeros(len(z))
    losses = np.where(np.isnan(z), -np.inf, z * slopes).max(axis=1)
    return np.where(np.isneginf(losses), np.nan, losses)


def _slopes(z: NDArray[np.float64], loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the slope of the loss on each score alone, at least 0, shrunk towards the slope on the mean of all scores.

    min |loss - s z|^2 + m (s - c)^2 over s >= 0 for each score, c the slope on their mean: ridge regression towards
    a target, so that a score with little evidence in the reference set still contributes.
    """
    if z.shape[1] == 0:
        return np.empty(0)
    z, loss = z - z.mean(axis=0), loss - loss.mean()
    mean = z.mean(axis=1)
    variance = float(mean @ mean)
    common = max(float(mean @ loss) / variance, 0.0) if variance > 0 else 0.0
    slopes = (loss @ z + _PRIOR_IMAGES * common) / ((z * z).sum(axis=0) + _PRIOR_IMAGES)
    return np.asarray(np.maximum(slopes, 0), np.float64)
