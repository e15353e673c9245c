"""Windows and regions: every pixel is in one region, and each axis is treated alike."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.pipeline.core.geometry import RegionGrid, Span, Window, of_each, shown_size


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 70))
def test_regions_cover_each_pixel_of_the_plane_once(height: int, width: int, size: int) -> None:
    regions = RegionGrid.make((height, width), size)
    seen = np.zeros((height, width), int)
    for index in range(regions.count):
        window = regions.window(index)
        assert window.pixels == seen[window.y.slice, window.x.slice].size
        seen[window.y.slice, window.x.slice] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("index", [-1, 4])
def test_a_region_outside_the_plane_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError):
        RegionGrid.make((10, 10), 5).window(index)


VOLUMES = st.tuples(st.integers(1, 12), st.integers(1, 20), st.integers(1, 20))
BLOCKS = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9))


@given(shape=VOLUMES, block=BLOCKS)
def test_blocks_partition_a_volume_in_row_major_order(shape: tuple[int, int, int], block: tuple[int, int, int]) -> None:
    grid = RegionGrid.make(shape, block)
    found = np.zeros(shape, int)
    windows = [grid.window(index) for index in range(grid.count)]
    for index, window in enumerate(windows):
        found[window.slices] += 1
        assert grid.index(window) == index
        assert window.pixels == found[window.slices].size
    assert (found == 1).all()
    assert windows == sorted(windows, key=lambda w: tuple(span.start for span in w.spans))


def test_a_window_has_the_axes_of_a_plane_or_of_a_volume() -> None:
    plane, volume = Window.of(1, 3, 4, 9), Window.of(5, 6, 1, 3, 4, 9)
    assert (plane.axes, volume.axes) == ("yx", "zyx")
    assert volume.plane == plane.plane == plane
    assert volume.by_axis == {"z": Span(5, 6), "y": Span(1, 3), "x": Span(4, 9)}
    assert pickle.loads(pickle.dumps(volume)) == volume
    with pytest.raises(ValueError, match="2 or 3 axes"):
        Window(Span(0, 1))
    with pytest.raises(ValueError, match="is no region"):
        RegionGrid.make((10, 10, 10), 5).index(Window.of(0, 5, 0, 4, 0, 5))


def test_one_number_is_that_of_each_axis() -> None:
    assert of_each(4, 3) == (4, 4, 4)
    assert of_each([1, 2, 3], 3) == (1, 2, 3)
    with pytest.raises(ValueError, match="2 values for 3 axes"):
        of_each([1, 2], 3)
    assert (shown_size(256), shown_size((16, 48, 48)), shown_size((0.5, 0.25))) == ("256", "16 x 48 x 48", "0.5 x 0.25")
