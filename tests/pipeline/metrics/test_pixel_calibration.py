"""Pixel calibration: histograms that add up, ECE by a plain loop, temperatures that are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, softmax

from chorus.pipeline.metrics.calibration_error import (
    PixelHistogram,
    expected_calibration_error,
    histogram_of,
    pixel_histogram,
    reliability,
    temperatures,
)
from chorus.pipeline.scores.image_scores import FIXED_POINT

NAMES = ["background", "nucleus", "debris"]


def window(seed: int, shape: tuple[int, int] = (20, 17)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probability = softmax(2 * rng.normal(size=(3, *shape)), axis=0).astype(np.float32)
    return probability, rng.integers(-1, 4, shape)


@given(cut=st.integers(1, 19), seed=st.integers(0, 20))
def test_histograms_of_parts_add_up_to_that_of_the_whole(cut: int, seed: int) -> None:
    probability, truth = window(seed)
    parts = [
        pixel_histogram(probability[:, :cut], truth[:cut], NAMES),
        pixel_histogram(probability[:, cut:], truth[cut:], NAMES),
    ]
    whole = pixel_histogram(probability, truth, NAMES)
    assert parts[0] + parts[1] == parts[1] + parts[0] == whole
    assert PixelHistogram.model_validate_json(whole.model_dump_json()) == whole


@given(seed=st.integers(0, 20))
def test_ece_is_that_of_a_plain_loop(seed: int) -> None:
    probability, truth = window(seed)
    found = expected_calibration_error(pixel_histogram(probability, truth, NAMES))
    known = (truth >= 0) & (truth < 3)
    rows = [(probability[k][known].astype(float), truth[known] == k) for k in range(3)]
    best = probability.argmax(axis=0)[known]
    rows.append((probability.max(axis=0)[known].astype(float), best == truth[known]))
    for name, (said, hits) in zip([*NAMES, "predicted"], rows, strict=True):
        error = 0.0
        for place in range(15):
            inside = np.minimum((said * 15).astype(int), 14) == place
            if inside.any():
                error += abs(hits[inside].mean() - said[inside].mean()) * inside.sum() / len(said)
        assert found[name] == pytest.approx(error, abs=1e-8)


def test_the_diagram_of_calibrated_probabilities_is_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    said = rng.random((1, 200_000))
    histogram = histogram_of(said, rng.random(said.shape) < said, ["nucleus"])
    table = reliability(histogram)
    assert (table["accuracy"] - table["confidence"]).abs().max() < 0.02
    assert table["pixels"].sum() == 200_000
    assert expected_calibration_error(histogram)["nucleus"] < 0.01
    assert temperatures(histogram)["nucleus"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_the_temperature_of_probabilities_that_are_too_bold_is_found_and_mends_them(temperature: float) -> None:
    rng = np.random.default_rng(1)
    true = 1.5 * rng.normal(size=(1, 200_000))
    hits = rng.random(true.shape) < expit(true)
    said = expit(true * temperature)
    histogram = histogram_of(said, hits, ["nucleus"])
    found = temperatures(histogram)["nucleus"]
    assert found == pytest.approx(temperature, rel=0.03)
    unbinned = minimize_scalar(
        lambda t: np.mean(np.logaddexp(0, np.where(hits, -1, 1) * logit(said) / t)), bounds=(0.1, 10), method="bounded"
    )
    assert found == pytest.approx(unbinned.x, rel=0.02)
    mended = expit(logit(said) / found)
    assert expected_calibration_error(histogram_of(mended, hits, ["n"]))["n"] < 0.01


def test_certain_pixels_and_absent_classes_are_no_error() -> None:
    probability = np.zeros((2, 2, 3), np.float16)
    probability[0] = 1
    histogram = pixel_histogram(probability, np.zeros((2, 3), np.uint8), ["background", "nucleus"])
    assert expected_calibration_error(histogram) == {"background": 0, "nucleus": 0, "predicted": 0}
    assert temperatures(histogram) == {"background": 1, "nucleus": 1, "predicted": 1}
    nothing = pixel_histogram(probability, np.full((2, 3), 255, np.uint8), ["background", "nucleus"])
    assert all(np.isnan(value) for value in expected_calibration_error(nothing).values())


def test_sums_are_exact_integers_however_many_pixels() -> None:
    said = np.full((1, 300_000), 1.0)
    histogram = histogram_of(said, np.ones(said.shape, bool), ["nucleus"])
    assert histogram.confidence[0][-1] == 300_000 * FIXED_POINT
    many = histogram
    for _ in range(40):
        many = many + many
    assert many.confidence[0][-1] == 300_000 * FIXED_POINT * 2**40


def test_histograms_of_other_classes_do_not_add_up() -> None:
    first, second = (histogram_of(np.ones((1, 1)), np.ones((1, 1), bool), [name]) for name in "ab")
    with pytest.raises(ValueError, match="do not add up"):
        first + second
