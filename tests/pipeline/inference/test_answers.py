"""Answers that are coarser than their tile, or lack its rim: all of the image is covered, however it is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chorus.pipeline.core.answers import AnswerShape
from chorus.pipeline.core.augmentation import D4, VOLUME_FLIPS
from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.core.outputs import DISTANCE, Output, Outputs, classes_of, rays_of
from chorus.pipeline.core.tiling import mirror
from chorus.pipeline.inference.engine import Engine, PlaneWindow
from chorus.pipeline.inference.posterior_builder import InferenceSettings
from chorus.pipeline.inference.stages import StageState
from tests.support.engines import CPU, arrays_of, assert_same_bytes, noise, plane_window

OUTPUTS = Outputs((classes_of(("background", "cell"), "sigmoid", width=1), Output(DISTANCE, ("value",))))


class Shaped:
    """A member whose distance is the pixel itself, on a grid and without a rim."""

    activation = None

    def __init__(self, answer: AnswerShape, seed: int = 0) -> None:
        self.answer, self.seed = answer, seed

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        axes = tiles.ndim - 2
        for axis, crop, grid in zip(
            range(2, tiles.ndim), self.answer.crops(axes), self.answer.grids(axes), strict=True
        ):
            tiles = tiles.narrow(axis, crop, tiles.shape[axis] - 2 * crop)
            tiles = tiles.index_select(axis, torch.arange(0, tiles.shape[axis], grid))
        return torch.cat([tiles, tiles + self.seed], dim=1)

    def parameters_bytes(self) -> int:
        return 0


def how(answer: AnswerShape, tile: tuple[int, ...] = (32, 32), batch: int = 2, ways: tuple[str, ...] = ("identity",)):
    return InferenceSettings(OUTPUTS, False, tile, ways, batch, answer=answer)


SHAPES = [
    AnswerShape(crop=6),
    AnswerShape(grid=2),
    AnswerShape(grid=4, crop=4),
    AnswerShape(grid=(2, 4), crop=(2, 8)),
]


@pytest.mark.parametrize("answer", SHAPES, ids=str)
@settings(max_examples=15)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    region=st.integers(7, 100),
    overlap=st.sampled_from([0.0, 0.3, 0.5]),
    batch=st.integers(1, 4),
)
def test_the_result_does_not_depend_on_regions_and_every_pixel_is_answered(
    answer: AnswerShape, shape: tuple[int, int], region: int, overlap: float, batch: int
) -> None:
    image, grid = noise(shape, 1), answer.tiles(shape, 32, overlap)
    engine, whole = Engine([Shaped(answer)], how(answer, batch=batch), CPU), Window.whole(shape)
    wanted = arrays_of(engine.posterior(plane_window(image, grid, whole), whole))
    # Points keep what members say of them: here, the pixel, wherever the tiles lie.
    steps = tuple(slice(None, None, step) for step in answer.grids(2))
    np.testing.assert_allclose(wanted["distances"][0][steps], image[0][steps], atol=1e-5)
    regions = RegionGrid.make(shape, region)
    for index in range(regions.count):
        target = regions.window(index)
        # Only the pixels that `target` needs are handed over.
        for name, values in arrays_of(engine.posterior(plane_window(image, grid, target), target)).items():
            expected = wanted[name][..., target.y.slice, target.x.slice]
            assert values.tobytes() == np.ascontiguousarray(expected).tobytes(), name


@pytest.mark.parametrize("answer", SHAPES[:3], ids=str)
def test_beyond_the_image_members_see_its_mirror(answer: AnswerShape) -> None:
    image, seen = noise((40, 50), 2), []

    class Watching(Shaped):
        def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
            seen.append(tiles.clone())
            return super().__call__(tiles)

    grid, whole = answer.tiles((40, 50), 32, 0.5), Window.whole((40, 50))
    Engine([Watching(answer)], how(answer, batch=1), CPU).posterior(PlaneWindow(image, whole, grid), whole)
    (crop, _), step = answer.crops(2), grid.y.step
    starts = [
        (row * step - crop, column * step - crop) for row in range(grid.y.count) for column in range(grid.x.count)
    ]
    assert len(seen) == len(starts)
    for tile, (y, x) in zip(seen, starts, strict=True):
        rows, columns = mirror(np.arange(y, y + 32), 40), mirror(np.arange(x, x + 32), 50)
        assert np.array_equal(tile[0, 0].numpy(), image[0][np.ix_(rows, columns)])
        assert (y + crop) % answer.grids(2)[0] == 0


def test_a_smooth_image_is_the_same_under_all_augmentations_on_a_grid() -> None:
    y, x = np.mgrid[:64, :64]
    image = (0.02 * y + 0.03 * x).astype(np.float32)[None]
    answer, whole = AnswerShape(grid=2, crop=4), Window.whole((64, 64))
    grid = answer.tiles((64, 64), 32, 0.5)
    members = [Shaped(answer)]
    once = Engine(members, how(answer), CPU).posterior(PlaneWindow(image, whole, grid), whole)
    all_eight = Engine(members, how(answer, ways=D4), CPU).posterior(PlaneWindow(image, whole, grid), whole)
    # Linear between points, but for the last pixel of a tile.
    np.testing.assert_allclose(all_eight.fields["distances"], once.fields["distances"], atol=0.04)
    inside = (slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(once.fields["distances"][inside], image[inside], atol=0.02)


def test_stages_and_volumes_have_it_too() -> None:
    answer, shape = AnswerShape(grid=(1, 2, 2), crop=(1, 4, 4)), (9, 40, 30)
    image, whole = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32), Window.whole(shape)
    grid, settings_ = answer.tiles(shape, (8, 32, 32), 0.5), how(answer, (8, 32, 32), ways=VOLUME_FLIPS)
    members = [Shaped(answer, seed) for seed in range(3)]
    plane = PlaneWindow(image, whole, grid)
    together = Engine(members, settings_, CPU).posterior(plane, whole)
    state: StageState | None = None
    for member in members:
        state = Engine([member], settings_, CPU).stage(plane, whole, state)
    assert state is not None
    assert_same_bytes(together, Engine(members, settings_, CPU).conclude(plane, whole, state))
    assert together.fields["distances"].shape == (1, *shape)
    plain = Engine(members, replace(settings_, augmentations=("identity",)), CPU).posterior(plane, whole)
    np.testing.assert_allclose(plain.fields["distances"][0, :, ::2, ::2], image[0, :, ::2, ::2] + 1, atol=1e-5)
    np.testing.assert_allclose(plain.fields["distance_variance"], 2 / 3, atol=1e-5)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (AnswerShape(grid=2, crop=3), "crop 3 is not a multiple of grid 2"),
        (AnswerShape(grid=3), "is no multiple of grid 3"),
        (AnswerShape(crop=16), "less 16 on both sides"),
        (AnswerShape(grid=(1, 2, 2)), "one for each"),
        (AnswerShape(grid=(1, 2)), "rot90 exchanges y and x"),
        (AnswerShape(grid=2, crop=4), ""),
    ],
)
def test_what_does_not_go_with_the_tile_is_refused_in_words(answer: AnswerShape, sentence: str) -> None:
    reason = answer.wrong((32, 32), exchanging="rot90")
    assert sentence in reason
    assert bool(reason) == bool(sentence)


def test_a_point_of_the_grid_keeps_its_value_whatever_lies_between() -> None:
    rays = rays_of(8, (0, 9))
    values = torch.rand((2, len(rays.names), 5, 7))
    assert torch.equal(AnswerShape(grid=(3, 2)).spread(values)[:, :, ::3, ::2], values)
    assert AnswerShape().spread(values) is values
