"""What holds by rank: bounds that cover, p-values that are not too small, probabilities that are not too low."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.isotonic import isotonic_regression

from chorus.pipeline.reference.conformal import (
    conformal_p_values,
    conformal_rank,
    failure_probability,
    fold_numbers,
    residual_quantile,
    split_for_bound,
)
from chorus.pipeline.reference.reference import Bound, fit_bound
from tests.support.simulated import simulated

NAMES = ["uncertainty", "epistemic", "aleatoric", "pairwise_dice"]
FINITE = st.floats(-10, 10, width=32)


@pytest.mark.parametrize(
    ("images", "alpha", "rank"),
    [(9, 0.1, 9), (8, 0.1, None), (19, 0.05, 19), (18, 0.05, None), (99, 0.1, 90), (100, 0.1, 91), (1, 0.5, 1)],
)
def test_the_rank_is_that_of_the_paper_and_too_few_images_have_none(
    images: int, alpha: float, rank: int | None
) -> None:
    assert conformal_rank(images, alpha) == rank


def test_the_quantile_is_a_residual_and_none_with_too_few() -> None:
    assert residual_quantile(np.arange(9.0)[::-1], 0.1) == 8
    assert residual_quantile(np.arange(99.0), 0.1) == 89
    assert residual_quantile(np.arange(8.0), 0.1) is None


@given(images=st.integers(10, 300), alpha=st.sampled_from([0.05, 0.1, 0.2]))
def test_a_split_uses_every_image_once_and_calibrates_with_half_or_with_what_the_bound_needs(
    images: int, alpha: float
) -> None:
    fitted, calibrating = split_for_bound(images, alpha)
    assert sorted([*fitted, *calibrating]) == list(range(images))
    assert len(fitted) >= 5
    assert len(calibrating) >= images // 2
    if images - 5 >= math.ceil(1 / alpha - 1e-9) - 1:
        assert conformal_rank(len(calibrating), alpha) is not None


@given(images=st.integers(1, 200))
def test_folds_are_of_equal_size_and_the_same_every_time(images: int) -> None:
    folds = fold_numbers(images)
    counts = np.bincount(folds)
    assert counts.max() - counts.min() <= 1
    assert len(counts) == min(20, images)
    np.testing.assert_array_equal(folds, fold_numbers(images))


def bound_and_new(split: int, alpha: float) -> tuple[Bound, pd.DataFrame, np.ndarray]:
    """A bound from 60 reference images, and the scores and Dice of 60 new ones of the same skewed source."""
    tables = simulated(120, seed=split)
    dice = tables.evaluation["dice"].to_numpy()
    return fit_bound(tables.scores[:60], dice[:60], NAMES, alpha), tables.scores[60:], dice[60:]


@pytest.mark.parametrize("alpha", [0.1, 0.2])
def test_the_bound_covers_at_least_its_share_over_200_random_splits(alpha: float) -> None:
    """Marginal coverage, mean over splits, within its error."""
    covered = []
    for split in range(200):
        bound, scores, dice = bound_and_new(split, alpha)
        covered.append(np.mean(dice >= bound.lower(scores)))
    mean, error = np.mean(covered), np.std(covered) / np.sqrt(len(covered))
    assert mean >= 1 - alpha - 2 * error
    # And it is no empty promise: the rank leaves (1 + 1) / (30 + 1) at most on the other side.
    assert mean <= 1 - alpha + 1 / 31 + 2 * error


def test_a_bound_of_half_the_quantile_would_not_cover() -> None:
    """The test above can fail: the same with half the residual does."""
    covered = []
    for split in range(50):
        bound, scores, dice = bound_and_new(split, 0.1)
        assert bound.quantile is not None
        covered.append(np.mean(dice >= bound.model.expected_dice(scores) - bound.quantile / 2))
    assert np.mean(covered) < 0.88


@given(reference=st.lists(FINITE, min_size=1, max_size=30), values=st.lists(FINITE, max_size=10))
def test_p_values_are_the_counts_of_the_definition(reference: list[float], values: list[float]) -> None:
    found = conformal_p_values(np.array(reference), np.array(values))
    expected = [(1 + sum(known >= value for known in reference)) / (len(reference) + 1) for value in values]
    assert found.tolist() == pytest.approx(expected)


def test_p_values_of_exchangeable_values_are_not_too_small() -> None:
    rng = np.random.default_rng(0)
    found = np.concatenate(
        [conformal_p_values(sample[:40], sample[40:41]) for sample in rng.exponential(size=(4000, 41))]
    )
    for level in (0.05, 0.1, 0.25, 0.5):
        assert np.count_nonzero(found <= level) <= binom.ppf(0.999, len(found), level)
    assert np.mean(found <= 0.5) > 0.4  # nor far too large


@given(
    known=st.lists(st.tuples(FINITE, st.booleans()), min_size=1, max_size=25),
    values=st.lists(FINITE, min_size=1, max_size=8),
)
def test_failure_probability_is_the_isotonic_fit_with_the_image_as_a_failure(
    known: list[tuple[float, bool]], values: list[float]
) -> None:
    reference, failed = np.array([score for score, _ in known]), np.array([bad for _, bad in known])
    found = failure_probability(reference, failed, np.array(values))
    for value, probability in zip(values, found, strict=True):
        pairs = sorted([(score, 1, float(bad)) for score, bad in known] + [(value, 0, 1.0)], key=lambda p: p[:2])
        fit = isotonic_regression([outcome for _, _, outcome in pairs])
        assert probability == pytest.approx(fit[[place for _, place, _ in pairs].index(0)])
        assert probability >= 1 / (len(known) + 1) - 1e-12
    assert np.all(np.diff(found[np.argsort(values, kind="stable")]) >= -1e-12)


def test_failure_probability_of_no_score_is_unknown() -> None:
    found = failure_probability(np.array([0.0, 1.0]), np.array([False, True]), np.array([np.nan, 0.5]))
    assert np.isnan(found[0])
    assert not np.isnan(found[1])
