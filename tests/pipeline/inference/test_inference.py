"""The law of the house at the engine: the same bytes whatever the cut, the order, the stages and the companions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chorus.pipeline.core.augmentation import AUGMENTATIONS, FLIPS
from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.core.outputs import CLASSES
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.posterior_builder import InferenceSettings
from chorus.pipeline.inference.stages import StageState
from chorus.pipeline.members.contract import Member, ModuleMember
from chorus.pipeline.scores.image_scores import RegionSums, region_sums
from tests.support.engines import (
    CPU,
    Filter,
    arrays_of,
    assert_same_bytes,
    noise,
    plane_window,
    posterior_of,
    settings_of,
)
from tests.support.making import network


class Probabilities(Filter):
    """The same for activation none."""

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        return super().__call__(tiles).softmax(dim=1)


def inference_settings(**changes: Any) -> InferenceSettings:
    defaults: dict[str, Any] = {"activation": "softmax", "multilabel": False, "classes": 2, "tile": 32, "batch": 1}
    return settings_of(**defaults | {"augmentations": FLIPS} | changes)


def filters(how: InferenceSettings, count: int) -> list[Member]:
    given = how.outputs[CLASSES]
    outputs, kind = given.channels, Probabilities if given.activation == "none" else Filter
    return [kind(seed, outputs) for seed in range(count)]


def by_region(
    engine: Engine, image: NDArray[np.float32], grid: Grid, region: int, order: Sequence[int] | None = None
) -> tuple[Posterior, RegionSums]:
    """The posterior put together from regions computed in `order`, and the sum of their sums."""
    height, width = image.shape[1:]
    cut = RegionGrid.make((height, width), region)
    windows = [cut.window(index) for index in order or range(cut.count)]
    return stitch(windows, [engine.posterior(plane_window(image, grid, w), w) for w in windows], (height, width))


def stitch(
    windows: Sequence[Window], parts: Sequence[Posterior], shape: tuple[int, int]
) -> tuple[Posterior, RegionSums]:
    whole: dict[str, NDArray[Any]] = {}
    for window, part in zip(windows, parts, strict=True):
        for name, values in arrays_of(part).items():
            full = whole.setdefault(name, np.zeros((*values.shape[:-2], *shape), values.dtype))
            full[..., window.y.slice, window.x.slice] = values
    # Patches of one pixel: regions begin anywhere here.
    sums = [region_sums(part, classes=part_classes(part), multilabel=False, patch=1) for part in parts]
    total = sums[0]
    for more in sums[1:]:
        total = total + more
    return posterior_of(whole), total


def part_classes(posterior: Posterior) -> int:
    return posterior.probability.shape[0]


SHAPES = st.tuples(st.integers(1, 90), st.integers(1, 90))


@settings(max_examples=40)
@given(
    shape=SHAPES,
    region=st.integers(7, 100),
    batch=st.integers(1, 4),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
    activation=st.sampled_from(["softmax", "sigmoid", "none"]),
    seed=st.integers(0, 100),
    data=st.data(),
)
def test_result_does_not_depend_on_region_size_or_order(
    shape: tuple[int, int], region: int, batch: int, overlap: float, activation: str, seed: int, data: st.DataObject
) -> None:
    how = inference_settings(activation=activation, batch=batch, augmentations=("identity", "rot90"))
    engine = Engine(filters(how, 2), how, CPU)
    image, grid = noise(shape, seed), Grid.make(shape, 32, overlap)
    whole, sums = by_region(engine, image, grid, max(shape))
    order = data.draw(st.permutations(range(RegionGrid.make(shape, region).count)))
    cut, cut_sums = by_region(engine, image, grid, region, order)
    assert_same_bytes(whole, cut)
    assert sums == cut_sums


@settings(max_examples=30)
@given(
    shape=SHAPES,
    members=st.integers(1, 5),
    batch=st.integers(1, 3),
    multilabel=st.booleans(),
    data=st.data(),
)
def test_result_does_not_depend_on_how_members_are_spread_over_stages(
    shape: tuple[int, int], members: int, batch: int, multilabel: bool, data: st.DataObject
) -> None:
    how = inference_settings(
        activation="sigmoid" if multilabel else "softmax", multilabel=multilabel, classes=3, batch=batch
    )
    loaded = filters(how, members)
    image, grid = noise(shape, members), Grid.make(shape, 32, 0.5)
    target = Window.of(0, shape[0], 0, shape[1])
    plane = plane_window(image, grid, target)
    together = Engine(loaded, how, CPU).posterior(plane, target)
    cuts = sorted(data.draw(st.sets(st.integers(1, members - 1)))) if members > 1 else []
    state: StageState | None = None
    for a, b in zip([0, *cuts], [*cuts, members], strict=True):
        engine = Engine(loaded[a:b], how, CPU)
        state = engine.stage(plane, target, state)
    assert state is not None
    assert_same_bytes(together, engine.conclude(plane, target, state))


@settings(max_examples=25)
@given(shape=SHAPES, batch=st.integers(2, 7), activation=st.sampled_from(["softmax", "sigmoid"]))
def test_result_does_not_depend_on_the_batch_of_members_that_treat_tiles_alone(
    shape: tuple[int, int], batch: int, activation: str
) -> None:
    image, grid = noise(shape, 1), Grid.make(shape, 32, 0.5)
    results = []
    for size in (1, batch):
        how = inference_settings(activation=activation, batch=size)
        results.append(by_region(Engine(filters(how, 2), how, CPU), image, grid, 64)[0])
    assert_same_bytes(*results)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("tile", "overlap"), [(33, 0.5), (33, 0.0), (37, 0.0)])
def test_a_tile_may_lie_anywhere_in_its_batch_even_where_its_size_is_odd(
    activation: str, tile: int, overlap: float
) -> None:
    # Vectorised functions may treat the last few numbers of a batch otherwise than the others.
    how = inference_settings(activation=activation, batch=3, tile=tile, augmentations=("identity",))
    engine = Engine(filters(how, 2), how, CPU)
    image, grid = noise((120, 110), 3), Grid.make((120, 110), tile, overlap)
    whole, sums = by_region(engine, image, grid, 120)
    for region in (23, 40, 61):
        cut, cut_sums = by_region(engine, image, grid, region)
        assert_same_bytes(whole, cut)
        assert sums == cut_sums


@pytest.mark.parametrize("batch", [1, 3])
def test_real_networks_keep_the_law(batch: int) -> None:
    how = inference_settings(classes=3, batch=batch)
    engine = Engine([ModuleMember(network(seed, outputs=3), CPU) for seed in range(2)], how, CPU)
    image, grid = noise((70, 53), 0), Grid.make((70, 53), 32, 0.5)
    whole, sums = by_region(engine, image, grid, 70)
    for region in (16, 48):
        cut, cut_sums = by_region(engine, image, grid, region)
        assert_same_bytes(whole, cut)
        assert sums == cut_sums


@settings(max_examples=25)
@given(shape=SHAPES, name=st.sampled_from(sorted(AUGMENTATIONS)))
def test_a_member_that_sees_each_pixel_alone_answers_the_same_under_every_symmetry(
    shape: tuple[int, int], name: str
) -> None:
    class Echo:
        activation = None

        def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
            return torch.cat([1 - tiles, tiles], dim=1)

        def parameters_bytes(self) -> int:
            return 0

    how = inference_settings(activation="none", augmentations=(name,))
    image = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    found, _ = by_region(Engine([Echo()], how, CPU), image, Grid.make(shape, 32, 0.5), 40)
    np.testing.assert_allclose(found.probability[1], image[0], atol=1e-6)


def test_the_image_is_read_only_where_it_is_needed() -> None:
    how = inference_settings()
    grid, target = Grid.make((200, 200), 32, 0.5), Window.of(96, 112, 96, 112)
    needed = grid.needed(target)
    assert needed.shape[0] <= 16 + 2 * 32
    image = np.full((1, 200, 200), np.nan, np.float32)
    image[:, needed.y.slice, needed.x.slice] = 0.5
    found = Engine(filters(how, 1), how, CPU).posterior(plane_window(image, grid, target), target)
    assert np.isfinite(found.probability).all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_near_and_keeps_the_law(precision: str) -> None:
    members = [ModuleMember(network(seed), CPU) for seed in range(2)]
    image, grid = noise((50, 40), 0), Grid.make((50, 40), 32, 0.5)
    full, _ = by_region(Engine(members, inference_settings(), CPU), image, grid, 50)
    engine = Engine(members, inference_settings(precision=precision), CPU)
    low, _ = by_region(engine, image, grid, 50)
    assert np.abs(low.probability - full.probability).mean() < 0.05
    assert_same_bytes(low, by_region(engine, image, grid, 16)[0])
