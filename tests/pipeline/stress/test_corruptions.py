"""Corruptions: the same bytes for the same seed, the image's own kind of numbers, and worse at every level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from chorus.pipeline.stress.corruptions import (
    CHANNELS,
    COARSER,
    CORRUPTIONS,
    FINER,
    GAIN,
    LEVELS,
    Corruption,
    corrupted,
)
from tests.support.objects import discs

BY_NAME = {one.name: one for one in CORRUPTIONS}
KINDS = pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda one: one.name)
RESAMPLED = (FINER, COARSER)


def field(seed: int, shape: tuple[int, int] = (96, 112)) -> tuple[np.ndarray, np.ndarray]:
    """Nuclei on a dark ground in two channels, uint16, and their labels."""
    rng = np.random.default_rng(seed)
    places = [(*rng.uniform(0, shape), radius) for radius in rng.uniform(4, 10, 18)]
    labels = discs(*shape, places)
    other = np.roll(labels, 20, axis=1)
    signal = np.stack([300 + 2000 * (labels > 0), 500 + 1000 * (other > 0)])
    return (signal + rng.normal(0, 20, signal.shape)).astype(np.uint16), labels


@KINDS
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_results_are_of_the_image_and_of_the_seed(corruption: Corruption, dtype: str) -> None:
    image, labels = field(1)
    image = (image / (10 if dtype == "uint8" else 1)).astype(dtype)
    before = image.copy()
    for level in LEVELS:
        one, truth = corrupted(image, labels, corruption, level, 7)
        again, _ = corrupted(image, labels, corruption, level, 7)
        assert one.dtype == dtype
        assert truth.dtype == labels.dtype
        assert one.shape[1:] == truth.shape
        assert one.shape[0] == 2
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, again)
        if corruption.name not in RESAMPLED:
            np.testing.assert_array_equal(truth, labels)
    np.testing.assert_array_equal(image, before)


@KINDS
def test_every_level_is_worse(corruption: Corruption) -> None:
    """By structural similarity over five fields; where pixels change, by how far their number is from the image's."""
    likeness = []
    for level in LEVELS:
        values = []
        for seed in range(5):
            image, labels = field(seed)
            changed, _ = corrupted(image, labels, corruption, level, seed)
            if corruption.name in RESAMPLED:
                values.append(-abs(np.log(changed.size / image.size)))
            else:
                values.append(structural_similarity(image[0], changed[0], data_range=2000))
        likeness.append(np.mean(values))
    assert (np.diff(likeness) < 0).all(), likeness
    assert likeness[0] < 1 - 1e-4


@given(seed=st.integers(0, 2**32), level=st.sampled_from(list(LEVELS)), value=st.integers(0, 65535))
def test_an_even_image_does_not_break_anything(seed: int, level: int, value: int) -> None:
    image, labels = np.full((2, 20, 24), value, np.uint16), np.zeros((20, 24), np.int32)
    for corruption in CORRUPTIONS:
        assert corrupted(image, labels, corruption, level, seed)[0].dtype == np.uint16


def test_degrees_mean_what_they_say() -> None:
    image, labels = field(2)
    image = image.astype(np.float32)
    low, high = np.percentile(image[0], [0.5, 99.5])
    noise = corrupted(image, labels, BY_NAME["noise"], 3, 0)[0][0] - image[0]
    assert noise.std() / (high - low) == pytest.approx(0.18, rel=0.02)
    np.testing.assert_allclose(corrupted(image, labels, BY_NAME[GAIN], 3, 0)[0], 0.3 * image, rtol=1e-6)
    swapped = corrupted(image, labels, BY_NAME[CHANNELS], 5, 0)[0]
    assert np.corrcoef(swapped[0].ravel(), image[1].ravel())[0, 1] == pytest.approx(1)
    point = np.zeros((1, 41, 41), np.float32)
    point[0, 20, 20] = 1e6
    spread = corrupted(point + np.eye(41, dtype=np.float32), labels[:41, :41], BY_NAME["defocus"], 3, 0)[0][0]
    y = np.arange(41) - 20
    assert np.average(y**2, weights=spread.sum(axis=1)) == pytest.approx(4, rel=0.1)
    y, x = np.mgrid[:80, :80]
    board = (1000 + 8000 * ((y // 16 + x // 16) % 2))[None].astype(np.uint16)
    counted = corrupted(board, labels[:80, :80], BY_NAME["photons"], 3, 1)[0]
    assert counted[board == 9000].astype(float).std() == pytest.approx(8000 / np.sqrt(12), rel=0.05)
    finer, truth = corrupted(image, labels, BY_NAME[FINER], 5, 0)
    assert truth.shape == (2 * labels.shape[0], 2 * labels.shape[1])
    np.testing.assert_array_equal(truth[::2, ::2], labels)
    assert finer.shape[1:] == truth.shape
