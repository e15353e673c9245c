"""Failure-detection measures against plain loops of their definitions and against scikit-learn and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from chorus.pipeline.metrics.failure_detection import augrc, aurc, auroc, excess, failure_table, fpr_at_tpr, spearman

RISKS = st.lists(st.floats(0, 1, width=16), min_size=1, max_size=40)


def in_random_order(risk: list[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(seed).permutation(len(risk)).astype(float), np.array(risk)


@given(risk=RISKS, seed=st.integers(0, 99))
def test_aurc_and_augrc_are_the_loops_of_their_definitions(risk: list[float], seed: int) -> None:
    uncertainty, risks = in_random_order(risk, seed)
    order = sorted(range(len(risks)), key=lambda image: uncertainty[image])
    selective, general = [], []
    for accepted in range(1, len(order) + 1):
        total = math.fsum(risks[image] for image in order[:accepted])
        selective.append(total / accepted)
        general.append(total / len(order))
    assert aurc(uncertainty, risks) == pytest.approx(math.fsum(selective) / len(order))
    assert augrc(uncertainty, risks) == pytest.approx(math.fsum(general) / len(order))


@pytest.mark.parametrize("area", [aurc, augrc])
def test_equal_uncertainty_counts_as_the_mean_of_all_orders(area: object) -> None:
    rng = np.random.default_rng(1)
    uncertainty, risk = np.array([0.0, 1, 1, 1, 2]), np.array([0.1, 0.9, 0.0, 0.4, 0.2])
    broken = [area(uncertainty + 0.1 * rng.random(5), risk) for _ in range(4000)]  # type: ignore[operator]
    assert area(uncertainty, risk) == pytest.approx(np.mean(broken), abs=0.005)  # type: ignore[operator]


@given(risk=RISKS, seed=st.integers(0, 99))
def test_no_score_beats_the_oracle_and_its_reverse_is_the_worst(risk: list[float], seed: int) -> None:
    uncertainty, risks = in_random_order(risk, seed)
    for area in (aurc, augrc):
        assert excess(area, uncertainty, risks) >= -1e-12
        assert excess(area, risks, risks) == 0
        assert area(uncertainty, risks) <= area(-risks, risks) + 1e-12


def test_a_score_that_says_nothing_has_the_mean_risk_and_half_of_it() -> None:
    risk = np.linspace(0, 1, 1001)
    assert aurc(np.zeros(1001), risk) == pytest.approx(0.5)
    assert augrc(np.zeros(1001), risk) == pytest.approx(0.25, abs=1e-3)


@given(risk=st.lists(st.integers(0, 5), min_size=3, max_size=30), seed=st.integers(0, 99))
def test_spearman_is_that_of_scipy(risk: list[int], seed: int) -> None:
    uncertainty = np.random.default_rng(seed).integers(0, 6, len(risk)).astype(float)
    risks = np.array(risk, float)
    if np.ptp(uncertainty) == 0 or np.ptp(risks) == 0:
        assert math.isnan(spearman(uncertainty, risks))
    else:
        assert spearman(uncertainty, risks) == pytest.approx(spearmanr(uncertainty, risks).statistic)


@given(positive=st.lists(st.booleans(), min_size=2, max_size=30), seed=st.integers(0, 99))
def test_auroc_and_fpr_are_the_counts_of_their_definitions(positive: list[bool], seed: int) -> None:
    uncertainty = np.random.default_rng(seed).integers(0, 8, len(positive)).astype(float)
    truth = np.array(positive)
    if truth.all() or not truth.any():
        assert math.isnan(auroc(uncertainty, truth))
        assert math.isnan(fpr_at_tpr(uncertainty, truth))
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in uncertainty[truth] for b in uncertainty[~truth]]
    assert auroc(uncertainty, truth) == pytest.approx(np.mean(pairs))
    enough = [limit for limit in uncertainty if np.mean(uncertainty[truth] >= limit) >= 0.95]
    assert fpr_at_tpr(uncertainty, truth) == pytest.approx(
        min(np.mean(uncertainty[~truth] >= limit) for limit in enough)
    )


def test_the_table_has_every_measure_with_an_interval_around_it() -> None:
    rng = np.random.default_rng(3)
    dice = np.clip(1 - rng.exponential(0.1, 80), 0, 1)
    good, noise = 1 - dice + 0.02 * rng.normal(size=80), rng.normal(size=80)
    table = failure_table({"good": good, "noise": noise}, dice, tau=0.8, resamples=200)
    assert len(table) == 14
    assert (table["low"] <= table["value"] + 1e-9).all()
    assert (table["value"] <= table["high"] + 1e-9).all()
    found = table.set_index(["score", "measure"])
    assert found.loc[("good", "aurc"), "high"] < found.loc[("noise", "aurc"), "low"]
    assert found.loc[("good", "excess_aurc"), "value"] == pytest.approx(excess(aurc, good, 1 - dice))
    again = failure_table({"noise": noise}, dice, tau=0.8, resamples=200)
    assert again["low"].tolist() == table[table["score"] == "noise"]["low"].tolist()


def test_the_interval_of_a_mean_like_measure_covers_the_truth_about_as_often_as_it_says() -> None:
    """AUROC of a score with a known one: 0.76 for a shift of one standard deviation."""
    from scipy.stats import norm

    truth = norm.cdf(1 / np.sqrt(2))
    inside = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        failed = np.arange(120) < 60
        table = failure_table({"s": rng.normal(size=120) + failed}, np.where(failed, 0.5, 0.9), 0.8, resamples=80)
        row = table[table["measure"] == "auroc"].iloc[0]
        inside += row["low"] <= truth <= row["high"]
    assert inside >= 20
