"""Texture: the same from any cut into regions, that of sums by hand, and blind to gain."""

from __future__ import annotations

import functools
import math
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chorus.pipeline.scores.appearance_scores import TEXTURE_SCORES
from chorus.pipeline.scores.image_quality import Appearance, appearance, appearance_columns
from chorus.pipeline.scores.texture import SCALES, details, texture_sums


def of_plane(plane: np.ndarray, patch: int = 16) -> dict[str, float]:
    masks = np.zeros(plane.shape[1:], np.uint8)
    sums = appearance(plane, masks, 2, multilabel=False, patch=patch)
    found = appearance_columns([sums], [f"c{index}" for index in range(len(plane))], ["nucleus"])
    return {name: value for name, value in found.items() if name.partition(":")[0] in {s.name for s in TEXTURE_SCORES}}


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    height=st.integers(20, 90),
    width=st.integers(20, 90),
    cut=st.sampled_from([16, 32, 48]),
    kind=st.sampled_from(["uint8", "uint16", "float32"]),
)
def test_any_cut_gives_the_same_sums(seed: int, height: int, width: int, cut: int, kind: str) -> None:
    plane = np.random.default_rng(seed).gamma(2, 20, (2, height, width)).astype(kind)
    parts = [
        texture_sums(plane[:, y : y + cut, x : x + cut], 16)
        for y in range(0, height, cut)
        for x in range(0, width, cut)
    ]
    whole = texture_sums(plane, 16)
    for level in range(len(SCALES)):
        assert functools.reduce(operator.add, (part[level] for part in parts)) == whole[level]


@pytest.mark.parametrize("patch", [16, 17, 20, 24])
def test_details_are_those_of_blocks_within_patches(patch: int) -> None:
    plane = np.random.default_rng(3).integers(0, 4000, (1, 61, 75), dtype=np.uint16)
    blocks = [
        plane[0, y : y + 8, x : x + 8].astype(float)
        for top in range(0, 61, patch)
        for left in range(0, 75, patch)
        for y in range(top, min(top + patch, 61) - 7, 8)
        for x in range(left, min(left + patch, 75) - 7, 8)
    ]
    for level, scale in enumerate(SCALES):
        straight, diagonal, strengths, means = [], [], [], []
        for block in blocks:
            pooled = block.reshape(8 // scale, scale, 8 // scale, scale).mean(axis=(1, 3))
            for y in range(0, len(pooled), 2):
                for x in range(0, len(pooled), 2):
                    (a, b), (c, d) = pooled[y : y + 2, x : x + 2]
                    across, down = (a - b + c - d) / 4, (a + b - c - d) / 4
                    straight.append(across**2 + down**2)
                    strengths.append(math.hypot(across, down))
                    diagonal.append(((a - b - c + d) / 4) ** 2)
                    means.append((a + b + c + d) / 4)
        found = details(texture_sums(plane, patch)[level], 0)
        assert found.straight == pytest.approx(math.sqrt(np.mean(straight)), rel=1e-6)
        assert found.diagonal == pytest.approx(math.sqrt(np.mean(diagonal)), rel=1e-6)
        assert found.brightness == pytest.approx(np.corrcoef(strengths, means)[0, 1], abs=1e-5)


def test_gain_changes_nothing_and_blur_the_finest_scale_most() -> None:
    from scipy.ndimage import gaussian_filter

    plane = gaussian_filter(np.random.default_rng(5).normal(0, 1, (128, 160)), 1)[None] * 300 + 5000
    before, brighter, blurred = (of_plane(one) for one in (plane, 4 * plane, gaussian_filter(plane, (0, 1.5, 1.5))))
    assert brighter == pytest.approx(before)
    falls = [before[f"detail_{scale}:c0"] - blurred[f"detail_{scale}:c0"] for scale in SCALES]
    assert falls[0] > falls[1] > falls[2] > -1
    assert before["variation:c0"] == pytest.approx(math.log2(plane.std() / plane.mean()), abs=1e-6)


def test_an_even_or_tiny_image_has_no_texture() -> None:
    assert not of_plane(np.full((1, 40, 40), 7, np.uint16)).keys() - {"variation:c0"}
    assert not of_plane(np.full((1, 40, 40), 0, np.uint16))
    tiny = of_plane(np.random.default_rng(1).integers(0, 9, (1, 5, 40), dtype=np.uint16))
    assert set(tiny) == {"variation:c0"}


def test_records_of_earlier_versions_have_none() -> None:
    plane = np.random.default_rng(1).integers(0, 99, (1, 32, 32), dtype=np.uint16)
    sums = appearance(plane, np.zeros((32, 32), np.uint8), 2, multilabel=False, patch=16)
    old = Appearance.model_validate(sums.model_dump(exclude={"texture"}))
    assert old.texture is None
    assert (old + sums).texture is None
    assert "sharpness:c" in appearance_columns([old], ["c"], ["k"])
    assert "detail_1:c" not in appearance_columns([old], ["c"], ["k"])
