"""Members that take volumes: the same bytes for any blocks, order and stages, and the values of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chorus.pipeline.core.augmentation import VOLUME_AUGMENTATIONS
from chorus.pipeline.core.geometry import RegionGrid, Span, Window
from chorus.pipeline.core.outputs import (
    AFFINITIES,
    BOUNDARY,
    DISTANCE,
    VALUES,
    Output,
    Outputs,
    classes_of,
    flows_of,
)
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.inference.blending import BandBlender, gaussian_window
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.posterior_builder import InferenceSettings
from chorus.pipeline.inference.stages import StageState
from chorus.pipeline.inference.tile_stream import PlaneWindow
from tests.support.engines import CPU, arrays_of, assert_same_bytes, posterior_of, settings_of
from tests.support.volume_reference import importance, posterior_of_volume

TILE = (4, 9, 8)
SHAPES = st.tuples(st.integers(1, 11), st.integers(1, 25), st.integers(1, 25))


class Filter:
    """A cheap member of volumes that is not symmetric: one random convolution of 3 x 3 x 3."""

    activation = None

    def __init__(self, seed: int, outputs: int) -> None:
        self._weights = torch.randn((outputs, 1, 3, 3, 3), generator=torch.Generator().manual_seed(seed))

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv3d(tiles, self._weights.to(tiles.dtype), padding=1)

    def parameters_bytes(self) -> int:
        return self._weights.numel() * 4

    def by_the_letter(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        return self(torch.from_numpy(pixels)[None])[0].numpy()


def how(**changes: Any) -> InferenceSettings:
    plain: dict[str, Any] = {"classes": 3, "tile": TILE, "batch": 2, "augmentations": ("identity", "zhflip")}
    return settings_of(**plain | changes)


def noise(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)


def needed(image: NDArray[np.float32], grid: Grid, target: Window) -> PlaneWindow:
    """Only what `target` needs is handed over, so that reading too little shows."""
    window = grid.needed(target)
    return PlaneWindow(np.ascontiguousarray(image[:, *window.slices]), window, grid)


def stitched(
    image: NDArray[np.float32], grid: Grid, engine: Engine, block: Sequence[int], order: Sequence[int] | None = None
) -> Posterior:
    shape = image.shape[1:]
    cut, whole = RegionGrid.make(shape, block), dict[str, NDArray[Any]]()
    for index in order or range(cut.count):
        target = cut.window(index)
        for name, values in arrays_of(engine.posterior(needed(image, grid, target), target)).items():
            full = whole.setdefault(name, np.zeros((*values.shape[:-3], *shape), values.dtype))
            full[..., *target.slices] = values
    return posterior_of(whole)


@settings(max_examples=30, deadline=None)
@given(
    shape=SHAPES,
    block=st.tuples(st.integers(1, 7), st.integers(5, 30), st.integers(5, 30)),
    batch=st.integers(1, 4),
    overlap=st.sampled_from([0.0, 0.25, (0.5, 0.25, 0.0)]),
    seed=st.integers(0, 50),
    data=st.data(),
)
def test_a_volume_does_not_depend_on_its_blocks_or_their_order(
    shape: tuple[int, int, int],
    block: tuple[int, int, int],
    batch: int,
    overlap: Any,
    seed: int,
    data: st.DataObject,
) -> None:
    settings_ = how(batch=batch)
    engine = Engine([Filter(n, 3) for n in range(2)], settings_, CPU)
    image, grid = noise(shape, seed), Grid.make(shape, TILE, overlap)
    order = data.draw(st.permutations(range(RegionGrid.make(shape, block).count)))
    assert_same_bytes(stitched(image, grid, engine, shape), stitched(image, grid, engine, block, order))


@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, overlap=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 50))
def test_a_volume_is_what_the_reference_says_of_it(shape: tuple[int, int, int], overlap: float, seed: int) -> None:
    names = ("identity", "zflip", "hvflip", "zvflip")
    members = [Filter(n, 3) for n in range(2)]
    engine, image = Engine(members, how(augmentations=names), CPU), noise(shape, seed)
    grid, target = Grid.make(shape, TILE, overlap), Window.whole(shape)
    found = engine.posterior(needed(image, grid, target), target)
    wanted = posterior_of_volume(
        image.astype(np.float64), [member.by_the_letter for member in members], TILE, overlap, names
    )
    np.testing.assert_allclose(found.probability, wanted["probability"], atol=2e-5)
    np.testing.assert_allclose(found.epistemic, wanted["epistemic"], atol=2e-5)
    np.testing.assert_allclose(found.aleatoric, wanted["aleatoric"], atol=2e-5)
    sure = np.diff(np.sort(wanted["probability"], axis=0)[-2:], axis=0)[0] > 1e-4
    assert (found.labels[sure] == wanted["probability"].argmax(axis=0)[sure]).all()


@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, members=st.integers(2, 4), first=st.integers(1, 3), seed=st.integers(0, 50))
def test_a_volume_does_not_depend_on_how_members_are_spread_over_stages(
    shape: tuple[int, int, int], members: int, first: int, seed: int
) -> None:
    loaded, settings_ = [Filter(n, 3) for n in range(members)], how()
    image, grid, target = noise(shape, seed), Grid.make(shape, TILE, 0.5), Window.whole(shape)
    plane = needed(image, grid, target)
    state: StageState | None = None
    for part in (loaded[:first], loaded[first:]):
        if part:
            state = Engine(part, settings_, CPU).stage(plane, target, state)
    assert state is not None
    staged = Engine(loaded[-1:], settings_, CPU).conclude(plane, target, state)
    assert_same_bytes(Engine(loaded, settings_, CPU).posterior(plane, target), staged)


def test_the_window_of_a_volume_is_the_product_of_gaussians() -> None:
    window = gaussian_window((5, 16, 9)).numpy()
    np.testing.assert_allclose(window, importance((5, 16, 9)), rtol=1e-6)
    assert window.min() > 0
    assert np.array_equal(window, window[::-1, ::-1, ::-1])


def test_bands_of_a_volume_come_once_and_in_order() -> None:
    grid, target = Grid.make((11, 20, 17), TILE, 0.5), Window.of(2, 9, 3, 18, 0, 17)
    spans: list[Span] = []
    blender = BandBlender(1, target, gaussian_window(TILE), lambda span, maps: spans.append(span))
    for tile in grid.tiles(target):
        blender.add(tile, torch.ones((1, *TILE)))
    blender.finish()
    assert [span.start for span in spans] == [2, *(span.stop for span in spans[:-1])]
    assert spans[-1].stop == 9


def test_equal_tiles_blend_to_themselves() -> None:
    rows: list[torch.Tensor] = []
    grid, target = Grid.make((9, 20, 17), TILE, (0.5, 0.0, 0.25)), Window.whole((9, 20, 17))
    blender = BandBlender(2, target, gaussian_window(TILE), lambda _, maps: rows.append(maps.clone()))
    add = partial(torch.full, (2, *TILE))
    for tile in grid.tiles(target):
        blender.add(tile, add(0.25))
    blender.finish()
    found = torch.cat(rows, dim=1)
    assert found.shape == (2, 9, 20, 17)
    assert torch.allclose(found, torch.tensor(0.25), atol=1e-6)


OFFSETS = ((1, 0, 0), (0, -1, 0), (0, 0, 2))
ROLES = Outputs(
    (
        classes_of(("background", "nucleus"), "sigmoid", width=1),
        flows_of("zyx"),
        Output(DISTANCE, ("centre",)),
        Output(BOUNDARY, ("boundary",), "sigmoid"),
        Output(AFFINITIES, tuple(map(str, OFFSETS)), "none", vectors=OFFSETS),
        Output(VALUES, ("intensity",)),
    )
)


class Equivariant:
    """A member of volumes that says of each voxel the same in every orientation: every role once."""

    activation = None

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        slopes = torch.gradient(tiles, dim=(2, 3, 4))
        pairs = [-((tiles - self.moved(tiles, offset)) ** 2) for offset in OFFSETS]
        return torch.cat([tiles, *slopes, -tiles, 2 * tiles, *pairs, 10 * tiles], dim=1)

    @staticmethod
    def moved(tiles: torch.Tensor, offset: Sequence[int]) -> torch.Tensor:
        """The voxel at an offset of each voxel, the nearest of the tile where that is beyond it."""
        for axis, step in enumerate(offset, 2):
            index = (torch.arange(tiles.shape[axis]) + step).clamp(0, tiles.shape[axis] - 1)
            tiles = tiles.index_select(axis, index)
        return tiles

    def parameters_bytes(self) -> int:
        return 0


def of_roles(augmentations: Sequence[str], tile: tuple[int, ...]) -> InferenceSettings:
    return InferenceSettings(ROLES, False, tile, tuple(augmentations), 1)


def test_all_symmetries_of_an_equivariant_member_say_what_it_says_of_a_volume_itself() -> None:
    shape = (4, 8, 8)
    image, grid, target = noise(shape, 1), Grid.make(shape, shape, 0.0), Window.whole(shape)
    plane = needed(image, grid, target)
    plain = Engine([Equivariant()], of_roles(["identity"], shape), CPU).posterior(plane, target)
    flips = [name for name in VOLUME_AUGMENTATIONS if not VOLUME_AUGMENTATIONS[name].exchanges]
    turned = Engine([Equivariant()], of_roles(flips, shape), CPU).posterior(plane, target)
    inside = np.s_[:, 2:-2, 2:-2, 2:-2]  # a pair that reaches beyond the tile is known in no orientation
    assert {"flows", "distances", "boundary", "affinities", "values"} <= plain.fields.keys()
    for name, values in plain.fields.items():
        np.testing.assert_allclose(turned.fields[name][inside], values[inside], atol=2e-5, err_msg=name)


@settings(max_examples=10, deadline=None)
@given(shape=st.tuples(st.integers(4, 11), st.integers(9, 20), st.integers(9, 20)), seed=st.integers(0, 50))
def test_no_role_depends_on_the_blocks_of_a_volume(shape: tuple[int, int, int], seed: int) -> None:
    engine = Engine([Equivariant()], of_roles(["identity", "zvflip", "hflip"], (4, 9, 8)), CPU)
    image, grid = noise(shape, seed), Grid.make(shape, (4, 9, 8), 0.5)
    assert_same_bytes(stitched(image, grid, engine, shape), stitched(image, grid, engine, (3, 7, 11)))
