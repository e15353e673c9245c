"""Conformal prediction: bounds and p-values for a new image, by its rank among the reference images.

All of it rests on one assumption, exchangeability: that the new image could have been one of the reference images, so
that no order of them is more likely than another. No distribution is assumed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

ASSUMPTION = (
    "the images come from the same source as the reference images (exchangeable); over many reference sets and images "
    "the bound then holds for at least 1 - alpha of the images; it says nothing of images that are out of distribution"
)
FOLDS = 20
# Minimum number of images that a model of quality is fitted to; the others calibrate the bound.
_FEWEST_FITTED = 5


def conformal_rank(images: int, alpha: float) -> int | None:
    """Return the rank of the residual, from the smallest (1), that a new one exceeds with probability alpha at most.

    ceil((n + 1) (1 - alpha)) for n images; None if that is more than n: too few images for a bound at alpha.

    References
    ----------
    Lei et al., Journal of the American Statistical Association 113:1094 (2018), Algorithm 2 and Theorem 2; Vovk,
    Gammerman and Shafer, Algorithmic Learning in a Random World (2005).
    """
    # Rounding errors of the product must not raise the rank by one: (n + 1) (1 - alpha) is often an integer.
    rank = math.ceil((images + 1) * (1 - alpha) - 1e-9)
    return rank if rank <= images else None


def residual_quantile(residuals: NDArray[np.float64], alpha: float) -> float | None:
    """Return the residual that a new image exceeds with probability alpha at most.

    Parameters
    ----------
    residuals : (images,) float64, expected less true Dice
    alpha : 0 to 1

    Returns
    -------
    float or None
        None with too few images.
    """
    rank = conformal_rank(len(residuals), alpha)
    return None if rank is None else float(np.sort(residuals)[rank - 1])


def split_for_bound(images: int, alpha: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split images into those that a model is fitted to, and those that calibrate its bound.

    Half of them calibrate; more if a bound needs more and at least five are left to fit. The split is random, but
    the same for the same number of images.

    Parameters
    ----------
    images : number of images
    alpha : of the bound, 0 to 1

    Returns
    -------
    fitted, calibrating : (n,) intp each, sorted indices
    """
    minimum = math.ceil(1 / alpha - 1e-9) - 1
    calibrating = max(images // 2, min(minimum, images - _FEWEST_FITTED))
    order = np.random.default_rng(images).permutation(images)
    return np.sort(order[calibrating:]), np.sort(order[:calibrating])


def fold_numbers(images: int, folds: int = FOLDS) -> NDArray[np.intp]:
    """Assign images to folds, at random but the same every time; one image per fold if there are few.

    Parameters
    ----------
    images : number of images
    folds : number of folds, at most

    Returns
    -------
    NDArray[np.intp]
        (images,), 0 to ``folds - 1``.
    """
    return np.random.default_rng(images).permutation(images) % min(folds, images)


def conformal_p_values(reference: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return conformal p-values: (1 + #{reference >= value}) / (n + 1).

    This is how often an image of the reference's source is at least as unusual. For an exchangeable image P(p <= t) <=
    t for every t.

    Parameters
    ----------
    reference : (n,) float64, how unusual each reference image is; higher is more unusual
    values : (images,) float64, the same of new images

    Returns
    -------
    NDArray[np.float64]
        (images,), above 0 and at most 1.

    References
    ----------
    Bates et al., Annals of Statistics 51:149 (2023), Eq. 2.
    """
    ordered = np.sort(reference)
    at_least = len(ordered) - np.searchsorted(ordered, values, side="left")
    return np.asarray((1 + at_least) / (len(ordered) + 1), np.float64)


def failure_probability(
    reference: NDArray[np.float64], failed: NDArray[np.bool_], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return an upper estimate of the probability that images with these scores fail; it never falls with the score.

    The upper one of the two probabilities of a Venn-Abers predictor: the value at a new image of the isotonic
    regression of the failures on the score, with the new image added as one more failure. So with n reference images
    it is at least 1 / (n + 1).

    Parameters
    ----------
    reference : (n,) float64, scores; higher is worse
    failed : (n,) bool, whether they failed
    values : (images,) float64, scores; NaN gives NaN

    Returns
    -------
    NDArray[np.float64]
        (images,), 0 to 1.

    References
    ----------
    Vovk and Petej, Venn-Abers predictors, UAI (2014).
    """
    order = np.argsort(reference, kind="stable")
    ordered, outcomes = reference[order], failed[order].astype(np.float64)
    positions, of_image = np.unique(np.searchsorted(ordered, values, side="left"), return_inverse=True)
    from sklearn.isotonic import isotonic_regression  # takes a second to import

    upper = [isotonic_regression(np.insert(outcomes, position, 1.0))[position] for position in positions]
    return np.where(np.isnan(values), np.nan, np.asarray(upper, np.float64)[of_image])
