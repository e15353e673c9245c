"""A run against its reference: effects as plain loops have them, no more alarms than promised, known shifts found."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import energy_distance, norm

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.reference.reference import Reference, calibrate_from
from chorus.pipeline.shift.shift import feature_images, find_shift
from chorus.pipeline.shift.two_samples import MOST_POINTS, compare_points, compare_values, detectable, energy_distances
from tests.support.simulated import Tables, simulated

VALUES = st.lists(st.integers(0, 6).map(float), min_size=2, max_size=12).map(np.array)


@pytest.fixture(scope="module")
def reference() -> Reference:
    tables = simulated(60, seed=0, empty=4)
    return calibrate_from(tables.scores, tables.evaluation, tables.features, ensemble="hash")


def of(reference: Reference, tables: Tables) -> Reference:
    """The same reference with the scores of other images of the same kind: quicker than to calibrate anew."""
    scores = {name: [None if pd.isna(v) else float(v) for v in tables.scores[name]] for name in reference.scores}
    empty = (tables.scores["status"] == "empty").tolist()
    features = np.stack(tables.features["features"].tolist()).astype(np.float32)
    names = tables.scores["name"].tolist()
    return reference.model_copy(update={"scores": scores, "empty": empty, "features": features, "names": names} | {
        name: [0.5] * len(names) for name in ("dice", "failure_scores", "expected_dice")
    })  # fmt: skip


def plain_delta(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    """Cliff's delta and the unbiased estimate of its variance, from the matrix of all pairs."""
    n, m = len(first), len(second)
    signs = [[int(y > x) - int(y < x) for y in second] for x in first]
    delta = sum(map(sum, signs)) / (n * m)
    rows = sum((sum(row) / m - delta) ** 2 for row in signs)
    columns = sum((sum(column) / n - delta) ** 2 for column in zip(*signs, strict=True))
    cells = sum((sign - delta) ** 2 for row in signs for sign in row)
    variance = (m**2 * rows + n**2 * columns - cells) / (n * m * (n - 1) * (m - 1))
    return delta, max(variance, (1 - delta**2) / (n * m - 1))


@given(VALUES, VALUES)
def test_cliffs_delta_and_its_interval_are_those_of_all_pairs(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> None:
    found = compare_values(first, second)
    delta, variance = plain_delta(first, second)
    assert found.effect == pytest.approx(delta, abs=1e-12)
    assert found.low is not None
    assert found.high is not None
    assert -1 <= found.low <= delta + 1e-12
    assert delta - 1e-12 <= found.high <= 1
    if abs(delta) < 1:
        z = norm.ppf(0.975)
        half = z * math.sqrt(variance) * math.sqrt((1 - delta**2) ** 2 + z**2 * variance)
        below = 1 - delta**2 + z**2 * variance
        assert found.low == pytest.approx(max((delta - delta**3 - half) / below, -1), abs=1e-9)
        assert found.high == pytest.approx(min((delta - delta**3 + half) / below, 1), abs=1e-9)
    turned = compare_values(second, first)
    assert turned.effect == pytest.approx(-delta, abs=1e-12)
    assert turned.p == pytest.approx(found.p, abs=1e-9)


def test_the_interval_holds_the_true_delta_nineteen_times_in_twenty() -> None:
    rng, true = np.random.default_rng(0), 2 * norm.cdf(0.8 / math.sqrt(2)) - 1
    found = [compare_values(rng.normal(size=30), rng.normal(0.8, size=40)) for _ in range(600)]
    share = np.mean([one.low <= true <= one.high for one in found])
    assert 0.92 <= share <= 0.98


def test_a_shift_of_the_size_that_is_called_detectable_is_found_four_times_in_five() -> None:
    rng, first, second = np.random.default_rng(0), 50, 70
    delta = detectable(first, second, 0.01)
    away = norm.ppf((delta + 1) / 2) * math.sqrt(2)
    found = [compare_values(rng.normal(size=first), rng.normal(away, size=second)).p <= 0.01 for _ in range(600)]
    assert 0.75 <= np.mean(found) <= 0.87


@given(VALUES, VALUES)
@settings(max_examples=30)
def test_energy_distances_are_those_of_scipy(first: NDArray[np.float64], second: NDArray[np.float64]) -> None:
    pooled = np.concatenate([first, second])
    labels = (np.arange(len(pooled)) >= len(first)).astype(float)[:, None]
    found = energy_distances(np.abs(pooled[:, None] - pooled[None]), labels)[0]
    assert found == pytest.approx(energy_distance(first, second) ** 2, abs=1e-9)


def test_clouds_of_features_that_do_not_differ_raise_no_more_alarms_than_alpha() -> None:
    """Although there are far more features than images, so that any ten of them span a space of their own."""
    rng, runs = np.random.default_rng(0), 100
    mixing = rng.normal(size=(3, 60))

    def cloud(images: int) -> NDArray[np.float64]:
        return rng.normal(size=(images, 3)) @ mixing + rng.normal(size=(images, 60))

    found = [compare_points(cloud(8), cloud(16)) for _ in range(runs)]
    assert np.mean([one.p <= 0.05 for one in found if one is not None]) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize(("shift", "spread"), [(1.0, 1.0), (0.0, 3.0)])
def test_clouds_of_another_place_or_another_spread_are_told_apart(shift: float, spread: float) -> None:
    rng = np.random.default_rng(0)
    found = compare_points(rng.normal(size=(80, 6)), rng.normal(shift, spread, size=(120, 6)))
    assert found is not None
    assert found.p <= 0.001
    assert found.effect > 0.5
    assert compare_points(np.ones((9, 3)), np.ones((9, 3))) is None
    assert compare_points(rng.normal(size=(4, 3)), rng.normal(size=(9, 3))) is None


def test_a_shift_along_a_direction_in_which_images_hardly_differ_is_found() -> None:
    rng = np.random.default_rng(0)
    spread = np.array([30.0, 20.0, 10.0, 1.0])
    mixing = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    first, second = ((rng.normal(size=(60, 4)) * spread + [0, 0, 0, away]) @ mixing for away in (0, 1.5))
    found = compare_points(first, second)
    assert found is not None
    assert found.p <= 0.01
    assert found.effect > 0.4


def test_runs_without_a_shift_raise_no_more_alarms_than_alpha(reference: Reference) -> None:
    runs, alarms = 120, 0
    for seed in range(runs):
        known = of(reference, simulated(50, seed=2 * seed, empty=3))
        run = simulated(40, seed=2 * seed + 1, empty=2)
        alarms += min(test.p_adjusted for test in find_shift(run.scores, known).tests) <= 0.05
    assert alarms / runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)


def test_a_known_shift_is_found_and_named(reference: Reference) -> None:
    found = []
    for seed in range(20):
        run = simulated(80, seed=100 + seed, difficulty=1.0, feature_shift=2.0)
        shift = find_shift(run.scores, reference, run.features)
        assert shift.found
        found.append({test.name for test in shift.tests if test.shifted})
        assert any(line.startswith("shift in uncertainty: ") for line in shift.sentences)
        assert any(line.startswith("shift in features: encoders see other images") for line in shift.sentences)
    for name in ("uncertainty", "pairwise_dice", "features"):
        assert sum(name in names for names in found) >= 19
    assert sum("area_fraction:nucleus" in names for names in found) <= 2


def test_a_difference_that_is_no_chance_and_yet_negligible_is_no_shift(reference: Reference) -> None:
    known = of(reference, simulated(3000, seed=0))
    run = simulated(20_000, seed=1, difficulty=0.1)
    shift = find_shift(run.scores, known)
    assert any(test.p_adjusted < 1e-3 for test in shift.tests)
    assert not shift.found
    assert any("no chance and yet negligible" in line for line in shift.sentences)


def test_the_order_of_the_rows_changes_nothing(reference: Reference) -> None:
    run = simulated(70, seed=3, empty=2)
    scores = run.scores.assign(name=[f"p{i % 2}.ome.zarr/{'AB'[i // 2 % 2]}/{i // 4 % 3}/{i}" for i in range(70)])
    features = run.features.assign(name=scores["name"])
    table = pd.DataFrame({"name": scores["name"], "day": np.arange(70) % 7, "who": ["x", "y"] * 35})
    found = find_shift(scores, reference, features, table)
    order = np.random.default_rng(0).permutation(70)
    again = find_shift(scores.iloc[order], reference, features.iloc[order[::-1]], table.iloc[order])
    assert again.model_dump_json() == found.model_dump_json()


def test_how_images_look_is_compared_where_both_sides_have_it() -> None:
    looks = ["intensity_mean:dna", "intensity_std:dna", "noise:dna", "sharpness:dna", "object_radius:nucleus"]

    def looking(tables: Tables, bright: float) -> pd.DataFrame:
        values = np.random.default_rng(len(tables.scores)).normal(size=(len(tables.scores), len(looks)))
        return tables.scores.assign(**dict(zip(looks, (values + np.array([bright, 0, 0, 0, 0])).T, strict=True)))

    tables, run = simulated(60, seed=0), simulated(50, seed=1)
    known = calibrate_from(looking(tables, 0), tables.evaluation, ensemble="hash")
    shift = find_shift(looking(run, 2), known)
    assert {test.kind for test in shift.tests} == {
        "intensity",
        "noise",
        "sharpness",
        "object size",
        "uncertainty",
        "prior",
    }
    assert [test.name for test in shift.tests if test.shifted] == ["intensity_mean:dna"]
    assert shift.sentences[0].startswith("shift in intensity: mean intensity of dna is higher")
    absent = find_shift(run.scores, known)
    assert {test.kind for test in absent.tests} == {"uncertainty", "prior"}
    older = calibrate_from(tables.scores, tables.evaluation, ensemble="hash")
    assert any(
        "the reference set lacks them: mean intensity of dna" in one
        for one in find_shift(looking(run, 2), older).sentences
    )


def test_what_a_small_run_cannot_show_is_said(reference: Reference) -> None:
    assert any("3 images are too few" in line for line in find_shift(simulated(3, seed=1).scores, reference).sentences)
    few = find_shift(simulated(30, seed=1).scores, reference).sentences
    assert any("only a shift of Cliff's delta 0.4" in line for line in few)
    assert find_shift(simulated(1, seed=1).scores, reference).tests == []


def test_failed_images_are_left_out_and_none_at_all_is_refused(reference: Reference) -> None:
    run = simulated(20, seed=1)
    scores = run.scores.assign(status=["failed"] * 5 + ["done"] * 15)
    shift = find_shift(scores, reference, run.features)
    assert shift.images == 15
    assert "5 images failed and are left out" in shift.sentences
    with pytest.raises(RefusedError, match="no image of the run has a result"):
        find_shift(run.scores.assign(status="failed"), reference)


def test_of_many_images_a_fixed_draw_of_features_is_looked_at() -> None:
    run = simulated(3 * MOST_POINTS, seed=1)
    names = feature_images(run.scores)
    assert len(set(names)) == MOST_POINTS
    assert names == feature_images(run.scores.sample(frac=1, random_state=0))
    assert all(a < b for a, b in itertools.pairwise(names))
