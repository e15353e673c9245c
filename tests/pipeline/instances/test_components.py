"""Connected components: those of the whole plane under any cut, and exactly the same numbers of each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.measure import label, regionprops

from chorus.pipeline.core.geometry import RegionGrid
from chorus.pipeline.instances.components import around, join_pieces, joined_sums, label_pieces
from chorus.pipeline.instances.measures import measured_rows
from tests.support.objects import discs

PROPERTIES = {
    "y": lambda one: one.centroid[0],
    "x": lambda one: one.centroid[1],
    "eccentricity": lambda one: one.eccentricity,
    "major_axis": lambda one: one.axis_major_length,
    "minor_axis": lambda one: one.axis_minor_length,
    "perimeter": lambda one: one.perimeter,
}


def by_regions(
    mask: NDArray[np.bool_], size: int, minimum_size: int, maps: tuple[NDArray[Any], ...] = (), seed: int = 0
) -> tuple[NDArray[np.uint64], pd.DataFrame]:
    """Names in the plane, and the rows of all objects; regions are done in random order."""
    plane = mask.shape[0], mask.shape[1]
    grid, names = RegionGrid.make(plane, size), np.zeros(plane, np.uint64)
    found = {}
    for index in np.random.default_rng(seed).permutation(grid.count).tolist():
        window = grid.window(index)
        inside, wide = (window.y.slice, window.x.slice), around(window, plane)
        here = [one[inside] for one in maps]
        found[index] = label_pieces(mask[wide.y.slice, wide.x.slice], window, plane, lambda of=here: of, minimum_size)
        names[inside] = found[index].names
    cut = pd.concat([found[index].cut for index in range(grid.count)], ignore_index=True)
    touching, objects = join_pieces(grid, lambda index: found[index].edges)
    of = cut["name"].replace(dict(zip(touching.tolist(), objects.tolist(), strict=True))).to_numpy(np.uint64)
    joined = joined_sums(cut, of)
    small = joined["name"][(joined["area"] < minimum_size).to_numpy()].to_numpy()
    renamed = dict(zip(cut["name"].tolist(), np.where(np.isin(of, small), 0, of).tolist(), strict=True))
    for old, new in renamed.items():
        names[names == old] = 2**63 + new
    names = np.where(names >= 2**63, names - np.uint64(2**63), names)
    sums = [found[index].whole for index in range(grid.count)] + [joined[~joined["name"].isin(small)]]
    rows = [measured_rows(one, plane, [str(index) for index in range(len(maps))]) for one in sums]
    return names, pd.concat(rows).sort_values("name", ignore_index=True)


def expected_names(mask: NDArray[np.bool_], minimum_size: int) -> NDArray[np.uint64]:
    """By scikit-image, named by the first pixel."""
    numbers = label(mask, connectivity=2)
    names = np.zeros(numbers.shape, np.uint64)
    for number in range(1, numbers.max(initial=0) + 1):
        pixels = np.flatnonzero(numbers == number)
        if len(pixels) >= minimum_size:
            names.flat[pixels] = pixels[0] + 1
    return names


def spiral(edge: int) -> NDArray[np.bool_]:
    """One object that crosses every border many times."""
    mask = np.zeros((edge, edge), bool)
    for k in range(0, edge // 2, 4):
        mask[k, k : edge - k] = mask[edge - 1 - k, k : edge - k] = True
        mask[k : edge - k, edge - 1 - k] = mask[k + 4 : edge - k, k] = True
        if k:
            mask[k, k - 4 : k + 1] = True
    return mask


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    circle = st.tuples(st.floats(-3, 93), st.floats(-3, 93), st.floats(0.5, 40))
    mask = discs(height, width, draw(st.lists(circle, max_size=12))) > 0
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return mask ^ (rng.random(mask.shape) < draw(st.sampled_from([0.0, 0.05, 0.3, 0.45])))


@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(masks(), st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
def test_any_cut_gives_the_components_of_scikit_image(
    mask: NDArray[np.bool_], size: int, minimum_size: int, seed: int
) -> None:
    size = max(size, max(mask.shape) // 12)
    names, rows = by_regions(mask, size, minimum_size, seed=seed)
    np.testing.assert_array_equal(names, expected_names(mask, minimum_size))
    whole_names, whole_rows = by_regions(mask, 1000, minimum_size)
    np.testing.assert_array_equal(names, whole_names)
    pd.testing.assert_frame_equal(rows, whole_rows, check_exact=True)


@pytest.mark.parametrize("size", [13, 100])
@pytest.mark.parametrize("kind", ["spiral", "full", "corners", "noise", "discs", "row"])
def test_rows_are_those_of_scikit_image(kind: str, size: int) -> None:
    rng = np.random.default_rng(3)
    mask = {
        "spiral": spiral(72),
        "full": np.ones((70, 90), bool),
        "corners": discs(70, 80, [(0, 0, 9), (0, 79, 9), (69, 0, 9), (69, 79, 9), (35, 0, 5), (0, 40, 5)]) > 0,
        "noise": rng.random((60, 75)) < 0.4,
        "discs": discs(90, 80, [(*rng.uniform(0, 90, 2), r) for r in rng.uniform(2, 12, 15)]) > 0,
        "row": np.ones((1, 90), bool),
    }[kind]
    bright = rng.integers(0, 2**16, mask.shape, dtype=np.uint16)
    names, rows = by_regions(mask, size, 3, (bright,))
    numbers = np.searchsorted(np.concatenate([[0], rows["name"]]), names)
    found = regionprops(numbers, bright)
    assert len(found) == len(rows) > 0
    for row, one in zip(rows.to_dict("records"), found, strict=True):
        assert row["area"] == one.area
        assert (row["y0"], row["x0"], row["y1"], row["x1"]) == one.bbox
        for name, value in PROPERTIES.items():
            assert row[name] == pytest.approx(value(one), rel=1e-9, abs=2e-5), name
        if one.eccentricity > 0.01:
            turn = abs(row["orientation"] - one.orientation)
            assert min(turn, np.pi - turn) < 1e-6
        assert row["mean:0"] == pytest.approx(one.intensity_mean, rel=1e-12)
        edge = one.bbox[0] == 0 or one.bbox[1] == 0 or one.bbox[2] == mask.shape[0] or one.bbox[3] == mask.shape[1]
        assert row["touches_border"] == edge


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float16", "float32", "float64"])
def test_means_are_rounded_once_whatever_the_cut(dtype: str) -> None:
    rng = np.random.default_rng(5)
    mask = rng.random((50, 60)) < 0.6
    values = rng.normal(0, 1, mask.shape) * 10.0 ** rng.integers(-4, 4, mask.shape)
    bright = (np.abs(values) * 100 % 250).astype(dtype) if dtype[0] != "f" else values.astype(dtype)
    names, whole = by_regions(mask, 100, 2, (bright,))
    for size in (20, 33):
        pd.testing.assert_frame_equal(by_regions(mask, size, 2, (bright,))[1], whole, check_exact=True)
    for row in whole.itertuples():
        pixels = bright[names == row.name].astype(np.float64)
        assert row[-1] == math.fsum(pixels) / len(pixels)


def test_values_that_are_no_numbers_stay_with_their_object() -> None:
    mask = discs(40, 60, [(20, 12, 9), (20, 45, 10)]) > 0
    bright = np.ones(mask.shape, np.float32)
    bright[20, 12] = np.nan
    bright[15, 45], bright[25, 45] = np.inf, -np.inf
    for size in (8, 100):
        _, rows = by_regions(mask, size, 1, (bright, np.ones(mask.shape, np.float32)))
        assert rows["mean:0"].isna().tolist() == [True, True]
        assert rows["mean:1"].tolist() == [1.0, 1.0]


def test_small_objects_are_removed_by_their_whole_size() -> None:
    mask = np.zeros((20, 40), bool)
    mask[5, 14:18] = True  # two pixels on each side of a border
    mask[10, 15:17] = True
    names, rows = by_regions(mask, 16, 4)
    assert rows["area"].tolist() == [4]
    np.testing.assert_array_equal(names, expected_names(mask, 4))


def test_sums_beyond_64_bits_are_exact() -> None:
    """Of a plane of 400,000 x 400,000 pixels, all foreground, as the regions would find it."""
    edge, regions = 2048, 196
    n = edge * edge
    line = np.arange(edge, dtype=np.int64)
    one = {"area": n, "sum_y": edge * line.sum(), "sum_x": edge * line.sum(), "straight": 0, "diagonal": 0, "mixed": 0}
    one |= {"sum_yy": edge * (line**2).sum(), "sum_xx": edge * (line**2).sum(), "sum_yx": line.sum() ** 2}
    places = [(y * edge, x * edge) for y in range(regions) for x in range(regions)]
    frame = pd.DataFrame([one | {"y0": y, "x0": x, "y1": y + edge, "x1": x + edge} for y, x in places[:: regions + 1]])
    frame["name"] = np.arange(len(frame), dtype=np.uint64) + 1
    total = joined_sums(frame, np.ones(len(frame), np.uint64))
    length = regions * edge
    exact = sum(edge * sum(range(k * edge, (k + 1) * edge)) for k in range(regions))
    assert total.loc[0, "sum_y"] == exact
    rows = measured_rows(total, (length, length), [])
    assert rows.loc[0, "y"] == exact / (n * regions)
    assert rows.loc[0, "orientation"] == pytest.approx(np.pi / 4)


def test_no_foreground_has_no_objects() -> None:
    names, rows = by_regions(np.zeros((30, 40), bool), 16, 1, (np.zeros((30, 40)),))
    assert not names.any()
    assert not len(rows)
