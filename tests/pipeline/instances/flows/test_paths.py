"""Paths along flows: the bits of plain array operations, in every crop; none from outside is unforeseen."""

from __future__ import annotations

import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.flows.compiled import compiled
from chorus.pipeline.instances.flows.dynamics import Crop, FlowField, directions, limited
from tests.support.objects import cropped, discs, flows_to_centres, paths_by_arrays


@st.composite
def crops(draw: st.DrawFn) -> tuple[Crop, Crop]:
    """A plane, and a window of it: flows right, noisy, NaN, tiny, huge, or of whole steps, that circle and rest."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    circle = st.tuples(st.floats(-3, 93), st.floats(-3, 93), st.floats(0.5, 25))
    labels = discs(height, width, draw(st.lists(circle, max_size=20)))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    kind = draw(st.sampled_from(["centres", "noise", "grid", "lengths"]))
    flows = flows_to_centres(labels, noise=0.0 if kind == "centres" else 4.0, seed=draw(st.integers(0, 99)))
    if kind == "grid":
        flows = 5 * np.sign(flows) * (rng.random(flows.shape) < 0.7).astype(np.float32)
    if kind == "lengths":
        flows *= rng.choice(np.float32([1e-4, 1, 1e6, np.nan]), labels.shape)
    foreground = (labels > 0) | (rng.random(labels.shape) < draw(st.sampled_from([0.0, 0.3])))
    y0, x0 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    # As regions with their halos: more than a pixel where the plane has more.
    y1, x1 = draw(st.integers(min(y0 + 2, height), height)), draw(st.integers(min(x0 + 2, width), width))
    window = Window.of(min(y0, max(0, y1 - 2)), y1, min(x0, max(0, x1 - 2)), x1)
    whole = cropped(foreground, flows, Window.of(0, height, 0, width))
    return whole, cropped(foreground, flows, window)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(crops(), st.sampled_from([0, 1, 11, 12, 13, 24, 200, 211]), st.booleans())
def test_paths_end_where_plain_array_operations_end(planes: tuple[Crop, Crop], steps: int, lengths: bool) -> None:
    for crop in planes:
        y, x, known = paths_by_arrays(crop, steps, lengths=lengths)
        paths = FlowField(crop, lengths=lengths).follow(steps)
        np.testing.assert_array_equal(paths.pixels, np.flatnonzero(crop.foreground))
        np.testing.assert_array_equal(paths.ends, y * crop.foreground.shape[1] + x)
        np.testing.assert_array_equal(paths.known, known)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(crops(), st.sampled_from([30, 200]), st.booleans())
def test_a_crop_knows_what_it_knows(planes: tuple[Crop, Crop], steps: int, lengths: bool) -> None:
    plane, crop = planes
    y, x, _ = paths_by_arrays(plane, steps, lengths=lengths)
    ends = np.full((2, *plane.foreground.shape), -1)
    ends[:, plane.foreground] = y, x
    inside = crop.window.y.slice, crop.window.x.slice
    # Paths that are known end where they end in the plane.
    field = FlowField(crop, lengths=lengths)
    paths = field.follow(steps)
    found = np.divmod(paths.ends, crop.foreground.shape[1])
    expected = ends[:, *inside][:, crop.foreground]
    np.testing.assert_array_equal(found[0][paths.known] + crop.window.y.start, expected[0][paths.known])
    np.testing.assert_array_equal(found[1][paths.known] + crop.window.x.start, expected[1][paths.known])
    # Nothing from outside ends where the crop does not expect it.
    outside = plane.foreground.copy()
    outside[inside] = False
    arrivals = np.zeros(plane.foreground.shape, bool)
    arrivals[*ends[:, outside]] = True
    assert not (arrivals[inside] & ~field.near_outside(0)).any()


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (2, 2), (30, 50)])
def test_what_is_near_is_what_a_square_reaches(shape: tuple[int, int]) -> None:
    flows = np.random.default_rng(3).normal(size=(2, *shape))
    crop = Crop(np.ones(shape, bool), flows, Window.of(7, 7 + shape[0], 9, 9 + shape[1]), (90, 90))
    exact, wide = (FlowField(crop).near_outside(reach) for reach in (0, 3))
    y, x = np.nonzero(exact)
    expected = np.zeros(shape, bool)
    for a, b in zip(y, x, strict=True):
        expected[max(0, a - 3) : a + 4, max(0, b - 3) : b + 4] = True
    np.testing.assert_array_equal(wide, expected)


def test_directions_have_length_one_whatever_the_flows_are_stored_as() -> None:
    flows = np.random.default_rng(0).normal(0, 3, (2, 9, 11))
    flows[:, 0, :3] = np.array([[np.nan, np.inf, 1e-4], [1, 1, 0]])
    for dtype in (np.float16, np.float32, np.float64):
        found = directions(flows.astype(dtype))
        assert found.dtype == np.float32
        assert not found[:, 0, :3].any()
        length = np.hypot(*found).ravel()[3:]
        np.testing.assert_allclose(length, 1, rtol=1e-6)


def test_flows_with_their_lengths_are_shortened_to_a_pixel_at_most() -> None:
    flows = np.array([[[3, 30, 1e-4, np.nan, 0]], [[-4, 40, 0, 1, np.inf]]], np.float32)
    found = limited(flows)
    np.testing.assert_allclose(found, np.array([[[0.6, 0.6, 2e-5, 0, 0]], [[-0.8, 0.8, 0, 0, 0]]]), rtol=1e-6)


def test_loops_work_where_no_compiled_code_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import caching

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    def twice(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values + values

    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(twice)
    np.testing.assert_array_equal(compiled(twice)(np.ones(3, np.float32)), 2)


def test_the_command_line_does_not_load_the_compiler() -> None:
    code = "import sys, chorus.cli; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
