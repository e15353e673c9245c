"""The window and the weighted sums, against sums over the whole plane at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Span, Window
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.inference.blending import BandBlender, gaussian_window
from tests.support import reference


@pytest.mark.parametrize("tile", [1, 2, 7, 32, 65])
def test_the_window_is_the_gaussian_of_the_reference(tile: int) -> None:
    window = gaussian_window((tile, tile)).numpy()
    np.testing.assert_allclose(window, reference.gaussian_window(tile), rtol=1e-6)
    assert window.max() == 1
    assert window.min() > 0
    assert np.array_equal(window, window[::-1, ::-1])
    assert np.array_equal(window, window.T)


def blend(shape: tuple[int, int], grid: Grid, target: Window, tile: int) -> NDArray[np.float32]:
    """Blend tiles of noise, a function of the tile's place alone, over `target`; rows must come once, in order."""
    rows: list[torch.Tensor] = []
    reached = target.y.start

    def sink(span: Span, maps: torch.Tensor) -> None:
        nonlocal reached
        assert span.start == reached
        reached = span.stop
        rows.append(maps.clone())

    blender = BandBlender(2, target, gaussian_window((tile, tile)), sink)
    for one in grid.tiles(target):
        blender.add(one, tile_maps(*one.index, tile))
    blender.finish()
    assert reached == target.y.stop
    return torch.cat(rows, dim=1).numpy()


def tile_maps(row: int, column: int, tile: int) -> torch.Tensor:
    return torch.rand((2, tile, tile), generator=torch.Generator().manual_seed(1000 * row + column))


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    tile=st.integers(1, 24),
    overlap=st.sampled_from([0.0, 0.2, 0.5, 0.8]),
    data=st.data(),
)
def test_a_part_of_the_plane_is_cut_from_the_whole_bit_for_bit(
    shape: tuple[int, int], tile: int, overlap: float, data: st.DataObject
) -> None:
    grid = Grid.make(shape, tile, overlap)
    y = sorted(data.draw(st.tuples(st.integers(0, shape[0] - 1), st.integers(1, shape[0]))))
    x = sorted(data.draw(st.tuples(st.integers(0, shape[1] - 1), st.integers(1, shape[1]))))
    target = Window.of(y[0], max(y[1], y[0] + 1), x[0], max(x[1], x[0] + 1))
    whole = blend(shape, grid, Window.of(0, shape[0], 0, shape[1]), tile)
    part = blend(shape, grid, target, tile)
    assert part.tobytes() == np.ascontiguousarray(whole[:, target.y.slice, target.x.slice]).tobytes()


def test_the_blend_is_the_weighted_mean_of_the_tiles() -> None:
    shape, tile = (21, 17), 8
    grid = Grid.make(shape, tile, 0.5)
    sums, weights = np.zeros((2, *shape)), np.zeros(shape)
    window = reference.gaussian_window(tile)
    for row, y0 in enumerate(reference.tile_starts(shape[0], tile, 0.5)):
        for column, x0 in enumerate(reference.tile_starts(shape[1], tile, 0.5)):
            maps = tile_maps(row, column, tile).numpy()
            for i in range(max(0, y0), min(shape[0], y0 + tile)):
                for j in range(max(0, x0), min(shape[1], x0 + tile)):
                    sums[:, i, j] += window[i - y0, j - x0] * maps[:, i - y0, j - x0]
                    weights[i, j] += window[i - y0, j - x0]
    found = blend(shape, grid, Window.of(0, shape[0], 0, shape[1]), tile)
    np.testing.assert_allclose(found, sums / weights, atol=1e-6)


def test_equal_tiles_give_their_value_everywhere() -> None:
    grid, target = Grid.make((30, 30), 16, 0.0), Window.of(0, 30, 0, 30)
    out: list[torch.Tensor] = []
    blender = BandBlender(1, target, gaussian_window((16, 16)), lambda _, maps: out.append(maps.clone()))
    for tile in grid.tiles(target):
        blender.add(tile, torch.full((1, 16, 16), 0.3))
    blender.finish()
    np.testing.assert_allclose(torch.cat(out, dim=1).numpy(), 0.3, rtol=1e-6)
