"""Statistics are exact, and neither the cut of an image nor the order of its blocks changes a bit of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from functools import reduce
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from chorus.pipeline.errors import ImageError, RefusedError
from chorus.pipeline.preprocessing.normalisation import (
    ChannelScaling,
    MeanStd,
    Normalisation,
    NormalisedInput,
    Percentile,
    Unchanged,
    apply,
    dtype_divisor,
    normalised,
)
from chorus.pipeline.preprocessing.preparation import ALL_CHANNELS, Measure, Survey, spread_message, surveyed
from chorus.pipeline.preprocessing.sketches import RadixSearch

DTYPES = [np.dtype(name) for name in ("?", "u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8")]
PER_IMAGE = MeanStd(per="image")
SETTINGS: TypeAdapter[Normalisation] = TypeAdapter(Normalisation)


def elements(dtype: np.dtype[Any]) -> st.SearchStrategy[Any] | None:
    if dtype.kind != "f":
        return None
    # Every magnitude, subnormal float32 included; short of float32's limit, so that rounding stays inside.
    limit = float(np.finfo(np.float16 if dtype.itemsize == 2 else np.float32).max) / 4
    return st.floats(-limit, limit, width=min(dtype.itemsize * 8, 32))


@st.composite
def images(draw: st.DrawFn) -> NDArray[Any]:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=7))
    return draw(hnp.arrays(dtype, shape, elements=elements(dtype)))


@st.composite
def percentiles(draw: st.DrawFn) -> Percentile:
    low = draw(st.floats(0, 99))
    return Percentile(low=low, high=draw(st.floats(low, 100, exclude_min=True)))


normalisations = st.one_of(st.just(PER_IMAGE), percentiles())


def cut(image: NDArray[Any], rows: int, columns: int) -> list[NDArray[Any]]:
    _, height, width = image.shape
    return [image[:, y : y + rows, x : x + columns] for y in range(0, height, rows) for x in range(0, width, columns)]


def scaling_of(blocks: Sequence[NDArray[Any]], normalisation: Normalisation) -> ChannelScaling:
    prepared = NormalisedInput(normalisation, len(blocks[0]))
    return prepared.scaling(blocks[0].dtype, surveyed(prepared.measures, blocks))


def whole_scaling(image: NDArray[Any], normalisation: Normalisation) -> ChannelScaling:
    return scaling_of([image], normalisation)


def by_merging(
    blocks: Sequence[NDArray[Any]], measures: Collection[Measure], merge: Callable[[list[Survey]], Survey]
) -> dict[Measure, float]:
    """Statistics as workers would take them: each pass, a survey of every block, merged by `merge`."""
    survey = Survey.begin(measures, len(blocks[0]), blocks[0].dtype)
    while not survey.complete:
        surveys = [copy.deepcopy(survey) for _ in blocks]
        for one, block in zip(surveys, blocks, strict=True):
            one.update(block)
        survey = merge(surveys).conclude()
    return survey.values


def from_the_left(surveys: list[Survey]) -> Survey:
    return reduce(lambda a, b: a.merge(b), surveys)


def backwards_from_the_right(surveys: list[Survey]) -> Survey:
    return reduce(lambda a, b: b.merge(a), surveys[::-1])


def as_a_tree(surveys: list[Survey]) -> Survey:
    if len(surveys) == 1:
        return surveys[0]
    middle = len(surveys) // 2
    return as_a_tree(surveys[middle:]).merge(as_a_tree(surveys[:middle]))


@st.composite
def measures_of_channels(draw: st.DrawFn, channels: int) -> set[Measure]:
    channel = st.integers(ALL_CHANNELS, channels - 1)
    kinds: list[Literal["mean", "std"]] = ["mean", "std"]
    moments = st.builds(Measure, st.sampled_from(kinds), channel)
    percentile = st.builds(Measure, st.just("percentile"), channel, st.floats(0, 100))
    return draw(st.sets(st.one_of(moments, percentile), min_size=1, max_size=6))


@settings(max_examples=300)
@given(images(), normalisations, st.integers(1, 7), st.integers(1, 7), st.randoms(use_true_random=False))
def test_statistics_do_not_depend_on_the_cut_or_the_order(
    image: NDArray[Any], normalisation: Normalisation, rows: int, columns: int, random: Any
) -> None:
    blocks = cut(image, rows, columns)
    random.shuffle(blocks)
    assert scaling_of(blocks, normalisation) == whole_scaling(image, normalisation)


@given(images(), st.integers(2, 7), st.data())
def test_merging_surveys_is_associative_and_commutative(image: NDArray[Any], rows: int, data: st.DataObject) -> None:
    measures = data.draw(measures_of_channels(len(image)))
    expected = surveyed(measures, [image])
    for merge in (from_the_left, backwards_from_the_right, as_a_tree):
        assert by_merging(cut(image, rows, 4), measures, merge) == expected


@given(images(), st.data())
def test_statistics_over_all_channels_are_those_of_one_channel_with_all_pixels(
    image: NDArray[Any], data: st.DataObject
) -> None:
    measures = data.draw(measures_of_channels(1))
    joint = {Measure(m.kind, ALL_CHANNELS, m.percent) for m in measures}
    row = image.reshape(1, 1, -1)
    found, expected = surveyed(joint, [image]), surveyed({Measure(m.kind, 0, m.percent) for m in measures}, [row])
    assert sorted(found.values()) == sorted(expected.values())


@pytest.mark.parametrize("normalisation", [PER_IMAGE, Percentile(low=1, high=99)])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_merging_leaves_the_merged_surveys_as_they_were(normalisation: Normalisation, dtype: type) -> None:
    block = np.arange(12).reshape(1, 3, 4).astype(dtype)
    a, b = (Survey.begin(NormalisedInput(normalisation, 1).measures, 1, dtype) for _ in range(2))
    a.update(block)
    b.update(block + block)
    before = a.conclude(), b.conclude()
    a.merge(b).update(block)
    after = a.conclude(), b.conclude()
    assert repr(before) == repr(after)


@settings(max_examples=300)
@given(images(), percentiles())
def test_percentiles_are_numpys_linear_ones_of_the_float32_values(image: NDArray[Any], settings_: Percentile) -> None:
    scaling = whole_scaling(image, settings_)
    values = image.astype(np.float32).astype(np.float64)
    low, high = np.percentile(values, [settings_.low, settings_.high], axis=(1, 2), method="linear")
    # Where they are equal, the range takes their place.
    equal = high - low < np.finfo(np.float32).tiny
    low, high = np.where(equal, values.min(axis=(1, 2)), low), np.where(equal, values.max(axis=(1, 2)), high)
    size = np.abs(values).max()
    np.testing.assert_allclose(scaling.offset, low, rtol=1e-12, atol=1e-13 * size)
    for found, spread in zip(scaling.scale, high - low, strict=True):
        if found:
            assert 1 / found == pytest.approx(spread, rel=1e-9, abs=1e-13 * size)
        else:
            assert spread <= 1.2e-38


@settings(max_examples=300)
@given(images())
def test_mean_and_std_are_exact_sums_rounded_once(image: NDArray[Any]) -> None:
    scaling = whole_scaling(image, PER_IMAGE)
    for channel, offset, scale in zip(image, scaling.offset, scaling.scale, strict=True):
        values = [Fraction(float(value)) for value in channel.astype(np.float32).flat]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        assert offset == float(mean)
        std = float(variance) ** 0.5
        assert scale == (pytest.approx(1 / std, rel=1e-15) if std >= np.finfo(np.float32).tiny else 0)


@given(images(), normalisations, st.data())
def test_applying_to_a_crop_gives_the_crop_of_the_applied(
    image: NDArray[Any], normalisation: Normalisation, data: st.DataObject
) -> None:
    scaling = whole_scaling(image, normalisation)
    _, height, width = image.shape
    y, x = data.draw(st.slices(height)), data.draw(st.slices(width))
    with np.errstate(over="ignore", invalid="ignore"):
        found = apply(image, scaling)
        assert found.dtype == np.float32
        assert apply(image[:, y, x], scaling).tobytes() == found[:, y, x].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_image_of_every_dtype_has_numpys_statistics(dtype: np.dtype[Any]) -> None:
    drawn = np.random.default_rng(3).gamma(2, 20, (2, 700, 600))
    image = drawn.astype(dtype) if dtype.kind != "b" else drawn > 30
    values = image.astype(np.float32).astype(np.float64)
    found = normalised(image, PER_IMAGE)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(found.std(axis=(1, 2)), 1, atol=1e-4)
    scaling = whole_scaling(image, Percentile(low=5, high=99.8))
    assert scaling.offset == tuple(np.percentile(values, 5, axis=(1, 2)))


@pytest.mark.parametrize("normalisation", [PER_IMAGE, Percentile(low=1, high=99)])
@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_channel_becomes_zeros_and_is_flagged(normalisation: Normalisation, value: int) -> None:
    for dtype in (np.uint8, np.float32):
        image = np.stack([np.full((3, 4), value), np.arange(12).reshape(3, 4)]).astype(dtype)
        message = spread_message(surveyed(NormalisedInput(normalisation, 2).measures, [image]))
        assert message == "a channel has the same value in every pixel; it was taken as zero"
        assert not spread_message(surveyed(NormalisedInput(normalisation, 1).measures, [image[1:]]))
        first, second = normalised(image, normalisation)
        assert not first.any()
        assert second.any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("background", [0, 7])
def test_a_sparse_channel_is_scaled_by_its_range_and_that_is_said(dtype: type[np.generic], background: int) -> None:
    image = np.full((1, 100, 100), background, dtype)
    image[0, 3:6, 3:6] = 107
    normalisation = Percentile(low=1, high=99.8)
    measures = NormalisedInput(normalisation, 1).measures
    assert spread_message(surveyed(measures, [image])) == (
        "a channel has the same value at its percentiles; it was scaled by its least and greatest value"
    )
    np.testing.assert_allclose(normalised(image, normalisation), image == 107)


def test_a_channel_with_some_spread_between_its_percentiles_is_scaled_by_them_alone() -> None:
    image = np.full((1, 100, 100), 5, np.uint16)
    image[0, :, :2] = 6
    image[0, 0, 0] = 60_000
    assert whole_scaling(image, Percentile(low=1, high=99)) == ChannelScaling((5.0,), (1.0,))


def test_negative_floats_are_ordered_below_positive_ones() -> None:
    image = np.array([[[-3.5, -1e-40, -0.0, 0.0, 2.0]]], np.float32)
    assert whole_scaling(image, Percentile(low=0, high=100)) == ChannelScaling((-3.5,), (1 / 5.5,))


@pytest.mark.parametrize("normalisation", [PER_IMAGE, Percentile(low=1, high=99)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_pixels_that_are_not_finite_are_an_image_error(normalisation: Normalisation, value: float) -> None:
    with pytest.raises(ImageError, match="undefined; replace them"):
        whole_scaling(np.array([[[1.0, value]]]), normalisation)


def test_blocks_of_two_dtypes_are_refused() -> None:
    sketch = RadixSearch.begin((1.0, 99.0), 1, np.dtype(np.uint8))
    with pytest.raises(ValueError, match="uint16"):
        sketch.update(np.zeros((1, 2, 2), np.uint16))


def test_fixed_values_apply_to_pixels_divided_by_the_dtype_maximum() -> None:
    settings_ = MeanStd(mean=(0.11, 0.5), std=(0.16, 0.25))
    image = np.random.default_rng(0).integers(0, 65536, (2, 9, 8)).astype(np.uint16)
    mean, std = np.array([0.11, 0.5])[:, None, None], np.array([0.16, 0.25])[:, None, None]
    found = NormalisedInput(settings_, 2, by_dtype=True).apply(image, {})
    np.testing.assert_allclose(found, (image / 65535 - mean) / std, atol=1e-5)
    np.testing.assert_allclose(NormalisedInput(settings_, 2).apply(image, {}), (image - mean) / std, rtol=1e-5)


def test_unchanged_pixels_are_only_divided() -> None:
    image = np.array([[[0, 51, 255]]], np.uint8)
    assert NormalisedInput(Unchanged(), 1).apply(image, {}).tolist() == [[[0, 51, 255]]]
    found = NormalisedInput(Unchanged(kind="member"), 1, by_dtype=True).apply(image, {})
    np.testing.assert_allclose(found, [[[0, 0.2, 1]]], rtol=1e-6)
    assert dtype_divisor(np.float32) == 1


def test_settings_for_another_number_of_channels_are_refused() -> None:
    with pytest.raises(RefusedError, match="1 values for 3 channels"):
        NormalisedInput(MeanStd(mean=(0.1,), std=(1.0,)), 3).apply(np.zeros((3, 2, 2)), {})


def test_only_what_is_not_fixed_is_measured() -> None:
    assert NormalisedInput(PER_IMAGE, 2).measures == {Measure(k, c) for k in ("mean", "std") for c in (0, 1)}
    percentiles_ = {Measure("percentile", 0, percent) for percent in (0, 1, 99, 100)}
    assert NormalisedInput(Percentile(low=1, high=99), 1).measures == percentiles_
    assert not NormalisedInput(Unchanged(), 1).measures
    assert not NormalisedInput(MeanStd(mean=(0.1,), std=(1.0,)), 1).measures


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"kind": "mean_std", "mean": [0.11], "std": [0.16]}, MeanStd(mean=(0.11,), std=(0.16,))),
        ({"kind": "mean_std", "per": "image"}, PER_IMAGE),
        ({"kind": "percentile", "low": 1.0, "high": 99.8, "per": "image"}, Percentile(low=1, high=99.8)),
        ({"kind": "none"}, Unchanged()),
        ({"kind": "member"}, Unchanged(kind="member")),
    ],
)
def test_settings_are_read_as_written(raw: dict[str, Any], expected: Normalisation) -> None:
    assert SETTINGS.validate_python(raw) == expected
    assert SETTINGS.validate_json(SETTINGS.dump_json(expected)) == expected


@pytest.mark.parametrize(
    "raw",
    [
        {"kind": "mean_std"},
        {"kind": "mean_std", "mean": [0.1], "std": [0.0]},
        {"kind": "mean_std", "mean": [0.1, 0.2], "std": [1.0]},
        {"kind": "mean_std", "mean": [float("nan")], "std": [1.0]},
        {"kind": "mean_std", "mean": [0.1], "std": [float("inf")]},
        {"kind": "mean_std", "mean": [0.1], "std": [1.0], "per": "image"},
        {"kind": "percentile", "low": 5, "high": 5},
        {"kind": "percentile", "low": -1, "high": 5},
        {"kind": "percentile", "low": 1, "high": 101},
        {"kind": "none", "mean": [0.1]},
        {"kind": "zscore"},
    ],
)
def test_settings_that_make_no_sense_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SETTINGS.validate_python(raw)
