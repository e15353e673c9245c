"""Expected Dice: never better for a worse score, learnt from 10 images or 500, not better than it is for new ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from chorus.pipeline.metrics.failure_detection import spearman
from chorus.pipeline.reference.quality import cross_fitted, fit_quality
from tests.support.simulated import Tables, simulated

NAMES = ["uncertainty", "epistemic", "aleatoric", "pairwise_dice"]
SCORE = st.floats(0, 1, width=32)


def dice_of(tables: Tables) -> np.ndarray:
    return tables.evaluation["dice"].to_numpy(float)


@given(
    rows=st.lists(st.tuples(SCORE, SCORE, SCORE), min_size=5, max_size=30),
    image=st.tuples(SCORE, SCORE),
    step=st.floats(0, 2, width=32),
    worse=st.sampled_from(["uncertainty", "pairwise_dice"]),
)
def test_a_worse_score_never_means_a_better_dice(
    rows: list[tuple[float, float, float]], image: tuple[float, float], step: float, worse: str
) -> None:
    """Whatever the reference set, also one in which the scores lie."""
    frame = pd.DataFrame(rows, columns=["uncertainty", "pairwise_dice", "dice"])
    model = fit_quality(frame, frame["dice"].to_numpy(), ["uncertainty", "pairwise_dice"])
    one = pd.DataFrame([image], columns=["uncertainty", "pairwise_dice"])
    other = one.assign(**{worse: one[worse] + (step if worse == "uncertainty" else -step)})
    assert min(model.slopes, default=0) >= 0
    assert model.failure_scores(other)[0] >= model.failure_scores(one)[0] - 1e-9
    assert 0 <= model.expected_dice(other)[0] <= model.expected_dice(one)[0] + 1e-9 <= 1 + 1e-9


def test_the_expected_dice_is_that_of_new_images_on_average_and_in_order() -> None:
    known, new = simulated(200, seed=1), simulated(2000, seed=2)
    model = fit_quality(known.scores, dice_of(known), NAMES)
    expected = model.expected_dice(new.scores)
    assert expected.mean() == pytest.approx(dice_of(new).mean(), abs=0.01)
    assert spearmanr(expected, dice_of(new)).statistic > 0.86
    # Also among the bad ones, not just over all.
    worst = np.argsort(expected)[:200]
    assert expected[worst].mean() == pytest.approx(dice_of(new)[worst].mean(), abs=0.02)


@pytest.mark.parametrize("images", [10, 30, 100, 500])
def test_the_combination_is_about_as_good_as_the_best_single_score_or_better(images: int) -> None:
    new = simulated(1000, seed=77)
    risk = 1 - dice_of(new)
    single = max(abs(spearmanr(new.scores[name], risk).statistic) for name in NAMES)
    found = []
    for seed in range(10):
        known = simulated(images, seed=seed)
        model = fit_quality(known.scores, dice_of(known), NAMES)
        found.append(spearmanr(model.failure_scores(new.scores), risk).statistic)
    assert min(found) > single - 0.03
    if images >= 100:
        assert np.mean(found) > single


def test_one_broken_score_has_little_say_with_many_images() -> None:
    known = simulated(400, seed=3)
    noise = np.random.default_rng(0).normal(size=400)
    model = fit_quality(known.scores.assign(entropy=noise), dice_of(known), ["entropy", "uncertainty", "pairwise_dice"])
    slopes = dict(zip(model.scores, model.slopes, strict=True))
    assert slopes["entropy"] < 0.15 * max(slopes.values())


def test_one_score_that_is_far_out_is_not_outvoted_by_calm_ones() -> None:
    known = simulated(100, seed=3)
    model = fit_quality(known.scores, dice_of(known), NAMES)
    image = known.scores.sort_values("uncertainty")[:1]
    assert model.expected_dice(image)[0] > 0.9
    assert model.expected_dice(image.assign(epistemic=0.1))[0] < 0.7


def test_cross_fitted_scores_come_from_models_that_did_not_see_the_image() -> None:
    """Dice that no score foretells: fitted and asked of the same images it seems foretold, cross-fitted it does not."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(rng.normal(size=(40, 7)), columns=[f"s{k}" for k in range(7)])
    within, without = [], []
    for _ in range(20):
        dice = rng.random(40)
        names = list(frame.columns)
        within.append(spearman(fit_quality(frame, dice, names).failure_scores(frame), 1 - dice))
        without.append(spearman(cross_fitted(frame, dice, names)[0], 1 - dice))
    assert np.nanmean(within) > 0.1
    assert np.nanmean(without) < 0.05


def test_beyond_the_worst_reference_image_dice_goes_on_falling_to_zero() -> None:
    known = simulated(60, seed=4)
    model = fit_quality(known.scores, dice_of(known), NAMES)
    steps = model.dice_of(model.failure_knots[-1] + np.array([0.0, 0.1, 0.2, 5.0]))
    assert steps[0] == pytest.approx(model.dice_knots[-1])
    assert steps[:3].tolist() == pytest.approx([steps[0], steps[0] - 0.1, steps[0] - 0.2])
    assert steps[3] == 0


def test_constant_and_incomplete_scores_are_left_out_and_with_none_every_image_has_the_mean() -> None:
    known = simulated(30, seed=6)
    frame = known.scores.assign(entropy=0.3, aleatoric=known.scores["aleatoric"].where(known.scores.index > 0))
    assert fit_quality(frame, dice_of(known), ["entropy", "aleatoric", "uncertainty"]).scores == ["uncertainty"]
    model = fit_quality(frame, dice_of(known), ["entropy"])
    assert model.expected_dice(frame) == pytest.approx(np.full(30, dice_of(known).mean()))


def test_an_image_that_lacks_a_score_is_judged_by_the_others() -> None:
    known = simulated(100, seed=8)
    model = fit_quality(known.scores, dice_of(known), NAMES)
    hard = simulated(200, seed=9, difficulty=4).scores
    whole, part = model.failure_scores(hard), model.failure_scores(hard.assign(epistemic=np.nan))
    assert part.mean() == pytest.approx(whole.mean(), rel=0.15)
    assert np.isnan(model.failure_scores(hard.assign(**dict.fromkeys(NAMES, np.nan)))).all()


def test_equal_dice_and_equal_scores_are_no_error() -> None:
    known = simulated(12, seed=10)
    model = fit_quality(known.scores, np.full(12, 0.9), NAMES)
    assert model.expected_dice(known.scores) == pytest.approx(np.full(12, 0.9))
