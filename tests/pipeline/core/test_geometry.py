"""The tile grid against brute force: arithmetic must say what walking over the axis says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.pipeline.core.geometry import Grid, RegionGrid, Span, TileAxis, Window, mirror


@st.composite
def axes(draw: st.DrawFn) -> TileAxis:
    length = draw(st.integers(1, 90))
    tile = draw(st.integers(1, 40))
    return TileAxis.make(length, tile, draw(st.floats(0, 0.95)))


@st.composite
def axes_with_target(draw: st.DrawFn) -> tuple[TileAxis, Span]:
    axis = draw(axes())
    start = draw(st.integers(0, axis.length - 1))
    return axis, Span(start, draw(st.integers(start + 1, axis.length)))


def walked_spans(axis: TileAxis) -> list[Span]:
    spans = [Span(0, axis.tile)]
    while spans[-1].stop < axis.length:
        start = spans[-1].start + axis.step
        spans.append(Span(start, start + axis.tile))
    return spans


def bounced(index: int, length: int) -> int:
    if length == 1:
        return 0
    while not 0 <= index < length:
        index = -index if index < 0 else 2 * (length - 1) - index
    return index


@given(axes())
def test_tiles_go_on_until_one_reaches_the_end_of_the_image(axis: TileAxis) -> None:
    assert [axis.span(i) for i in range(axis.count)] == walked_spans(axis)


@given(axes())
def test_one_tile_fewer_would_not_cover_the_image(axis: TileAxis) -> None:
    assert axis.count == 1 or axis.tile + (axis.count - 2) * axis.step < axis.length


@pytest.mark.parametrize(("length", "count"), [(256, 1), (257, 2), (384, 2), (520, 4), (696, 5), (1024, 7)])
def test_tiles_that_overlap_by_half(length: int, count: int) -> None:
    assert TileAxis.make(length, 256, 0.5).count == count


@given(axes())
def test_every_pixel_of_the_image_lies_in_a_tile(axis: TileAxis) -> None:
    seen = {pixel for i in range(axis.count) for pixel in range(axis.span(i).start, axis.span(i).stop)}
    assert seen >= set(range(axis.length))


@given(axes_with_target())
def test_touching_tiles_are_those_that_share_a_pixel_with_the_target(case: tuple[TileAxis, Span]) -> None:
    axis, target = case
    spans = walked_spans(axis)
    expected = [i for i, s in enumerate(spans) if s.start < target.stop and s.stop > target.start]
    assert list(axis.touching(target)) == expected


@given(axes_with_target())
def test_needed_pixels_are_those_that_the_touching_tiles_are_made_of(case: tuple[TileAxis, Span]) -> None:
    axis, target = case
    spans = [s for s in walked_spans(axis) if s.start < target.stop and s.stop > target.start]
    pixels = {bounced(i, axis.length) for s in spans for i in range(s.start, s.stop)}
    needed = axis.needed(target)
    assert pixels == set(range(needed.start, needed.stop))


@given(axes_with_target())
def test_halo_is_at_most_one_tile_on_each_side(case: tuple[TileAxis, Span]) -> None:
    axis, target = case
    needed = axis.needed(target)
    assert needed.start > target.start - axis.tile
    assert needed.stop < target.stop + axis.tile


@given(st.lists(st.integers(-500, 500), min_size=1), st.integers(1, 60))
def test_mirror_bounces_without_repeating_the_edge(indices: list[int], length: int) -> None:
    assert mirror(np.array(indices), length).tolist() == [bounced(i, length) for i in indices]


@given(st.integers(1, 20), st.integers(0, 60))
def test_mirror_pads_like_numpy_reflect(length: int, pad: int) -> None:
    expected = np.pad(np.arange(length), pad, mode="reflect")
    assert np.array_equal(mirror(np.arange(-pad, length + pad), length), expected)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 70))
def test_regions_cover_each_pixel_of_the_plane_once(height: int, width: int, size: int) -> None:
    regions = RegionGrid(height, width, size)
    seen = np.zeros((height, width), int)
    for index in range(regions.count):
        window = regions.window(index)
        assert window.pixels == seen[window.y.slice, window.x.slice].size
        seen[window.y.slice, window.x.slice] += 1
    assert (seen == 1).all()


@given(axes_with_target(), axes_with_target())
def test_grid_is_the_product_of_its_axes(a: tuple[TileAxis, Span], b: tuple[TileAxis, Span]) -> None:
    grid, target = Grid(a[0], b[0]), Window(a[1], b[1])
    tiles = list(grid.tiles(target))
    assert len(tiles) == grid.tile_count(target)
    assert [(t.row, t.column) for t in tiles] == sorted((t.row, t.column) for t in tiles)
    assert all(t.window == Window(grid.y.span(t.row), grid.x.span(t.column)) for t in tiles)
    assert grid.needed(target) == Window(grid.y.needed(target.y), grid.x.needed(target.x))
    whole = Window.of(0, grid.y.length, 0, grid.x.length)
    assert len(list(grid.tiles(whole))) == grid.count


@pytest.mark.parametrize("index", [-1, 4])
def test_a_region_outside_the_plane_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError):
        RegionGrid(10, 10, 5).window(index)


@pytest.mark.parametrize("arguments", [(0, 4, 0.5), (4, 0, 0.5), (4, 4, 1.0), (4, 4, -0.1)])
def test_a_grid_that_cannot_be_is_refused(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="no tile grid"):
        TileAxis.make(*arguments)
