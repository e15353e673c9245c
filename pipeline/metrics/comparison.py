"""Statistical comparison of ensembles on the same images.

Two are compared by Wilcoxon's signed-rank test, more by Friedman's test and, if that finds a difference, Nemenyi's
test of each pair. Images are taken as independent, which fields of one well are not entirely.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
LOWER_IS_BETTER = ("boundary_", "splits", "merges")
"""Prefixes of the names of metrics of which low values are better."""

_RESAMPLES = 2000
# Maximum number of values drawn at once.
_BATCH = 10_000_000


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference between two of the ensembles that are compared.

    Attributes
    ----------
    first, second : their names
    mean : of first - second over the images
    low, high : its 95 % interval; None with fewer than two images
    p : two-sided; of Wilcoxon's test if two are compared, of Nemenyi's if more are
    effect : matched-pairs rank-biserial correlation, -1 to 1; 1 if the first has the higher value on every image
    """

    first: str
    second: str
    mean: float
    low: float | None
    high: float | None
    p: float
    effect: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of the comparison of two or more ensembles.

    Attributes
    ----------
    metric : its name; `lower` if low values are better
    images : number of images compared
    means, ranks : by name; the mean rank over images, 1 is the best
    test : name of the test of all together, and `p` its result
    concordance : Kendall's W, 0 (images disagree on which is best) to 1; None if two are compared
    critical_difference : of mean ranks, by Nemenyi; None if two are compared
    differences : of all pairs
    """

    metric: str
    lower: bool
    images: int
    means: dict[str, float]
    ranks: dict[str, float]
    test: str
    p: float
    concordance: float | None
    critical_difference: float | None
    differences: tuple[Difference, ...]

    @property
    def significant(self) -> tuple[Difference, ...]:
        """Pairs that differ at the level of `ALPHA`; none if the test of all together finds no difference."""
        return tuple(one for one in self.differences if one.p < ALPHA) if self.p < ALPHA else ()

    @property
    def verdict(self) -> list[str]:
        """The result in sentences."""
        *names, last = self.means
        basis = f"{self.test}, p = {_number(self.p)}, {self.images} images"
        if self.p >= ALPHA:
            few = "; fewer than 6 images cannot show one" if len(self.means) == 2 and self.images < 6 else ""
            return [f"no significant difference in {self.metric} between {', '.join(names)} and {last} ({basis}){few}"]
        if len(self.means) == 2:
            return [f"{self._sentence(self.differences[0])} ({basis})"]
        sentences = [f"they differ in {self.metric} ({basis}, Kendall's W = {_number(self.concordance)})"]
        sentences += [f"{self._sentence(one)} (Nemenyi, p = {_number(one.p)})" for one in self.significant]
        rest = [f"{one.first} and {one.second}" for one in self.differences if one not in self.significant]
        return sentences + [f"no significant difference between {'; '.join(rest)}"] * bool(rest)

    def _sentence(self, one: Difference) -> str:
        """Return which of a pair is better, and by how much. The sign is the test's: of ranks, not of the mean."""
        first = (one.effect > 0) != self.lower
        if len(self.means) > 2:
            first = self.ranks[one.first] < self.ranks[one.second]
        better, worse = (one.first, one.second) if first else (one.second, one.first)
        interval = f", 95 % interval {_number(one.low)} to {_number(one.high)}" if one.low is not None else ""
        return (
            f"{better} is better than {worse} in {self.metric}: {one.first} less {one.second} is "
            f"{_number(one.mean)} on average{interval}, rank-biserial correlation {_number(one.effect)}"
        )


def compare(metric: str, values: Mapping[str, NDArray[np.float64]]) -> Comparison:
    """Compare two or more ensembles by their values of `metric` on the same images.

    Parameters
    ----------
    metric : name of the metric
    values : by name of the ensemble, (images,) float64 in the same order of images; no NaN, at least one image

    References
    ----------
    Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7:1 (2006). Kerby, The simple
    difference formula, Comprehensive Psychology 3:11.IT.3.1 (2014).
    """
    from scipy.stats import rankdata

    names, lower = list(values), metric.startswith(LOWER_IS_BETTER)
    table = np.stack([np.asarray(values[name], np.float64) for name in names], axis=1)
    images, count = table.shape
    ranks = rankdata(table if lower else -table, axis=1).mean(axis=0)
    means = dict(zip(names, table.mean(axis=0).tolist(), strict=True))
    pairs = list(itertools.combinations(range(count), 2))
    if count == 2:
        p = signed_rank(table[:, 0] - table[:, 1])
        test, pair_p, concordance, critical = "Wilcoxon signed-rank test", [p], None, None
    else:
        p, concordance = _friedman(table)
        pair_p = [_nemenyi(abs(ranks[a] - ranks[b]), count, images) for a, b in pairs]
        test, critical = "Friedman test", critical_difference(count, images)
    differences = (
        _difference(names[a], names[b], table[:, a] - table[:, b], value)
        for (a, b), value in zip(pairs, pair_p, strict=True)
    )
    mean_ranks = dict(zip(names, ranks.tolist(), strict=True))
    return Comparison(metric, lower, images, means, mean_ranks, test, p, concordance, critical, tuple(differences))


def signed_rank(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test; 1 if all differences are zero.

    Parameters
    ----------
    differences : (images,) float64
    """
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0


def rank_biserial(differences: NDArray[np.float64]) -> float:
    """Return the matched-pairs rank-biserial correlation: share of the ranks in favour less share against.

    Pairs without a difference are left out, as in Wilcoxon's test.

    Parameters
    ----------
    differences : (images,) float64

    Returns
    -------
    float
        -1 to 1; 0 if all differences are zero.

    References
    ----------
    Kerby, The simple difference formula, Comprehensive Psychology 3:11.IT.3.1 (2014).
    """
    from scipy.stats import rankdata

    unequal = differences[differences != 0]
    if not unequal.size:
        return 0.0
    ranks = rankdata(np.abs(unequal))
    return float((ranks * np.sign(unequal)).sum() / ranks.sum())


def critical_difference(count: int, images: int, alpha: float = ALPHA) -> float:
    """Return by how much the mean ranks of two must differ to be significant.

    Parameters
    ----------
    count : number of ensembles compared
    images : number of images
    alpha : level of significance

    References
    ----------
    Demsar, JMLR 7:1 (2006), section 3.2.2.
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - alpha, count, np.inf)) / math.sqrt(2)
    return q * _rank_error(count, images)


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean by the percentile bootstrap, with a fixed seed.

    Parameters
    ----------
    values : (n,) float64

    Returns
    -------
    tuple of float, or None
        Low and high end; None for fewer than two values.

    References
    ----------
    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    from scipy.stats import bootstrap

    if len(values) < 2:
        return None
    resampled = bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH // len(values)),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(resampled.low), float(resampled.high)


def _difference(first: str, second: str, differences: NDArray[np.float64], p: float) -> Difference:
    low, high = mean_interval(differences) or (None, None)
    return Difference(first, second, float(differences.mean()), low, high, p, rank_biserial(differences))


def _friedman(table: NDArray[np.float64]) -> tuple[float, float]:
    """Return p of Friedman's test of the columns of (images, compared), and Kendall's W; 1 and 0 if all are equal."""
    from scipy.stats import friedmanchisquare

    images, count = table.shape
    if (table == table[:, :1]).all():
        return 1.0, 0.0
    test = friedmanchisquare(*table.T)
    return float(test.pvalue), float(test.statistic) / (images * (count - 1))


def _nemenyi(difference: float, count: int, images: int) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.sf(difference / _rank_error(count, images) * math.sqrt(2), count, np.inf))


def _rank_error(count: int, images: int) -> float:
    return math.sqrt(count * (count + 1) / (6 * images))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if abs(value) < 0.001 else f"{value:.3f}"
