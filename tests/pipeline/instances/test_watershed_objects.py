"""Objects by distance: those of the plane whatever the cut, and as good as scikit-image's watershed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.regions import ObjectSettings, label_region
from chorus.pipeline.instances.watershed import distance_crop
from chorus.pipeline.metrics.objects import count_objects
from tests.support.objects import discs

SMALL = ObjectSettings(diameter=6.0, minimum_size=6)


def regions_of(height: int, width: int, rows: int, columns: int) -> list[Window]:
    return [
        Window.of(y, min(height, y + rows), x, min(width, x + columns))
        for y in range(0, height, rows)
        for x in range(0, width, columns)
    ]


def by_regions(mask: NDArray[np.bool_], windows: list[Window], chosen: ObjectSettings) -> NDArray[np.uint64]:
    """Names in the plane."""
    names = np.full(mask.shape, 2**63, np.uint64)
    shape = (mask.shape[0], mask.shape[1])
    for window in windows:
        found = label_region(
            lambda w: distance_crop(lambda inside: mask[inside.y.slice, inside.x.slice], w, shape, chosen.diameter),
            window,
            shape,
            chosen,
        )
        names[window.y.slice, window.x.slice] = found.names
    return names


def whole(mask: NDArray[np.bool_], chosen: ObjectSettings) -> NDArray[np.uint64]:
    return by_regions(mask, [Window.of(0, mask.shape[0], 0, mask.shape[1])], chosen)


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Discs that touch, nest and are cut by the edge, with holes; things much wider than a diameter; noise."""
    height, width = draw(st.integers(1, 130)), draw(st.integers(1, 130))
    circle = st.tuples(st.floats(-3, 133), st.floats(-3, 133), st.floats(0.5, 40))
    mask = discs(height, width, draw(st.lists(circle, max_size=30))) > 0
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return mask ^ (rng.random(mask.shape) < draw(st.sampled_from([0.0, 0.02, 0.5])))


@settings(deadline=None, max_examples=10, suppress_health_check=list(HealthCheck))
@given(masks(), st.integers(9, 60), st.integers(9, 60), st.randoms())
def test_objects_do_not_depend_on_how_the_plane_is_cut(
    mask: NDArray[np.bool_], rows: int, columns: int, order: Any
) -> None:
    windows = regions_of(*mask.shape, rows, columns)
    order.shuffle(windows)
    np.testing.assert_array_equal(by_regions(mask, windows, SMALL), whole(mask, SMALL))


def test_touching_discs_come_apart_at_least_as_well_as_by_the_usual_recipe() -> None:
    ours, usual = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        places = [
            (y + rng.uniform(-2, 2), x + rng.uniform(-2, 2)) for y in range(12, 300, 22) for x in range(12, 300, 22)
        ]
        truth = discs(300, 300, [(y, x, rng.uniform(10, 13)) for y, x in places])
        mask = truth > 0
        shape = mask.shape
        distance = distance_transform_edt(mask)
        peaks = peak_local_max(distance, min_distance=6, labels=mask.astype(int), exclude_border=False)
        seeds = np.zeros(shape, np.int32)
        seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        found = np.unique(whole(mask, ObjectSettings(diameter=24)), return_inverse=True)[1].reshape(shape)
        ours.append(count_objects(truth, found).average_precision[0])
        usual.append(count_objects(truth, watershed(-distance, seeds, mask=mask)).average_precision[0])
    assert np.mean(ours) > 0.9
    assert np.mean(ours) >= np.mean(usual)


def test_single_discs_keep_every_pixel() -> None:
    truth = discs(120, 140, [(25, 25, 12), (0, 80, 10), (119, 139, 11), (70, 60, 25), (70, 115, 9)])
    names = whole(truth > 0, ObjectSettings(diameter=24))
    np.testing.assert_array_equal(names > 0, truth > 0)
    pairs = set(zip(truth.ravel().tolist(), names.ravel().tolist(), strict=True)) - {(0, 0)}
    assert len(pairs) == 5


@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (40, 50)])
def test_a_plane_without_background_or_without_foreground_has_no_objects(shape: tuple[int, int]) -> None:
    windows = regions_of(*shape, 16, 16)
    for mask in (np.zeros(shape, bool), np.ones(shape, bool)):
        assert not by_regions(mask, windows, SMALL).any()


def test_foreground_may_fill_everything_but_a_far_corner() -> None:
    mask = np.ones((90, 110), bool)
    mask[-1, -1] = False
    np.testing.assert_array_equal(by_regions(mask, regions_of(90, 110, 30, 30), SMALL), whole(mask, SMALL))
