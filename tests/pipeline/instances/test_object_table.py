"""The objects table: each object once, the same numbers whatever the cut, and labels that count from one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.regions import ObjectSettings, label_region
from chorus.pipeline.instances.table import numbered, object_rows
from tests.support.objects import cropped, discs, flows_to_centres

CHOSEN = ObjectSettings(diameter=16)


def plane(seed: int) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    truth = discs(230, 260, [(*rng.uniform(0, 260, 2), r) for r in rng.uniform(3, 14, 90)])
    return truth > 0, flows_to_centres(truth, noise=0.3), rng.random(truth.shape, dtype=np.float32)


def table(
    foreground: NDArray[np.bool_],
    flows: NDArray[np.float32],
    bright: NDArray[np.float32],
    edge: int,
    chosen: ObjectSettings = CHOSEN,
) -> tuple[pd.DataFrame, NDArray[np.uint64]]:
    shape = foreground.shape
    rows, names = [], np.zeros(shape, np.uint64)
    for y in range(0, shape[0], edge):
        for x in range(0, shape[1], edge):
            region = Window.of(y, min(y + edge, shape[0]), x, min(x + edge, shape[1]))
            found = label_region(lambda window: cropped(foreground, flows, window), region, shape, chosen)
            names[region.y.slice, region.x.slice] = found.names
            maps = {"dna": bright[found.crop.y.slice, found.crop.x.slice]}
            rows.append(object_rows(found, region, shape, maps))
    return pd.concat(rows).sort_values("name", ignore_index=True), names


def test_every_object_has_one_row_with_the_same_numbers_whatever_the_cut() -> None:
    parts = plane(1)
    whole, names = table(*parts, 1000)
    assert set(whole["name"]) == set(np.unique(names)) - {0}
    for edge in (37, 64, 150):
        pd.testing.assert_frame_equal(table(*parts, edge)[0], whole, check_exact=True)


@pytest.mark.parametrize("seed", range(8))
def test_rows_of_holes_and_noise_do_not_depend_on_the_cut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = discs(80, 90, [(*rng.uniform(0, 90, 2), r) for r in rng.uniform(1, 20, 40)])
    foreground = (truth > 0) ^ (rng.random(truth.shape) < 0.05)
    parts = (
        foreground,
        flows_to_centres(truth, noise=rng.choice([0.0, 2.0]), seed=seed),
        np.zeros(truth.shape, np.float32),
    )
    chosen = ObjectSettings(diameter=4, minimum_size=15)
    whole, _ = table(*parts, 100, chosen)
    pd.testing.assert_frame_equal(table(*parts, int(rng.integers(12, 50)), chosen)[0], whole, check_exact=True)


def test_rows_say_what_is_in_the_label_image() -> None:
    foreground, flows, bright = plane(2)
    rows, names = table(foreground, flows, bright, 100)
    for row in rows.itertuples():
        y, x = np.nonzero(names == row.name)
        assert row.area == len(y)
        assert (row.y0, row.x0, row.y1, row.x1) == (y.min(), x.min(), y.max() + 1, x.max() + 1)
        np.testing.assert_allclose((row.y, row.x), (y.mean(), x.mean()))
        assert row.touches_border == bool((y == 0).any() or (x == 0).any() or y.max() == 229 or x.max() == 259)
    means = [bright[names == name].astype(np.float64).mean() for name in rows["name"]]
    np.testing.assert_allclose(rows["mean:dna"], means)


def test_labels_are_consecutive_in_the_order_of_names() -> None:
    names = np.array([[0, 70], [9, 70]], np.uint64)
    labels = numbered(names, np.array([9, 70], np.uint64))
    assert labels.tolist() == [[0, 2], [1, 2]]
    assert labels.dtype == np.uint32


def test_a_region_without_objects_has_a_table_without_rows() -> None:
    nothing = np.zeros((30, 30), bool), np.zeros((2, 30, 30), np.float32), np.zeros((30, 30), np.float32)
    rows, names = table(*nothing, 16)
    assert not len(rows)
    assert not names.any()
    assert {"name", "area", "y", "x", "touches_border", "mean:dna"} <= set(rows.columns)
