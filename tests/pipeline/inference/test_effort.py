"""Adaptive effort: who decides which tiles are done, and that the decision is the tile's alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chorus.pipeline.core.augmentation import D4, FLIPS
from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.core.outputs import CLASSES
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.inference.adaptive import tiles_in_wave
from chorus.pipeline.inference.adaptive_bound import EffortBound
from chorus.pipeline.inference.encoder_features import TileFeatures
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.posterior_builder import InferenceSettings
from chorus.pipeline.inference.tile_stream import PlaneWindow
from chorus.pipeline.members.contract import Member, ModuleMember
from tests.support.engines import CPU, Filter, assert_same_bytes, noise, plane_window, settings_of
from tests.support.making import network
from tests.support.reference import decide, gaussian_window, mirrored_tile, tile_maps

MAPS = ("probability", "epistemic", "aleatoric", "flow_variance", "flows", "labels", "masks", "member_masks")


def bound(first: float, second: float | None = None, augmentations: Sequence[str] = FLIPS) -> EffortBound:
    """Tiles are done with at most these shares of pixels in doubt at the two looks; the same where one is given."""
    limits = [first, first if second is None else second][: min(2, len(augmentations) - 1)]
    known = {"ensemble": "", "tile": 32, "overlap": 0.5, "augmentations": list(augmentations), "images": 1, "tiles": 1}
    factors = [0.5 / limit if limit else 1e6 for limit in limits]
    return EffortBound.model_validate(known | {"changed": 0.5, "factors": factors, "stopped": [0, 0]})


def how(doubtful: float | None, **changes: Any) -> InferenceSettings:
    defaults: dict[str, Any] = {"activation": "softmax", "multilabel": False, "classes": 2, "tile": 32, "batch": 1}
    names = changes.get("augmentations", FLIPS)
    effort = None if doubtful is None else bound(doubtful, augmentations=names)
    return settings_of(**defaults | {"augmentations": FLIPS, "effort": effort} | changes)


class Soft(Filter):
    """A member that is surer the brighter it is around a pixel, so that tiles differ in how doubtful they are."""

    def __init__(self, seed: int, outputs: int) -> None:
        super().__init__(seed, outputs)
        self._weights = 0.1 * self._weights + 0.2 * torch.arange(outputs)[:, None, None, None]


def members(how: InferenceSettings, count: int) -> list[Member]:
    outputs = how.outputs.channels
    return [Soft(seed, outputs) for seed in range(count)]


def patches(shape: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    """Noise that is strong in some places and nearly nothing in others."""
    rng = np.random.default_rng(seed)
    strength = np.kron(rng.choice([0.02, 4.0], (-(-shape[0] // 24), -(-shape[1] // 24))), np.ones((24, 24)))
    return noise(shape, seed) * strength[None, : shape[0], : shape[1]].astype(np.float32)


def drawn(posterior: Posterior) -> set[float]:
    return set(np.unique(posterior.samples.round(4)).tolist())


def between(loaded: list[Member], how: InferenceSettings, plane: PlaneWindow, target: Window) -> EffortBound:
    """A bound in the middle of the widest gap between the tiles' doubts at each look, so that each stops some."""
    efforts = Engine(loaded, replace(how, effort=bound(0.0, augmentations=how.augmentations)), CPU).efforts(
        plane, target, TileFeatures(plane.grid, target)
    )
    limits, left = [], efforts
    for look in range(len(efforts[0].doubtful)):
        shares = sorted({one.doubtful[look] for one in left})
        inner = range(len(shares) // 4 + 1, max(len(shares) // 4 + 2, len(shares) - len(shares) // 4))
        widest = max((i for i in inner if i < len(shares)), key=lambda i: shares[i] - shares[i - 1], default=0)
        limits.append((shares[max(0, widest - 1)] + shares[widest]) / 2)
        left = [one for one in left if one.doubtful[look] > limits[-1]] or left
    return bound(*limits, augmentations=how.augmentations)


KINDS = [
    {},
    {"classes": 4, "batch": 3},
    {"classes": 3, "activation": "sigmoid", "multilabel": True},
    {"activation": "sigmoid", "augmentations": D4, "batch": 2},
    {"flows": True, "augmentations": ("rot90", "identity", "transpose")},
]


@pytest.mark.parametrize("kind", KINDS)
def test_where_no_tile_is_done_early_the_bits_are_those_of_full_effort(kind: dict[str, Any]) -> None:
    image, grid, target = patches((90, 75)), Grid.make((90, 75), 32, 0.5), Window.of(0, 90, 0, 75)
    full, adaptive = how(None, **kind), how(0.0, **kind)
    answers = [
        Engine(members(one, 3), one, CPU).posterior(plane_window(image, grid, target), target)
        for one in (full, adaptive)
    ]
    everything = 3.0 * len(full.augmentations)
    # Noise leaves some doubt in every tile; whoever has none at all would be done.
    assert drawn(answers[1]) == {everything}
    assert answers[0].samples.shape == (0, 90, 75)
    rest = [{name: maps for name, maps in one.fields.items() if name != "samples"} for one in answers]
    assert_same_bytes(*(replace(one, fields=fields) for one, fields in zip(answers, rest, strict=True)))


@pytest.mark.parametrize("kind", KINDS)
def test_where_all_tiles_are_done_early_the_bits_are_those_of_no_augmentation(kind: dict[str, Any]) -> None:
    image, grid, target = patches((90, 75)), Grid.make((90, 75), 32, 0.5), Window.of(0, 90, 0, 75)
    adaptive = how(1.0, **kind)
    plain = replace(how(None, **kind), augmentations=("identity",))
    one, other = (
        Engine(members(s, 3), s, CPU).posterior(plane_window(image, grid, target), target) for s in (adaptive, plain)
    )
    assert drawn(one) == {3.0}
    for name in MAPS:
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name


@settings(max_examples=12)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    region=st.integers(7, 100),
    batch=st.integers(1, 3),
    kind=st.sampled_from(KINDS[:3] + KINDS[4:]),
    seed=st.integers(0, 50),
    data=st.data(),
)
def test_adaptive_results_do_not_depend_on_region_size_or_order(
    shape: tuple[int, int], region: int, batch: int, kind: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    settings_ = how(0.0, **kind | {"batch": batch})
    image, grid = patches(shape, seed), Grid.make(shape, 32, 0.5)
    everywhere = Window.of(0, shape[0], 0, shape[1])
    some = between(members(settings_, 2), settings_, plane_window(image, grid, everywhere), everywhere)
    engine = Engine(members(settings_, 2), replace(settings_, effort=some), CPU)
    order = data.draw(st.permutations(range(RegionGrid.make(shape, region).count)))
    windows = [RegionGrid.make(shape, region).window(index) for index in order]
    whole = engine.posterior(plane_window(image, grid, everywhere), everywhere)
    for window in windows:
        part = engine.posterior(plane_window(image, grid, window), window)
        for name in (*MAPS, "samples"):
            expected = getattr(whole, name)[..., window.y.slice, window.x.slice]
            assert getattr(part, name).tobytes() == np.ascontiguousarray(expected).tobytes(), name


@pytest.mark.parametrize("batch", [1, 2])
def test_real_networks_get_the_bits_of_runs_with_as_many_augmentations_tile_by_tile(batch: int) -> None:
    loaded: list[Member] = [ModuleMember(network(seed), CPU) for seed in range(3)]
    image, grid, target = patches((40, 75)), Grid.make((40, 75), 32, 0.25), Window.of(0, 40, 0, 75)
    plane = plane_window(image, grid, target)
    some = between(loaded, how(0.0, batch=batch), plane, target)
    bounds = {"all": bound(0.0), "one": bound(1.0), "two": bound(0.0, 1.0), "some": some}
    results = {
        name: Engine(loaded, replace(how(0.0, batch=batch), effort=one), CPU).posterior(plane, target)
        for name, one in bounds.items()
    }
    full = Engine(loaded, how(None, batch=batch), CPU).posterior(plane, target)
    assert [drawn(results[name]) for name in ("all", "two", "one")] == [{12.0}, {6.0}, {3.0}]
    for name in MAPS:
        assert getattr(full, name).tobytes() == getattr(results["all"], name).tobytes(), name
    mixed = results["some"]
    assert {3.0, 6.0, 12.0} <= drawn(mixed)
    for samples, of in ((12, "all"), (6, "two"), (3, "one")):
        alone = mixed.samples[0] == samples  # of tiles of one kind only
        assert np.array_equal(mixed.probability[:, alone], results[of].probability[:, alone])


def test_tiles_done_at_the_second_look_have_the_bits_of_two_augmentations() -> None:
    for kind in (KINDS[1], KINDS[4]):
        image, grid, target = patches((60, 75)), Grid.make((60, 75), 32, 0.5), Window.of(0, 60, 0, 75)
        adaptive = how(0.0, **kind)
        adaptive = replace(adaptive, effort=bound(0.0, 1.0, adaptive.augmentations))
        plain = replace(adaptive, effort=None, augmentations=adaptive.augmentations[:2])
        plane = plane_window(image, grid, target)
        one, other = (Engine(members(s, 3), s, CPU).posterior(plane, target) for s in (adaptive, plain))
        assert drawn(one) == {6.0}
        for name in MAPS:
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name


@pytest.mark.parametrize("kind", [{}, {"classes": 3}, {"classes": 2, "activation": "sigmoid", "multilabel": True}])
def test_an_adaptive_posterior_is_what_plain_loops_in_float64_give(kind: dict[str, Any]) -> None:
    settings_ = how(0.0, augmentations=("identity", "hflip", "rot90"), **kind)
    loaded = members(settings_, 3)
    shape, tile, k = (61, 83), 32, settings_.classes
    image, grid, target = patches(shape, 3), Grid.make(shape, tile, 0.5), Window.of(0, 61, 0, 83)
    plane = plane_window(image, grid, target)
    some = between(loaded, settings_, plane, target)
    found = Engine(loaded, replace(settings_, effort=some), CPU).posterior(plane, target)

    def wide(one: Any) -> Any:
        weights = one._weights.double()
        return lambda pixels: torch.nn.functional.conv2d(torch.from_numpy(pixels)[None], weights, padding=2)[0].numpy()

    window, ways = gaussian_window(tile), settings_.augmentations
    sums, total = np.zeros((k + 3, *shape)), np.zeros(shape)
    shares: list[list[float]] = [[], []]
    for one in grid.tiles(target):
        y, x = one.window.y.start, one.window.x.start
        pixels = mirrored_tile(image.astype(np.float64), y, x, tile)
        activation = settings_.outputs[CLASSES].activation
        said = [tile_maps(pixels, [wide(m)], [name], activation) for m in loaded for name in ways[:2]]
        apart = [s["probability"] for s in said]  # of each member, as it is and flipped
        for look in range(2):
            maps = tile_maps(pixels, [wide(m) for m in loaded], ways[: look + 1], settings_.outputs[CLASSES].activation)
            variance = maps["epistemic"] / 3
            if look == 1:
                own = [np.var(apart[2 * m : 2 * m + 2], axis=0, ddof=1).mean(axis=0) for m in range(3)]
                variance = np.mean(own, axis=0) / 3 * (1 / 2 - 1 / 3)
            ranked = np.sort(maps["probability"], axis=0)
            margin = ranked[-1] - ranked[-2]
            if settings_.multilabel:
                margin = np.abs(2 * maps["probability"] - 1).min(axis=0)
            share = float((margin**2 < (4 if settings_.multilabel else 2) * k * variance).mean())
            shares[look].append(share)
            if share <= some.doubtful[look]:
                break
        else:
            look, maps = 2, tile_maps(pixels, [wide(m) for m in loaded], ways, settings_.outputs[CLASSES].activation)
        counts = np.full((tile, tile), 3.0 * (look + 1))
        values = np.concatenate([maps["probability"], [maps["epistemic"], maps["aleatoric"], counts]])
        for i in range(max(y, 0), min(y + tile, shape[0])):
            for j in range(max(x, 0), min(x + tile, shape[1])):
                sums[:, i, j] += window[i - y, j - x] * values[:, i - y, j - x]
                total[i, j] += window[i - y, j - x]
    for of_look, limit in zip(shares, some.doubtful, strict=True):
        assert min(abs(share - limit) for share in of_look) > 0.4 / tile**2  # no decision hangs on a rounding
        assert min(of_look) < limit < max(of_look)
    wanted = sums / total
    np.testing.assert_allclose(found.probability, wanted[:k], atol=2e-6)
    np.testing.assert_allclose([found.epistemic, found.aleatoric], wanted[k : k + 2], atol=2e-6)
    np.testing.assert_allclose(found.samples[0], wanted[k + 2], atol=1e-4)
    labels, _, gap = decide(wanted[:k], settings_.multilabel)
    assert np.array_equal(found.labels[gap > 1e-5], labels[gap > 1e-5])


def test_features_are_those_of_full_effort_and_samples_are_counted_once() -> None:
    loaded: list[Member] = [ModuleMember(network(seed), CPU) for seed in range(2)]
    image, grid = patches((70, 90)), Grid.make((70, 90), 32, 0.25)
    target = Window.of(0, 70, 0, 90)
    some = between(loaded, how(0.0), plane_window(image, grid, target), target)
    counts, sums = [], []
    for effort, region in ((None, 100), (some, 100), (some, 40)):
        engine = Engine(loaded, replace(how(None), effort=effort), CPU)
        cut = RegionGrid.make((70, 90), region)
        of_regions = []
        for window in (cut.window(index) for index in range(cut.count)):
            features = TileFeatures(grid, window)
            engine.posterior(plane_window(image, grid, window), window, features)
            of_regions.append(features)
        counts.append((sum(f.samples for f in of_regions), sum(f.tiles for f in of_regions)))
        sums.append(np.sum([f.sums() for f in of_regions], axis=0))
    assert sums[0].tolist() == sums[1].tolist() == sums[2].tolist()
    assert counts[0] == (8 * grid.count, grid.count)
    assert counts[1] == counts[2]
    assert 2 * grid.count < counts[1][0] < 8 * grid.count


def test_calls_keep_full_effort_s_shape_and_are_full_where_there_is_enough_to_do() -> None:
    shapes: list[tuple[int, ...]] = []

    class Noting(Soft):
        def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(tiles.shape))
            return super().__call__(tiles)

    image, grid, target = patches((200, 200)), Grid.make((200, 200), 32, 0.5), Window.of(0, 200, 0, 200)
    for doubtful, views in ((1.0, 1), (0.0, 4)):
        settings_ = how(doubtful, batch=2)
        shapes.clear()
        Engine([Noting(0, 2), Noting(1, 2)], settings_, CPU).posterior(plane_window(image, grid, target), target)
        assert set(shapes) == {(8, 1, 32, 32)}
        waves = -(-grid.count // tiles_in_wave(settings_))
        assert len(shapes) <= 2 * (-(-grid.count * views // 8) + 3 * waves)


def test_regions_share_waves_and_keep_their_bits() -> None:
    settings_ = how(0.0, batch=2)
    planes = [
        plane_window(patches(shape, seed), Grid.make(shape, 32, 0.5), Window.of(0, shape[0], 0, shape[1]))
        for seed, shape in enumerate([(40, 75), (60, 60), (20, 90)])
    ]
    some = between(members(settings_, 3), settings_, planes[0], planes[0].window)
    engine = Engine(members(settings_, 3), replace(settings_, effort=some), CPU)
    alone = [engine.posterior(plane, plane.window) for plane in planes]
    with torch.inference_mode():
        regions = [engine.begin(plane, plane.window) for plane in planes]
        while left := [region for region in regions if region.waiting]:
            engine.answer([(region, engine.batch // 3) for region in left])
        shared = [region.posterior() for region in regions]
    assert {3.0, 12.0} <= set().union(*(drawn(one) for one in alone))
    for one, other in zip(alone, shared, strict=True):
        assert_same_bytes(one, other)


def test_a_call_that_needs_too_much_memory_is_made_again_in_parts_with_the_same_result() -> None:
    class Short(Soft):
        def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
            if len(tiles) > 2:
                raise torch.OutOfMemoryError("out of memory")
            return super().__call__(tiles)

    image, grid, target = patches((40, 75)), Grid.make((40, 75), 32, 0.5), Window.of(0, 40, 0, 75)
    plane, settings_ = plane_window(image, grid, target), how(0.0)
    some = replace(settings_, effort=between(members(settings_, 3), settings_, plane, target))
    engine = Engine([Short(seed, 2) for seed in range(3)], some, CPU)
    assert_same_bytes(engine.posterior(plane, target), Engine(members(some, 3), some, CPU).posterior(plane, target))
    assert engine.tiles_per_call == 1


def test_an_engine_tells_what_full_effort_changes_of_each_tile() -> None:
    loaded: list[Member] = [ModuleMember(network(seed), CPU) for seed in range(3)]
    image, grid, target = patches((40, 60)), Grid.make((40, 60), 32, 0.0), Window.of(0, 40, 0, 60)
    found = Engine(loaded, how(0.0), CPU).efforts(plane_window(image, grid, target), target, TileFeatures(grid, target))
    assert len(found) == grid.count
    for effort, tile in zip(found[:3], list(grid.tiles(target))[:3], strict=True):
        alone = np.stack(
            [mirrored_tile(image[0][None].astype(np.float64), tile.window.y.start, tile.window.x.start, 32)[0]]
        )
        own, own_grid, own_target = alone.astype(np.float32), Grid.make((32, 32), 32, 0.0), Window.of(0, 32, 0, 32)
        *early, full = (
            Engine(loaded, s, CPU).posterior(plane_window(own, own_grid, own_target), own_target)
            for s in (replace(how(None), augmentations=FLIPS[:n]) for n in (1, 2, 4))
        )
        for look, one in enumerate(early):
            assert effort.changed[look] == pytest.approx(np.mean(one.labels != full.labels), abs=1e-3)
            u = [answer.uncertainty[answer.labels > 0].mean() for answer in (one, full)]
            assert effort.shift[look] == pytest.approx(abs(u[0] - u[1]), abs=1e-5)
