"""Statistics of the non-zero pixels and their bounding box are those of NumPy, whatever the blocks and their order."""

from __future__ import annotations

from functools import reduce
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from chorus.pipeline.errors import ImageError
from chorus.pipeline.preprocessing.nonzero import NonzeroMoments, Within
from chorus.pipeline.preprocessing.preparation import Measure, Statistics, Survey, surveyed

MEASURES = frozenset(
    Measure(kind, channel, percent, within=within)
    for channel in (0, 1)
    for kind, percent, within in NonzeroMoments.found
)


def value(found: Statistics, kind: Literal["mean", "std"], channel: int, within: Within) -> float:
    return found[Measure(kind, channel, within=within)]


def extreme(found: Statistics, channel: int, percent: float) -> float:
    return found[Measure("percentile", channel, percent, within="crop")]


@st.composite
def volumes(draw: st.DrawFn) -> NDArray[Any]:
    """(t, channels, z, y, x), mostly 0, so that boxes are smaller than the volume."""
    shape = draw(st.tuples(st.integers(1, 2), st.just(2), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)))
    dtype: Any = draw(st.sampled_from([np.uint8, np.int16, np.float32]))
    values = st.integers(-50, 200) if dtype != np.uint8 else st.integers(0, 255)
    zeros = st.just(0)
    return draw(hnp.arrays(dtype, shape, elements=st.one_of(zeros, zeros, zeros, values), fill=zeros))


@settings(max_examples=200)
@given(volumes(), st.integers(1, 5), st.integers(1, 5), st.randoms(use_true_random=False))
def test_they_are_those_of_numpy_for_any_cut_and_order(volume: NDArray[Any], rows: int, cols: int, random: Any) -> None:
    times, _, depths, height, width = volume.shape
    corners = [
        (t, z, y, x)
        for t in range(times)
        for z in range(depths)
        for y in range(0, height, rows)
        for x in range(0, width, cols)
    ]
    random.shuffle(corners)
    surveys = []
    for t, z, y, x in corners:
        survey = Survey.begin(MEASURES, 2, volume.dtype)
        survey.update(volume[t, :, z, y : y + rows, x : x + cols], (t, z, y, x))
        surveys.append(survey)
    found = reduce(lambda a, b: a.merge(b), surveys).conclude().values

    nonzero = (volume != 0).any(axis=1)
    if not nonzero.any():
        assert set(found.values()) == {0.0}
        return
    box = np.ix_(*(np.arange(indices.min(), indices.max() + 1) for indices in np.nonzero(nonzero)))
    for channel in (0, 1):
        own = volume[:, channel].astype(np.float64)
        crop, inside = own[box], own[nonzero]
        assert value(found, "mean", channel, "crop") == pytest.approx(crop.mean(), abs=1e-9)
        assert value(found, "std", channel, "crop") == pytest.approx(crop.std(), abs=1e-9)
        assert value(found, "mean", channel, "nonzero") == pytest.approx(inside.mean(), abs=1e-9)
        assert value(found, "std", channel, "nonzero") == pytest.approx(inside.std(), abs=1e-9)
        assert (extreme(found, channel, 0), extreme(found, channel, 100)) == (crop.min(), crop.max())


def test_a_volume_in_one_block_has_the_statistics_of_its_planes() -> None:
    volume = np.random.default_rng(0).integers(0, 3, (2, 5, 9, 8)).astype(np.uint16)
    volume[:, :2] = volume[:, :, :3] = 0
    survey = Survey.begin(MEASURES, 2, volume.dtype)
    survey.update(volume)
    planes = [volume[:, z] for z in range(volume.shape[1])]
    assert survey.conclude().values == surveyed(MEASURES, planes)
    assert value(surveyed(MEASURES, planes), "mean", 0, "crop") == pytest.approx(volume[0, 2:, 3:].mean())


def test_a_pixel_that_is_not_finite_is_refused() -> None:
    survey = Survey.begin(MEASURES, 2, np.float32)
    with pytest.raises(ImageError):
        survey.update(np.full((2, 3, 3), np.nan, np.float32))
