"""Components of volumes: those of the whole volume, and exact sums, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import regionprops_table

from chorus.pipeline.core.geometry import RegionGrid
from chorus.pipeline.instances.maps.objects import replaced
from chorus.pipeline.instances.volumes.components import (
    BlockPieces,
    join_pieces,
    joined_sums,
    label_pieces,
    measured_volumes,
)

MAPS = ("value",)


def found(
    foreground: NDArray[np.bool_], values: NDArray[np.float32], size: tuple[int, ...], least: int
) -> tuple[NDArray[np.uint64], pd.DataFrame]:
    """Names of the objects of all voxels, and their rows, by blocks of `size`."""
    grid, blocks = RegionGrid.make(foreground.shape, size), list[BlockPieces]()
    for index in range(grid.count):
        at = grid.window(index)
        blocks.append(label_pieces(foreground[at.slices], at, grid.shape, lambda at=at: [values[at.slices]], least))
    cut = pd.concat([one.cut for one in blocks], ignore_index=True)
    names = cut["name"].to_numpy(np.uint64)
    objects = replaced(names, *join_pieces(grid, lambda index: blocks[index].faces))
    sums = joined_sums(cut, objects)
    large = (sums["volume"] >= least).to_numpy(bool)
    objects[np.isin(objects, sums["name"][~large].to_numpy(np.uint64))] = 0
    order = np.argsort(names)
    whole = np.zeros(grid.shape, np.uint64)
    for index, one in enumerate(blocks):
        whole[grid.window(index).slices] = replaced(one.names, names[order], objects[order])
    rows = [measured_volumes(one, grid.shape, MAPS) for one in (sums[large], *(one.whole for one in blocks))]
    return whole, pd.concat(rows, ignore_index=True).sort_values("name", ignore_index=True)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    size=st.tuples(*[st.integers(1, 12)] * 3),
    share=st.sampled_from([0.0, 0.05, 0.15, 0.4, 1.0]),
    least=st.sampled_from([1, 4]),
    seed=st.integers(0, 1000),
)
def test_components_are_those_of_the_whole_volume_for_any_blocks(
    shape: tuple[int, ...], size: tuple[int, ...], share: float, least: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    foreground, values = random.random(shape) < share, random.normal(0, 1e3, shape).astype(np.float32)
    names, rows = found(foreground, values, size, least)
    expected, _ = ndimage.label(foreground, structure=np.ones((3, 3, 3)))
    small = np.bincount(expected.ravel()) < least
    expected[small[expected]] = 0
    firsts, numbers = np.unique(names, return_inverse=True)
    np.testing.assert_array_equal(np.unique(expected, return_inverse=True)[1], numbers)  # both by their first voxel
    assert rows["name"].tolist() == firsts[firsts > 0].tolist()
    first_voxels = np.flatnonzero(names)[np.unique(names[names > 0], return_index=True)[1]]
    assert (rows["name"] - 1).tolist() == first_voxels.tolist()
    pd.testing.assert_frame_equal(rows, found(foreground, values, shape, least)[1], check_exact=True)


def test_rows_are_those_of_scikit_image() -> None:
    random = np.random.default_rng(1)
    foreground = ndimage.gaussian_filter(random.normal(size=(20, 40, 50)), 2) > 0.05
    values = random.random(foreground.shape, dtype=np.float32)
    names, rows = found(foreground, values, (7, 16, 11), 5)
    labels = np.unique(names, return_inverse=True)[1].reshape(names.shape)
    wanted = ("area", "bbox", "centroid", "intensity_mean")
    expected = pd.DataFrame(regionprops_table(labels, values.astype(np.float64), properties=wanted))
    assert len(rows) == len(expected) > 10
    columns = ["volume", "z0", "y0", "x0", "z1", "y1", "x1", "z", "y", "x", "value"]
    np.testing.assert_allclose(rows[columns].to_numpy(float), expected.to_numpy(float), rtol=1e-12)
    assert rows["touches_border"].tolist() == [
        any(box[axis] == 0 or box[axis + 3] == names.shape[axis] for axis in range(3))
        for box in rows[["z0", "y0", "x0", "z1", "y1", "x1"]].to_numpy().tolist()
    ]


@pytest.mark.parametrize("end", [0, 1])
def test_voxels_that_touch_at_a_corner_of_eight_blocks_are_one_object(end: int) -> None:
    foreground = np.zeros((4, 4, 4), bool)
    foreground[1, 1, 1 + end] = foreground[2, 2, 2 - end] = True
    names, rows = found(foreground, np.zeros(foreground.shape, np.float32), (2, 2, 2), 1)
    assert np.unique(names).size == 2
    assert rows["volume"].tolist() == [2]
