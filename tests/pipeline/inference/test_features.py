"""Encoder features: each tile counts once, sums are exact, and they are what the encoder itself says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.inference.encoder_features import TileFeatures, centres_in, pooled
from chorus.pipeline.inference.engine import Engine, PlaneWindow
from chorus.pipeline.inference.feature_records import FeatureSums, FeatureTotal, ImageFeatures
from chorus.pipeline.inference.stages import StageState
from chorus.pipeline.members.contract import ModuleMember
from chorus.pipeline.preprocessing.resampling import AxisMap
from chorus.pipeline.scores.image_scores import FIXED_POINT
from tests.support.engines import settings_of
from tests.support.making import network
from tests.support.reference import Array, reference_features

CPU = torch.device("cpu")
SHAPES = st.tuples(st.integers(1, 150), st.integers(1, 150))


# tiles and regions


@settings(max_examples=50)
@given(
    image=SHAPES,
    model=st.none() | SHAPES,
    region=st.integers(1, 100),
    tile=st.integers(1, 48),
    overlap=st.floats(0, 0.99),
)
def test_every_tile_counts_for_one_region_which_evaluates_it(
    image: tuple[int, int], model: tuple[int, int] | None, region: int, tile: int, overlap: float
) -> None:
    model = model or image
    grid, regions = Grid.make(model, tile, overlap), RegionGrid.make(image, max(region, max(image) // 4))
    y, x = AxisMap.make(model[0], image[0]), AxisMap.make(model[1], image[1])
    counted: list[tuple[int, int]] = []
    for index in range(regions.count):
        window = regions.window(index)
        target = Window(y.needed(window.y), x.needed(window.x)) if image != model else window
        tiles, centres = list(grid.tiles(target)), centres_in(window, image, model)
        features = TileFeatures(grid, centres)
        features.add(tiles, torch.ones((len(tiles) + 2, 1), dtype=torch.int64))
        own = [t for t in tiles if holds(centres, *grid.centre(t))]
        counted += [t.index for t in own]
        assert (features.tiles, features.sums().tolist()) == (len(own), [len(own)])
    assert sorted(counted) == [(row, column) for row in range(grid.y.count) for column in range(grid.x.count)]


def holds(window: Window, y: int, x: int) -> bool:
    return window.y.start <= y < window.y.stop and window.x.start <= x < window.x.stop


@given(length=st.integers(1, 300), model=st.integers(1, 300), edges=st.lists(st.integers(1, 299), max_size=5))
def test_regions_part_the_models_pixels_by_what_lies_under_their_centres(
    length: int, model: int, edges: list[int]
) -> None:
    under = AxisMap.make(length, model).nearest(Window.of(0, model, 0, 1).y)
    cuts = [0, *sorted({edge for edge in edges if edge < length}), length]
    seen: list[int] = []
    for start, stop in pairwise(cuts):
        found = centres_in(Window.of(start, stop, 0, 1), (length, 1), (model, 1)).y
        assert list(range(found.start, found.stop)) == np.flatnonzero((under >= start) & (under < stop)).tolist()
        seen += range(found.start, found.stop)
    assert seen == list(range(model))


@given(length=st.integers(1, 200), tile=st.integers(1, 80), overlap=st.floats(0, 0.99))
def test_a_centre_lies_in_its_tile_and_in_the_plane(length: int, tile: int, overlap: float) -> None:
    axis = Grid.make((length, 1), tile, overlap).y
    for index in range(axis.count):
        span, centre = axis.span(index), axis.centre(index)
        assert max(span.start, 0) <= centre < min(span.stop, length)
        if span.start >= 0 and span.stop <= length:
            assert centre == span.start + tile // 2


# numbers


def test_pooled_features_are_means_in_fixed_point() -> None:
    stage = torch.randn((3, 40, 5, 7), generator=torch.Generator().manual_seed(0)) * 100
    found = pooled(stage).numpy()
    assert found.dtype == np.int64
    np.testing.assert_allclose(found / FIXED_POINT, stage.double().mean(dim=(2, 3)).numpy(), rtol=0, atol=35 / 2**33)


@given(seed=st.integers(0, 100), height=st.integers(1, 9), width=st.integers(1, 9), batch=st.integers(1, 6))
def test_pooling_does_not_depend_on_order_layout_or_companions(seed: int, height: int, width: int, batch: int) -> None:
    stage = torch.randn((batch, 13, height, width), generator=torch.Generator().manual_seed(seed))
    found = pooled(stage)
    assert torch.equal(found, pooled(stage.flip(2, 3)))
    assert torch.equal(found, pooled(stage.contiguous(memory_format=torch.channels_last)))
    assert torch.equal(found, pooled(stage.flip(0)).flip(0))
    assert torch.equal(found[-1:], pooled(stage[-1:]))


def test_what_is_no_number_or_beyond_all_measure_stays_within_bounds() -> None:
    bad = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -7e4])[None, :, None, None].expand(1, 5, 4, 4)
    assert (pooled(bad)[0] / FIXED_POINT).tolist() == [0, 2**16, -(2**16), 2**16, -(2**16)]
    tiles = torch.full((2**14, 1), 2**48, dtype=torch.int64)
    assert int(tiles.sum()) == 2**62


def test_totals_of_an_image_are_exact_beyond_64_bits() -> None:
    total = FeatureTotal()
    for _ in range(8):
        total.add(FeatureSums.of(2**14, np.array([2**62, -(2**62), 3])))
    found = total.mean()
    assert found.tiles == 2**17
    assert found.mean.tolist() == [2.0**16, -(2.0**16), 24 / (2**17 * FIXED_POINT)]
    nothing = FeatureTotal()
    nothing.add(FeatureSums.of(9, np.zeros(0, np.int64)))
    assert (nothing.mean().tiles, nothing.mean().mean.size) == (9, 0)


@given(st.lists(st.integers(-(2**62), 2**62), max_size=40))
def test_sums_are_packed_and_unpacked(values: list[int]) -> None:
    packed = FeatureSums.of(3, np.array(values, np.int64))
    read = FeatureSums.model_validate_json(packed.model_dump_json())
    assert (read.tiles, read.sums.tolist()) == (3, values)
    mean = np.array(values, np.float64)
    assert ImageFeatures.model_validate_json(ImageFeatures.of(3, mean).model_dump_json()).mean.tolist() == mean.tolist()


def test_a_record_of_five_large_encoders_is_small() -> None:
    """As after a ReLU, 512 channels each, over the tiles of a region of 2048."""
    rng = np.random.default_rng(0)
    means = np.maximum(rng.normal(size=(289, 5 * 512)), 0)
    sums = np.rint(means * FIXED_POINT).astype(np.int64).sum(axis=0)
    assert len(FeatureSums.of(289, sums).model_dump_json()) < 25_000


# the engine


class Summary:
    """A cheap member with an encoder: its stage is what it sees, coarsened."""

    activation = None
    features = 3

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._weights = torch.randn((self.features, 1, 8, 8), generator=generator)
        self._stage = torch.zeros(0)

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        self._stage = torch.nn.functional.conv2d(tiles, self._weights, stride=8)
        return torch.cat([tiles, -tiles], dim=1)

    def encoded(self) -> torch.Tensor:
        return self._stage

    def parameters_bytes(self) -> int:
        return 0

    def reference(self, pixels: Array) -> Array:
        """The same, in float64."""
        with torch.inference_mode():
            stage = torch.nn.functional.conv2d(torch.from_numpy(pixels)[None], self._weights.double(), stride=8)
        found: Array = stage[0].numpy()
        return found


class Plain:
    """A member without an encoder."""

    activation = None

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        return torch.cat([tiles, -tiles], dim=1)

    def parameters_bytes(self) -> int:
        return 0


def features_of(
    members: Sequence[Any],
    image: NDArray[np.float32],
    *,
    region: int,
    batch: int = 1,
    stages: Sequence[int] = (),
    order: Sequence[int] | None = None,
    augmentations: tuple[str, ...] = ("hflip", "identity"),
) -> ImageFeatures:
    """Of an image in regions, with the members cut into stages."""
    how = settings_of("softmax", False, 2, 32, augmentations, batch)
    shape = image.shape[1], image.shape[2]
    grid, regions, total = Grid.make(shape, 32, 0.5), RegionGrid.make(shape, region), FeatureTotal()
    cuts = [0, *stages, len(members)]
    engines = [Engine(members[a:b], how, CPU) for a, b in pairwise(cuts)]
    for index in order or range(regions.count):
        target = regions.window(index)
        needed = grid.needed(target)
        plane = PlaneWindow(np.ascontiguousarray(image[:, needed.y.slice, needed.x.slice]), needed, grid)
        state: StageState | None = None
        for engine in engines:
            seen = TileFeatures(grid, centres_in(target, shape, shape))
            if len(engines) == 1:
                engine.posterior(plane, target, seen)
                sums = seen.sums()
            else:
                state = engine.stage(plane, target, state, seen)
                sums = state.features
        total.add(FeatureSums.of(seen.tiles, sums))
    return total.mean()


@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    region=st.integers(7, 100),
    batch=st.integers(1, 4),
    stages=st.sets(st.integers(1, 3)),
    data=st.data(),
)
def test_features_do_not_depend_on_regions_order_batch_or_stages(
    shape: tuple[int, int], region: int, batch: int, stages: set[int], data: st.DataObject
) -> None:
    members = [Summary(0), Plain(), Summary(1), Summary(2)]
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    whole = features_of(members, image, region=100)
    order = data.draw(st.permutations(range(RegionGrid.make(shape, region).count)))
    assert features_of(members, image, region=region, batch=batch, stages=sorted(stages), order=order) == whole
    wanted = reference_features(image.astype(np.float64), [members[i].reference for i in (0, 2, 3)], 32, 0.5)
    np.testing.assert_allclose(whole.mean, wanted, atol=1e-4)


def test_without_identity_the_first_augmentation_is_looked_at() -> None:
    image = np.random.default_rng(0).normal(size=(1, 40, 50)).astype(np.float32)
    found = features_of([Summary(0)], image, region=64, augmentations=("rot90", "hflip"))
    for view, same in (("rot90", True), ("hflip", False), ("identity", False)):
        wanted = reference_features(image.astype(np.float64), [Summary(0).reference], 32, 0.5, view)
        assert np.allclose(found.mean, wanted, atol=1e-4) == same


@pytest.mark.parametrize("batch", [1, 3])
def test_real_encoders_keep_the_law_and_agree_with_the_reference(batch: int) -> None:
    modules = [network(seed) for seed in range(2)]
    members = [ModuleMember(module, CPU) for module in modules]
    image = np.random.default_rng(0).normal(size=(1, 60, 43)).astype(np.float32)
    whole = features_of(members, image, region=100, batch=batch)
    assert features_of(members, image, region=24, batch=batch) == whole
    assert features_of(members, image, region=48, batch=batch, stages=[1]) == whole

    def encoder(module: Any) -> Any:
        def call(pixels: Array) -> Array:
            with torch.inference_mode():
                stage: Array = module.encoder(torch.from_numpy(pixels)[None])[-1][0].numpy()
            return stage

        return call

    wanted = reference_features(image.astype(np.float64), [encoder(m.double()) for m in modules], 32, 0.5)
    np.testing.assert_allclose(whole.mean, wanted, atol=1e-4)
