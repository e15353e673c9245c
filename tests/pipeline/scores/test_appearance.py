"""How an image looks: exact for every cut, and what a plain calculation or the image's maker says."""

from __future__ import annotations

from functools import reduce
from operator import add
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from chorus.pipeline.scores.image_quality import appearance, appearance_columns
from chorus.pipeline.scores.registry import score_columns

PATCH = 4
DTYPES = [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64]


def scene(shape: tuple[int, int], seed: int, dtype: type) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    pixels = (rng.gamma(2.0, 30.0, (2, *shape)) + (0.25 if np.issubdtype(dtype, np.floating) else 0)).astype(dtype)
    return pixels, rng.integers(0, 3, shape).astype(np.uint8)


@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    cuts=st.tuples(st.sets(st.integers(1, 7)), st.sets(st.integers(1, 7))),
    dtype=st.sampled_from(DTYPES),
    shuffle=st.randoms(use_true_random=False),
)
def test_sums_are_equal_for_any_partition_and_order(
    shape: tuple[int, int], cuts: tuple[set[int], set[int]], dtype: type, shuffle: Random
) -> None:
    pixels, masks = scene(shape, 1, dtype)
    whole = appearance(pixels, masks, 3, multilabel=False, patch=PATCH)
    edges = [[0, *sorted(c * PATCH for c in cut if c * PATCH < n), n] for n, cut in zip(shape, cuts, strict=True)]
    parts = [
        appearance(pixels[:, a:b, c:d], masks[a:b, c:d], 3, multilabel=False, patch=PATCH)
        for a, b in zip(edges[0], edges[0][1:], strict=False)
        for c, d in zip(edges[1], edges[1][1:], strict=False)
    ]
    shuffle.shuffle(parts)
    assert reduce(add, parts) == whole
    names = ["a", "b"], ["cell", "debris"]
    found = appearance_columns(parts, *names)
    assert found == appearance_columns([whole], *names)
    assert set(found) <= {column.key for column in score_columns(names[1], names[0])}


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_equal_plain_loops(dtype: type) -> None:
    pixels, masks = scene((19, 14), 2, dtype)
    found = appearance_columns(
        [appearance(pixels, masks, 3, multilabel=False, patch=PATCH)], ["a", "b"], ["cell", "debris"]
    )
    for index, name in enumerate("ab"):
        values = pixels[index].astype(np.float64)
        assert found[f"intensity_mean:{name}"] == pytest.approx(values.mean(), rel=1e-6)
        assert found[f"intensity_std:{name}"] == pytest.approx(values.std(), rel=1e-6)
        assert found[f"background:{name}"] == pytest.approx(values[masks == 0].mean(), rel=1e-6)
        contrast = (values[masks > 0].mean() - values[masks == 0].mean()) / values.std()
        assert found[f"contrast:{name}"] == pytest.approx(contrast, rel=1e-5)
        noise, laplacian = [], []
        for y in range(1, 18):
            for x in range(1, 13):
                if y % PATCH in (0, PATCH - 1) or x % PATCH in (0, PATCH - 1):
                    continue
                around = values[y - 1 : y + 2, x - 1 : x + 2]
                noise.append(abs((around * [[1, -2, 1], [-2, 4, -2], [1, -2, 1]]).sum()))
                laplacian.append((around * [[0, 1, 0], [1, -4, 1], [0, 1, 0]]).sum())
        assert found[f"noise:{name}"] == pytest.approx(np.sqrt(np.pi / 2) * np.mean(noise) / 6, rel=1e-5)
        assert found[f"sharpness:{name}"] == pytest.approx(np.std(laplacian) / values.std(), rel=1e-5)


def test_noise_is_the_standard_deviation_of_the_noise_that_was_added_to_a_slope() -> None:
    rng = np.random.default_rng(3)
    slope = 5.0 * np.arange(400)[:, None] + 3.0 * np.arange(400)[None, :]
    pixels = (slope + rng.normal(0, 7, slope.shape)).astype(np.float32)[None]
    masks = np.zeros(slope.shape, np.uint8)
    found = appearance_columns([appearance(pixels, masks, 2, multilabel=False, patch=16)], ["dna"], ["cell"])
    assert found["noise:dna"] == pytest.approx(7, rel=0.02)
    assert not {"contrast:dna", "object_radius:cell"} & set(found)  # nothing was found


@pytest.mark.parametrize("radius", [6, 12, 20])
def test_the_radius_of_discs_is_found(radius: int) -> None:
    y, x = np.indices((636, 636))
    masks = ((y % 53 - 26) ** 2 + (x % 53 - 26) ** 2 <= radius**2).astype(np.uint8)
    pixels = np.zeros((1, 636, 636), np.uint8)
    found = appearance_columns([appearance(pixels, masks, 2, multilabel=False, patch=16)], ["dna"], ["cell"])
    assert found["object_radius:cell"] == pytest.approx(radius, rel=0.1)
    assert "sharpness:dna" not in found  # a flat image has none


def test_values_near_the_end_of_float32_do_not_fail() -> None:
    pixels = np.full((1, 8, 8), 3e38, np.float64)
    pixels[0, 4, 4] = -3e38
    found = appearance_columns(
        [appearance(pixels, np.zeros((8, 8), np.uint8), 2, multilabel=False, patch=8)], ["dna"], ["cell"]
    )
    assert np.isfinite(list(found.values())).all()
