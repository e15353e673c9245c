"""Resampling against torch, and windows against the whole, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from chorus.pipeline.core.geometry import Span, Window
from chorus.pipeline.preprocessing.resampling import AxisMap, nearest, resample, shape_of

sizes = st.integers(1, 40)


@st.composite
def spans(draw: st.DrawFn, length: int) -> Span:
    start = draw(st.integers(0, length - 1))
    return Span(start, draw(st.integers(start + 1, length)))


def whole(y: int, x: int) -> Window:
    return Window.of(0, y, 0, x)


@given(sizes, sizes, sizes, sizes, st.integers(0, 2**32 - 1))
def test_agrees_with_torch_antialiased_bilinear(h: int, w: int, th: int, tw: int, seed: int) -> None:
    assume(tw > 1)  # torch 2.15 leaves out the vertical pass where the result is one pixel wide; Pillow does not
    plane = np.random.default_rng(seed).random((2, h, w), np.float32)
    ours = resample(plane, whole(h, w), whole(th, tw), AxisMap.make(h, th), AxisMap.make(w, tw))
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(plane)[None], size=(th, tw), mode="bilinear", antialias=True, align_corners=False
    )[0]
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


@given(sizes, sizes, sizes, sizes, st.integers(0, 2**32 - 1))
def test_agrees_with_pillow_bilinear(h: int, w: int, th: int, tw: int, seed: int) -> None:
    plane = np.random.default_rng(seed).random((1, h, w), np.float32)
    ours = resample(plane, whole(h, w), whole(th, tw), AxisMap.make(h, th), AxisMap.make(w, tw))
    theirs = Image.fromarray(plane[0]).resize((tw, th), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(ours[0], np.asarray(theirs), atol=1e-5)


@settings(max_examples=300)
@given(st.data(), sizes, sizes, sizes, sizes)
def test_a_window_alone_has_the_bits_of_the_window_cut_from_the_whole(
    data: st.DataObject, h: int, w: int, th: int, tw: int
) -> None:
    y, x = AxisMap.make(h, th), AxisMap.make(w, tw)
    target = Window(data.draw(spans(th)), data.draw(spans(tw)))
    needed = Window(y.needed(target.y), x.needed(target.x))
    seed = data.draw(st.integers(0, 2**32 - 1))
    plane = np.random.default_rng(seed).normal(size=(2, h, w)).astype(np.float32)
    everything = resample(plane, whole(h, w), whole(th, tw), y, x)[:, target.y.slice, target.x.slice]

    poisoned = np.full_like(plane, np.nan)
    poisoned[:, needed.y.slice, needed.x.slice] = plane[:, needed.y.slice, needed.x.slice]
    alone = resample(plane[:, needed.y.slice, needed.x.slice], needed, target, y, x)
    beside_nan = resample(poisoned, whole(h, w), target, y, x)
    assert alone.tobytes() == everything.tobytes() == beside_nan.tobytes()


@given(st.data(), sizes, sizes, sizes, sizes)
def test_nearest_of_a_window_is_cut_from_nearest_of_the_whole(
    data: st.DataObject, h: int, w: int, th: int, tw: int
) -> None:
    y, x = AxisMap.make(h, th), AxisMap.make(w, tw)
    target = Window(data.draw(spans(th)), data.draw(spans(tw)))
    needed = Window(y.needed(target.y), x.needed(target.x))
    labels = np.arange(h * w, dtype=np.uint16).reshape(1, h, w)
    expected = [[labels[0, int((i + 0.5) * h / th), int((j + 0.5) * w / tw)] for j in range(tw)] for i in range(th)]
    found = nearest(labels[:, needed.y.slice, needed.x.slice], needed, target, y, x)
    assert found.dtype == np.uint16
    assert np.array_equal(found[0], np.array(expected)[target.y.slice, target.x.slice])


@given(st.integers(1, 10**4), st.integers(1, 10**4), st.data())
def test_needed_pixels_lie_inside_the_source_and_weights_sum_to_one(
    source: int, target: int, data: st.DataObject
) -> None:
    axis = AxisMap.make(source, target)
    start = data.draw(st.integers(0, target - 1))
    span = Span(start, min(start + 3, target))
    needed = axis.needed(span)
    taps, weights = axis.taps(span)
    assert 0 <= needed.start < needed.stop <= source
    assert needed == Span(int(taps.min()), int(taps.max()) + 1)
    np.testing.assert_allclose(weights.astype(np.float64).sum(axis=0), 1, atol=1e-5)


@given(sizes, sizes, st.data())
def test_no_more_is_needed_than_the_triangle_covers(source: int, target: int, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, target - 1))
    centre, support = (i + 0.5) * source / target - 0.5, max(1, source / target)
    needed = AxisMap.make(source, target).needed(Span(i, i + 1))
    pixels = set(range(needed.start, needed.stop))
    # Rounding may drop a pixel on the very edge of the triangle, whose weight is nothing.
    assert pixels <= {j for j in range(source) if abs(j - centre) < support}
    assert pixels >= {j for j in range(source) if abs(j - centre) < support - 1e-9}


@given(sizes, sizes)
def test_the_same_size_gives_the_same_pixels(h: int, w: int) -> None:
    plane = np.random.default_rng(h * w).normal(size=(1, h, w)).astype(np.float32)
    same = AxisMap.make(h, h), AxisMap.make(w, w)
    assert np.array_equal(resample(plane, whole(h, w), whole(h, w), *same), plane)
    assert np.array_equal(nearest(plane, whole(h, w), whole(h, w), *same), plane)


def test_halving_averages_with_the_widened_triangle() -> None:
    axis = AxisMap.make(4, 2)
    line = np.array([[[0, 1, 2, 3]]], np.float32)
    # Centre 0.5, support 2: pixels 0 and 1 weigh 0.75, pixel 2 weighs 0.25, pixel -1 falls away.
    expected = [(0 * 0.75 + 1 * 0.75 + 2 * 0.25) / 1.75, (1 * 0.25 + 2 * 0.75 + 3 * 0.75) / 1.75]
    found = resample(line, whole(1, 4), whole(1, 2), AxisMap.make(1, 1), axis)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "factor", "expected"),
    [
        ((100, 50), (0.5, 0.5), (50, 25)),
        ((3, 1), (0.1, 0.1), (1, 1)),
        ((7, 9), (1.0, 1.0), (7, 9)),
        ((10, 10), (1.26, 0.5), (13, 5)),
    ],
)
def test_a_shape_rounds_to_at_least_one_pixel(
    shape: tuple[int, int], factor: tuple[float, float], expected: tuple[int, int]
) -> None:
    assert shape_of(shape, factor) == expected


def test_a_window_without_the_pixels_that_are_needed_is_refused() -> None:
    axis = AxisMap.make(10, 5)
    plane = np.zeros((1, 10, 4), np.float32)
    with pytest.raises(ValueError, match="lacks pixels"):
        resample(plane, Window.of(0, 10, 0, 4), whole(5, 5), axis, axis)
    with pytest.raises(ValueError, match="not those of"):
        nearest(plane, whole(10, 10), whole(5, 5), axis, axis)


@pytest.mark.parametrize("pair", [(0, 5), (5, 0)])
def test_an_axis_without_pixels_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot resample"):
        AxisMap.make(*pair)
