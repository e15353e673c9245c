"""The simple baseline: Otsu by its definition, and a watershed that cuts what touches."""

from __future__ import annotations

import numpy as np
import pytest

from chorus.pipeline.metrics.baseline import otsu_mask, watershed_objects
from chorus.pipeline.metrics.objects import average_precision


def variance_between(pixels: np.ndarray, threshold: float) -> float:
    low, high = pixels[pixels <= threshold], pixels[pixels > threshold]
    if not low.size or not high.size:
        return -1.0
    return float(low.size * high.size * (low.mean() - high.mean()) ** 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_otsu_separates_where_the_variance_between_both_sides_is_largest(dtype: type) -> None:
    rng = np.random.default_rng(1)
    pixels = np.concatenate([rng.normal(60, 12, 700), rng.normal(150, 20, 200)]).clip(0, 255).astype(dtype)
    pixels = rng.permutation(pixels).reshape(3, 15, 20)
    best = max(np.unique(pixels).tolist(), key=lambda value: variance_between(pixels.astype(float), value))
    assert np.array_equal(otsu_mask(pixels), pixels > best)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint32, np.float32])
def test_otsu_finds_two_levels_in_any_type_and_nothing_in_one(dtype: type) -> None:
    pixels = np.full((1, 20, 20), 1000 if dtype is not np.uint8 else 10, dtype)
    assert not otsu_mask(pixels).any()
    pixels[0, 5:9, 5:9] = 200 if dtype is np.uint8 else 2_000_000_000
    assert np.array_equal(otsu_mask(pixels), pixels > pixels.min())


def test_watershed_cuts_discs_that_touch_and_leaves_single_ones_whole() -> None:
    y, x = np.mgrid[:80, :120]
    centres = [(25, 25), (25, 47), (25, 95), (60, 60)]
    truth = np.zeros((80, 120), np.int32)
    for number, (cy, cx) in enumerate(centres, 1):
        truth[(y - cy) ** 2 + (x - cx) ** 2 <= 12**2] = number
    found = watershed_objects(truth > 0)
    assert found.max() == len(centres)
    assert np.array_equal(found > 0, truth > 0)
    assert average_precision(truth, found)[4] == 1  # at an IoU of 0.7


def test_watershed_of_nothing_is_nothing() -> None:
    assert not watershed_objects(np.zeros((8, 8), bool)).any()
