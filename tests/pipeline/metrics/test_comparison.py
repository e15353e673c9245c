"""Comparing ensembles: against published values, enumeration and plain loops; and what is said in words."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from chorus.pipeline.metrics.comparison import compare, critical_difference, mean_interval, rank_biserial, signed_rank


def biserial_by_pairs(differences: list[float]) -> float:
    """Ranks in favour less ranks against, as a share; ranks counted pair by pair."""
    found = [d for d in differences if d]
    if not found:
        return 0.0

    def rank(d: float) -> float:
        return sum(abs(e) < abs(d) for e in found) + (sum(abs(e) == abs(d) for e in found) + 1) / 2

    signed = sum(math.copysign(rank(d), d) for d in found)
    return signed / sum(rank(d) for d in found)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20))
@settings(max_examples=60)
def test_rank_biserial_correlation_is_that_of_plain_loops(values: list[int]) -> None:
    assert rank_biserial(np.array(values, float)) == pytest.approx(biserial_by_pairs(list(map(float, values))))


def test_signed_rank_test_is_that_of_all_sign_changes() -> None:
    differences = np.array([0.3, -0.1, 0.5, 0.8, -0.2, 0.45, 0.9, 0.05])
    order = np.argsort(np.argsort(np.abs(differences))) + 1
    seen = abs(sum(order * np.sign(differences)))
    sums = [abs(sum(order * np.array(signs))) for signs in itertools.product((-1, 1), repeat=len(order))]
    assert signed_rank(differences) == pytest.approx(np.mean([total >= seen for total in sums]))
    assert signed_rank(np.zeros(10)) == 1


@pytest.mark.parametrize(
    ("count", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (8, 3.031), (10, 3.164)]
)
def test_critical_differences_are_those_of_the_published_table(count: int, q: float) -> None:
    """Demsar 2006, Table 5a, alpha = 0.05."""
    assert critical_difference(count, 14) == pytest.approx(q * math.sqrt(count * (count + 1) / (6 * 14)), rel=5e-4)


def test_friedman_and_kendall_follow_their_formulas() -> None:
    rng = np.random.default_rng(3)
    table = rng.permuted(np.arange(4.0) + rng.normal(0, 1.2, (15, 4)), axis=0)
    found = compare("dice", {f"run-{k}": table[:, k] for k in range(4)})
    ranks = np.array([[1 + sum(other > value for other in row) for value in row] for row in table])
    statistic = 12 * 15 / (4 * 5) * (sum(ranks.mean(axis=0) ** 2) - 4 * 5**2 / 4)
    assert [*found.ranks.values()] == pytest.approx(ranks.mean(axis=0))
    assert found.p == pytest.approx(chi2.sf(statistic, 3))
    assert found.concordance == pytest.approx(statistic / (15 * 3))
    assert len(found.differences) == 6
    far = {(one.first, one.second) for one in found.differences if one.p < 0.05}
    limit = critical_difference(4, 15)
    pairs = itertools.combinations(found.ranks, 2)
    assert far == {(a, b) for a, b in pairs if abs(found.ranks[a] - found.ranks[b]) > limit}


def test_interval_of_a_mean_is_near_that_of_the_normal_distribution_and_always_the_same() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 400)
    interval = mean_interval(values)
    assert interval is not None
    error = 1.96 * values.std(ddof=1) / 20
    assert interval == pytest.approx((values.mean() - error, values.mean() + error), abs=0.2 * error)
    assert mean_interval(values) == interval
    assert mean_interval(values[:1]) is None
    assert mean_interval(np.full(5, 0.5)) == (0.5, 0.5)


def test_no_significant_difference_is_said_plainly() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(0.7, 0.9, 30)
    found = compare("dice", {"a": first, "b": first + rng.normal(0, 0.02, 30)})
    assert found.p > 0.05
    (sentence,) = found.verdict
    assert sentence.startswith("no significant difference in dice between a and b (Wilcoxon signed-rank test, p = 0.")
    assert found.significant == ()
    (same,) = compare("dice", {"a": first, "b": first, "c": first}).verdict
    assert same.startswith("no significant difference in dice between a, b and c (Friedman test, p = 1.000, 30 images)")


def test_the_better_one_of_two_is_named_with_its_lead() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(0.7, 0.9, 30)
    second = first - rng.uniform(0.01, 0.05, 30)
    found = compare("dice", {"a": first, "b": second})
    (one,) = found.differences
    assert one.effect == 1
    assert one.low is not None
    assert one.high is not None
    assert 0.01 < one.low < one.mean < one.high < 0.05
    assert "a is better than b in dice: a less b is 0.0" in found.verdict[0]
    distances = compare("boundary_p95:nucleus", {"a": first, "b": second})
    assert "b is better than a in boundary_p95:nucleus" in distances.verdict[0]


def test_five_images_cannot_show_a_difference_and_it_is_said() -> None:
    values = np.linspace(0.5, 0.9, 5)
    found = compare("dice", {"a": values, "b": values - 0.1})
    assert found.p == pytest.approx(2 / 2**5)
    assert "fewer than 6 images cannot show one" in found.verdict[0]


def test_out_of_three_the_pairs_that_differ_are_told_from_those_that_do_not() -> None:
    rng = np.random.default_rng(0)
    good = rng.uniform(0.8, 0.9, 40)
    runs = {"a": good + rng.normal(0, 0.01, 40), "b": good + rng.normal(0, 0.01, 40), "c": good - 0.2}
    verdict = compare("dice", runs).verdict
    assert verdict[0].startswith("they differ in dice (Friedman test, p = ")
    assert any(sentence.startswith("a is better than c in dice") for sentence in verdict)
    assert any(sentence.startswith("b is better than c in dice") for sentence in verdict)
    assert verdict[-1] == "no significant difference between a and b"
