"""The tile grid against brute force: arithmetic must say what walking over the axis says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.pipeline.core.geometry import RegionGrid, Span, Window
from chorus.pipeline.core.tiling import Grid, TileAxis, mirror


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


@given(axes_with_target(), axes_with_target())
def test_grid_is_the_product_of_its_axes(a: tuple[TileAxis, Span], b: tuple[TileAxis, Span]) -> None:
    grid, target = Grid(a[0], b[0]), Window(a[1], b[1])
    tiles = list(grid.tiles(target))
    assert len(tiles) == grid.tile_count(target)
    assert [t.index for t in tiles] == sorted(t.index for t in tiles)
    assert all(t.window == Window(grid.y.span(t.index[0]), grid.x.span(t.index[1])) for t in tiles)
    assert grid.needed(target) == Window(grid.y.needed(target.y), grid.x.needed(target.x))
    whole = Window.of(0, grid.y.length, 0, grid.x.length)
    assert len(list(grid.tiles(whole))) == grid.count


@pytest.mark.parametrize("arguments", [(0, 4, 0.5), (4, 0, 0.5), (4, 4, 1.0), (4, 4, -0.1)])
def test_a_grid_that_cannot_be_is_refused(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="no tile grid"):
        TileAxis.make(*arguments)


VOLUMES = st.tuples(st.integers(1, 12), st.integers(1, 20), st.integers(1, 20))
BLOCKS = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9))


@given(shape=VOLUMES, tile=BLOCKS, overlap=st.sampled_from([0.0, 0.5, (0.5, 0.25, 0.0)]), data=st.data())
def test_tiles_of_a_volume_are_those_of_its_axes(
    shape: tuple[int, int, int], tile: tuple[int, int, int], overlap: Any, data: st.DataObject
) -> None:
    grid, block = Grid.make(shape, tile, overlap), RegionGrid.make(shape, data.draw(BLOCKS))
    target = block.window(data.draw(st.integers(0, block.count - 1)))
    tiles = list(grid.tiles(target))
    assert len(tiles) == grid.tile_count(target)
    assert [one.index for one in tiles] == sorted({one.index for one in tiles})
    everywhere = {one.index for one in grid.tiles(Window.whole(shape))}
    for index in everywhere:
        spans = [axis.span(at) for axis, at in zip(grid.axes, index, strict=True)]
        touches = all(a.start < b.stop and b.start < a.stop for a, b in zip(spans, target.spans, strict=True))
        assert touches == (index in {one.index for one in tiles})
    for one in tiles:
        assert all(span.start <= at < span.stop for span, at in zip(one.window.spans, grid.centre(one), strict=True))
    assert grid.needed(target).within(Window.whole(shape))
