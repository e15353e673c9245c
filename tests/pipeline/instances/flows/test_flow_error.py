"""The flow error of objects: Cellpose's, of each object alone; and objects that are removed by it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.flows.dynamics import directions
from chorus.pipeline.instances.flows.flow_error import flow_errors
from chorus.pipeline.instances.regions import ObjectSettings, RegionObjects, label_region
from tests.support.objects import cropped, discs, flows_to_centres

SHAPES = ("disc", "ring", "corner", "pixel", "two pieces")


def shape(kind: str) -> NDArray[np.int32]:
    mask = np.zeros((40, 50), np.int32)
    y, x = np.mgrid[:40, :50]
    if kind in ("disc", "ring"):
        mask[(y - 19) ** 2 + (x - 23) ** 2 <= 15**2] = 1
    if kind == "ring":
        mask[(y - 19) ** 2 + (x - 23) ** 2 <= 8**2] = 0
    elif kind == "corner":
        mask[:9, :45] = mask[:35, :9] = 1
    elif kind == "pixel":
        mask[39, 49] = 1
    elif kind == "two pieces":
        mask[2:9, 3:9] = mask[20:25, 30:44] = 1
    return mask


@pytest.mark.parametrize("kind", SHAPES)
def test_the_error_of_an_object_alone_is_that_of_cellpose(kind: str) -> None:
    dynamics = pytest.importorskip("cellpose.dynamics")
    mask = shape(kind)
    vectors = directions(np.random.default_rng(1).normal(0, 2, (2, *mask.shape)))
    expected, _ = dynamics.flow_error(mask.copy(), 5 * vectors)
    errors = flow_errors(mask, 1, vectors)
    assert np.isnan(errors[0])
    np.testing.assert_allclose(errors[1:], expected, rtol=1e-5)


def test_errors_of_many_objects_are_near_those_of_cellpose() -> None:
    dynamics = pytest.importorskip("cellpose.dynamics")
    rng = np.random.default_rng(0)
    centres = list(product(range(16, 300, 34), range(16, 300, 34)))  # of many sizes, apart
    truth = discs(310, 310, [(y, x, rng.uniform(4, 15)) for y, x in centres])
    noise = discs(310, 310, [(y, x, 16) for y, x in centres]) % 5 / 2
    vectors = directions(flows_to_centres(truth) + noise * rng.normal(0, 3, (2, *truth.shape)))
    expected, _ = dynamics.flow_error(truth.copy(), 5 * vectors)
    errors = flow_errors(truth, len(centres), vectors)[1:]
    np.testing.assert_allclose(errors, expected, atol=0.05)  # there heat spreads as long as the largest asks
    assert np.corrcoef(errors, expected)[0, 1] > 0.999


def test_neighbours_and_crops_do_not_change_a_bit() -> None:
    rng = np.random.default_rng(2)
    truth = discs(120, 130, [(*rng.uniform(0, 130, 2), r) for r in rng.uniform(3, 20, 30)])
    count = int(truth.max())
    vectors = directions(rng.normal(0, 2, (2, *truth.shape)))
    errors = flow_errors(truth, count, vectors)
    for number in np.unique(truth[truth > 0]):
        y, x = np.nonzero(truth == number)
        box = slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1)
        alone = flow_errors((truth == number).astype(np.int32)[box], 1, vectors[:, *box])
        assert alone[1] == errors[number]
    assert np.isnan(errors[[n for n in range(count + 1) if n not in truth or n == 0]]).all()


def found(flow_error: float | None, rows: int = 200, columns: int = 210) -> list[RegionObjects]:
    rng = np.random.default_rng(5)
    truth = discs(200, 210, [(*rng.uniform(0, 210, 2), r) for r in rng.uniform(5, 14, 70)])
    foreground = (truth > 0) & (rng.random(truth.shape) > 0.02)  # holes
    flows = flows_to_centres(truth) + truth % 4 * rng.normal(0, 2, (2, *truth.shape)).astype(np.float32)
    chosen = ObjectSettings(diameter=16, flow_error=flow_error)
    return [
        label_region(
            lambda w: cropped(foreground, flows, w),
            Window.of(y, min(200, y + rows), x, min(210, x + columns)),
            (200, 210),
            chosen,
        )
        for y in range(0, 200, rows)
        for x in range(0, 210, columns)
    ]


def names_of(regions: list[RegionObjects]) -> set[int]:
    return {int(name) for region in regions for name in np.unique(region.names)} - {0}


def test_objects_of_a_larger_error_are_removed_and_no_others() -> None:
    (everything,) = found(None)
    errors = dict(zip(everything.anchors.tolist(), everything.flow_errors.tolist(), strict=True))
    kept = {name for name in names_of([everything]) if errors[name] <= 0.5}
    assert 0 < len(kept) < len(names_of([everything]))
    assert names_of(found(0.5)) == kept


def test_a_threshold_that_all_keep_changes_nothing() -> None:
    (everything,), (kept,) = found(None), found(4.0)
    np.testing.assert_array_equal(kept.names, everything.names)


@pytest.mark.parametrize("rows, columns", [(50, 70), (33, 210), (17, 19)])
def test_regions_agree_on_what_is_removed(rows: int, columns: int) -> None:
    (whole,) = found(0.5)
    names = np.zeros((200, 210), np.uint64)
    parts = iter(found(0.5, rows, columns))
    for y in range(0, 200, rows):
        for x in range(0, 210, columns):
            names[y : y + rows, x : x + columns] = next(parts).names
    np.testing.assert_array_equal(names, whole.names)
