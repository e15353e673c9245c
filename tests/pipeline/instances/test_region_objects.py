"""Objects of regions: those of the plane, whatever the cut; against plain loops, Cellpose and drawn truth."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.regions import ObjectSettings, label_region
from tests.support.objects import cropped, discs, flows_to_centres, objects_by_loops

SMALL = ObjectSettings(diameter=9.0, minimum_size=6)


def regions_of(height: int, width: int, rows: int, columns: int) -> list[Window]:
    ys, xs = range(0, height, rows), range(0, width, columns)
    return [Window.of(y, min(height, y + rows), x, min(width, x + columns)) for y, x in itertools.product(ys, xs)]


def by_regions(
    foreground: NDArray[np.bool_], flows: NDArray[Any], windows: list[Window], chosen: ObjectSettings
) -> tuple[NDArray[np.uint64], list[Window]]:
    """Names in the plane, and the crops that were read."""
    names, read = np.full(foreground.shape, 2**63, np.uint64), []
    for window in windows:
        found = label_region(lambda w: cropped(foreground, flows, w), window, foreground.shape, chosen)
        names[window.y.slice, window.x.slice] = found.names
        read.append(found.crop)
    return names, read


def whole(foreground: NDArray[np.bool_], flows: NDArray[Any], chosen: ObjectSettings) -> NDArray[np.uint64]:
    height, width = foreground.shape
    return by_regions(foreground, flows, [Window.of(0, height, 0, width)], chosen)[0]


@st.composite
def planes(draw: st.DrawFn) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Touching, cut, nested and tiny objects, with flows that are right, noisy or nonsense."""
    height, width = draw(st.integers(1, 160)), draw(st.integers(1, 160))
    circle = st.tuples(st.floats(-3, 163), st.floats(-3, 163), st.floats(0.5, 25))
    labels = discs(height, width, draw(st.lists(circle, max_size=40)))
    flows = flows_to_centres(labels, noise=draw(st.sampled_from([0.0, 0.5, 3.0])), seed=draw(st.integers(0, 99)))
    foreground = labels > 0
    if draw(st.booleans()):  # holes, and pixels without an object
        foreground ^= np.random.default_rng(draw(st.integers(0, 99))).random(labels.shape) < 0.02
    return foreground, flows


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(planes())
def test_objects_of_a_plane_are_those_of_plain_loops(plane: tuple[NDArray[np.bool_], NDArray[np.float32]]) -> None:
    foreground, flows = (part[..., -24:, -24:] for part in plane)
    for chosen in (SMALL, replace(SMALL, lengths=True)):
        expected = objects_by_loops(foreground, flows, chosen)
        np.testing.assert_array_equal(whole(foreground, flows, chosen), expected)


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(planes(), st.integers(5, 40), st.integers(5, 40), st.randoms())
def test_objects_do_not_depend_on_how_the_plane_is_cut(
    plane: tuple[NDArray[np.bool_], NDArray[np.float32]], rows: int, columns: int, order: Any
) -> None:
    foreground, flows = plane
    windows = regions_of(*foreground.shape, rows, columns)
    order.shuffle(windows)
    tight = ObjectSettings(diameter=3.0, minimum_size=6)  # a first halo that often is not enough
    for chosen in (SMALL, tight, replace(tight, flow_error=0.4), replace(tight, flow_error=0.4, lengths=True)):
        names, _ = by_regions(foreground, flows, windows, chosen)
        np.testing.assert_array_equal(names, whole(foreground, flows, chosen))


def wave(height: int, width: int) -> NDArray[np.float32]:
    """Flows along a plane that never come to rest."""
    x = np.arange(width) / 40
    return np.stack([2 * np.sin(x), 4 + np.cos(x)])[:, None].repeat(height, axis=1).astype(np.float32)


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("kind", ["wave", "nonsense", "one object", "snake"])
def test_paths_of_any_length_are_followed_to_their_end(kind: str, lengths: bool) -> None:
    height, width, chosen = 16, 1050, replace(SMALL, lengths=lengths)
    foreground = np.ones((height, width), bool)
    flows = wave(height, width)
    if kind == "nonsense":
        flows = np.random.default_rng(1).normal(0, 5, flows.shape).astype(np.float32)
    elif kind == "one object":
        flows = flows_to_centres(foreground.astype(np.int32))
    elif kind == "snake":
        y, x = np.mgrid[:height, :width]
        foreground = np.abs(y - 8 - 5 * np.sin(x / 30)) < 3
        flows = np.where(foreground, flows, np.float32(0))
    expected = whole(foreground, flows, chosen)
    windows = regions_of(height, width, 16, 150)
    names, crops = by_regions(foreground, flows, windows, chosen)
    np.testing.assert_array_equal(names, expected)
    widest = max(crop.shape[1] - window.shape[1] for crop, window in zip(crops, windows, strict=True))
    assert widest <= 2 * chosen.widest_halo


def test_touching_discs_are_each_found_once_with_a_small_halo() -> None:
    rows = [(y, x + (y // 18 % 2) * 10, 10.4) for y in range(12, 250, 18) for x in range(12, 240, 20)]
    truth = discs(256, 256, rows)
    chosen = ObjectSettings(diameter=20)
    names, crops = by_regions(truth > 0, flows_to_centres(truth), regions_of(256, 256, 64, 64), chosen)
    pairs = set(zip(truth.ravel().tolist(), names.ravel().tolist(), strict=True)) - {(0, 0)}
    assert len(pairs) == len(rows)  # every disc one object, every object one disc
    assert max(max(crop.shape) for crop in crops) <= 64 + 2 * chosen.first_halo


def test_objects_are_those_of_cellpose() -> None:
    metrics = pytest.importorskip("cellpose.metrics")
    from chorus.pipeline.instances.whole_image import flows_of, label_image

    rng = np.random.default_rng(4)
    truth = discs(400, 400, [(*rng.uniform(0, 400, 2), r) for r in rng.uniform(8, 18, 160)])
    flows = flows_of(truth) + rng.normal(0, 0.8, (2, 400, 400)).astype(np.float32)
    names = whole(truth > 0, flows, ObjectSettings())
    ours = np.unique(names, return_inverse=True)[1].reshape(truth.shape)
    theirs = label_image((truth > 0).astype(np.float32), flows)
    precision = metrics.average_precision(theirs, ours, threshold=[0.5, 0.9])[0]
    assert precision[0] > 0.97
    assert precision[1] > 0.9


def test_a_plane_without_foreground_or_without_flows_has_no_objects() -> None:
    nothing = np.zeros((40, 50), bool)
    flows = np.zeros((2, 40, 50), np.float32)
    assert not whole(nothing, wave(40, 50), SMALL).any()
    assert not whole(~nothing, flows, SMALL).any()
    assert not whole(~nothing, flows + np.nan, SMALL).any()


def test_holes_are_filled_and_specks_removed() -> None:
    truth = discs(60, 60, [(30, 30, 12), (5, 5, 1)])
    foreground = truth > 0
    foreground[34, 36], foreground[25, 26] = False, False
    names = whole(foreground, flows_to_centres(truth), ObjectSettings(diameter=20))
    np.testing.assert_array_equal(names > 0, truth == 1)
    assert len(np.unique(names)) == 2
