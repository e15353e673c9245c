"""Two-sample tests: whether samples come from the same distribution, and how far apart they are.

There is one test for a number per image, and one for a vector per image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.reference.distances import components_of

Values = NDArray[np.float64]

NEGLIGIBLE = 0.147
"""Cliff's delta below which a difference is negligible; small up to 0.33, medium up to 0.474, then large (Romano et
al., Florida Association of Institutional Research, 2006)."""

MOST_POINTS = 1000
"""Maximum number of images of each sample that `compare_points` uses: a seeded draw of larger ones."""

_MAGNITUDES = ((NEGLIGIBLE, "negligible"), (0.33, "small"), (0.474, "medium"), (math.inf, "large"))
_Z = 1.959963984540054  # of a 95 % interval
_Z_POWER = 0.8416212335729143  # of a power of 80 %
# Permutations give p-values of at least 1 / 2000: small enough for a correction for some twenty tests.
_PERMUTATIONS, _AT_ONCE = 1999, 250
_FEWEST_POINTS = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of a second sample from a first.

    Attributes
    ----------
    effect : Cliff's delta, -1 to 1; positive if the second has the higher values
    low, high : its 95 % interval; None if a sample has only one value
    p : two-sided
    """

    effect: float
    low: float | None
    high: float | None
    p: float


def compare_values(first: Values, second: Values) -> Difference:
    """Compare two samples by Mann-Whitney's test and Cliff's delta.

    It detects that one sample tends to higher values than the other, not a difference in spread alone.

    Parameters
    ----------
    first, second : (images,) float64 without NaN, at least one value each

    References
    ----------
    Mann and Whitney, Annals of Mathematical Statistics 18:50 (1947). Cliff, Psychological Bulletin 114:494 (1993).
    """
    from scipy.stats import mannwhitneyu

    delta, error = _delta(first, second)
    low, high = _interval(delta, error, min(len(first), len(second)))
    same = first.min() == first.max() == second.min() == second.max()
    return Difference(delta, low, high, 1.0 if same else float(mannwhitneyu(second, first).pvalue))


def magnitude(delta: float) -> str:
    """Return the size of a delta in words, see `NEGLIGIBLE`."""
    return next(word for limit, word in _MAGNITUDES if abs(delta) < limit)


def detectable(first: int, second: int, alpha: float) -> float:
    """Return the Cliff's delta that Mann-Whitney's test at level `alpha` detects with a power of 80 %.

    It is above 1 if no delta is. Follows from the variance of delta if nothing differs, (n + m + 1) / (3 n m).

    Parameters
    ----------
    first, second : sizes of the samples, n and m
    alpha : level of the test, 0 to 1
    """
    from scipy.stats import norm

    return float((norm.isf(alpha / 2) + _Z_POWER) * math.sqrt((first + second + 1) / (3 * first * second)))


def compare_points(first: Values, second: Values) -> Difference | None:
    """Compare two samples of points by the energy test, and by how well they can be separated, as Cliff's delta.

    The points are standardised and projected on their whitened principal components, pooled, so that the projection
    does not depend on which sample a point belongs to; p comes from permutations of the labels. The effect is that of a
    linear discriminant of the components and their squares, on points that it was not fitted to: 0 if it can only
    guess, 1 if it separates all points.

    Parameters
    ----------
    first, second : (images, d) float64 without NaN, in an order that does not depend on the run; at most `MOST_POINTS`
        of each

    Returns
    -------
    Difference or None
        None with fewer than five points of either, or if all are the same.

    References
    ----------
    Szekely and Rizzo, Journal of Statistical Planning and Inference 143:1249 (2013), energy statistic for equal
    distributions. Lopez-Paz and Oquab, Revisiting classifier two-sample tests, ICLR (2017).
    """
    if min(len(first), len(second)) < _FEWEST_POINTS:
        return None
    pooled = np.concatenate([first, second])
    if not np.ptp(pooled, axis=0).any():
        return None
    points = _principal(pooled)
    of_second = np.arange(len(pooled)) >= len(first)
    told = _told_apart(points, of_second)
    delta, error = _delta(told[~of_second], told[of_second])
    low, high = (max(end or 0.0, 0.0) for end in _interval(delta, error, min(len(first), len(second))))
    # Below 0 it is worse than guessing, which may happen if there is nothing to learn.
    return Difference(max(delta, 0.0), low, high, _energy_p(points, of_second))


def draw(images: int) -> NDArray[np.intp]:
    """Return which of this many images `compare_points` uses: the same for the same number.

    Parameters
    ----------
    images : number of images

    Returns
    -------
    NDArray[np.intp]
        (at most `MOST_POINTS`,), ascending indices.
    """
    if images <= MOST_POINTS:
        return np.arange(images)
    return np.sort(np.random.default_rng(images).choice(images, MOST_POINTS, replace=False))


def _delta(first: Values, second: Values) -> tuple[float, float | None]:
    """Return Cliff's delta and its standard error, by the unbiased estimate of its variance; None for single values.

    Computed from the rank of each value in the other sample, by sorting, without a matrix of all pairs.

    References
    ----------
    Cliff, Psychological Bulletin 114:494 (1993); Feng and Cliff, Journal of Modern Applied Statistical Methods 3:322
    (2004).
    """
    n, m = len(first), len(second)
    below, up_to = (np.searchsorted(np.sort(first), second, side=side) for side in ("left", "right"))
    of_second = (below + up_to) / n - 1
    others = np.sort(second)
    of_first = 1 - (np.searchsorted(others, first, "left") + np.searchsorted(others, first, "right")) / m
    delta = float(of_second.mean())
    if min(n, m) < 2:
        return delta, None
    squares = n * m - int((up_to - below).sum()) - n * m * delta**2
    spread = n**2 * ((of_second - delta) ** 2).sum() + m**2 * ((of_first - delta) ** 2).sum() - squares
    variance = max(float(spread) / (n * m * (n - 1) * (m - 1)), (1 - delta**2) / (n * m - 1))
    return delta, math.sqrt(max(variance, 0.0))


def _interval(delta: float, error: float | None, fewer: int) -> tuple[float | None, float | None]:
    """Return the asymmetric 95 % interval of Cliff's delta (Feng and Cliff 2004).

    `fewer` is the size of the smaller sample.
    """
    if error is None:
        return None, None
    if abs(delta) == 1:  # no pair in the other order, so that the variance is not informative
        bound = max((fewer - _Z**2) / (fewer + _Z**2), -1.0)
        return (bound, 1.0) if delta > 0 else (-1.0, -bound)
    square = (_Z * error) ** 2
    middle, half = delta - delta**3, _Z * error * math.sqrt((1 - delta**2) ** 2 + square)
    below = 1 - delta**2 + square
    return max((middle - half) / below, -1.0), min((middle + half) / below, 1.0)


def _principal(pooled: Values) -> Values:
    """Return coordinates in the leading principal components of the standardised points, of variance 1 each.

    They are (images, r). A shift along a component with little variance counts as much as one along the first.
    """
    from sklearn.decomposition import PCA

    scale = pooled.std(axis=0)
    # Features that differ only by rounding must not be amplified.
    scale = np.where(scale > 1e-9 * np.maximum(np.abs(pooled).max(axis=0), 1e-3), scale, np.inf)
    standardised = (pooled - pooled.mean(axis=0)) / scale
    components = min(components_of(*pooled.shape), len(pooled) - 1)
    coordinates = PCA(components, svd_solver="randomized", random_state=0).fit_transform(standardised)
    spread = coordinates.std(axis=0)
    kept = spread > 1e-6 * spread.max()  # the data may have fewer directions than components
    return np.asarray(coordinates[:, kept] / spread[kept], np.float64)


def _energy_p(points: Values, of_second: NDArray[np.bool_]) -> float:
    """Return (1 + permutations that are at least as far apart) / (1 + permutations)."""
    from scipy.spatial.distance import cdist

    distances = cdist(points, points)
    rng = np.random.default_rng(0)
    observed = energy_distances(distances, of_second[:, None].astype(np.float64))[0]
    at_least = 0
    for start in range(0, _PERMUTATIONS, _AT_ONCE):
        count = min(_AT_ONCE, _PERMUTATIONS - start)
        labels = np.stack([rng.permutation(of_second) for _ in range(count)], axis=1)
        at_least += int((energy_distances(distances, labels.astype(np.float64)) >= observed * (1 - 1e-9)).sum())
    return (1 + at_least) / (1 + _PERMUTATIONS)


def energy_distances(distances: Values, labels: Values) -> Values:
    """Return energy distances between the points of label 0 and 1.

    2 E|X - Y| - E|X - X'| - E|Y - Y'|, means over all pairs, including those of a point with itself.

    Parameters
    ----------
    distances : (points, points) float64
    labels : (points, cuts) float64, 0 or 1

    Returns
    -------
    NDArray[np.float64]
        (cuts,).

    References
    ----------
    Szekely and Rizzo, Journal of Statistical Planning and Inference 143:1249 (2013).
    """
    second = labels.sum(axis=0)
    first = len(labels) - second
    within = np.einsum("ij,ij->j", labels, distances @ labels)
    out_of = distances.sum(axis=0) @ labels
    between = out_of - within
    rest = distances.sum() - 2 * out_of + within
    return np.asarray(2 * between / (first * second) - within / second**2 - rest / first**2, np.float64)


def _told_apart(points: Values, of_second: NDArray[np.bool_]) -> Values:
    """Return (images,) decision values of a linear discriminant fitted without the image; high is the second sample."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5])
    folds = StratifiedKFold(_FEWEST_POINTS, shuffle=True, random_state=0)
    both = np.concatenate([points, points**2], axis=1)
    return np.asarray(cross_val_predict(model, both, of_second, cv=folds, method="decision_function"), np.float64)
