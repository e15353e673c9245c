"""Adaptive effort: who decides which tiles are done, and that the decision is the tile's alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.augmentation import D4, FLIPS
from pipeline.canvas import InferenceSettings
from pipeline.effort import EffortBound, TileEffort, doubtful_pixels, find_bound
from pipeline.errors import RefusedError
from pipeline.features import TileFeatures
from pipeline.geometry import Grid, RegionGrid, Window
from pipeline.inference import Engine
from pipeline.members.contract import Member, ModuleMember
from pipeline.posterior import Posterior
from pipeline.rounds import tiles_in_wave
from pipeline.tiles import PlaneWindow
from tests.making import network
from tests.pipeline.test_inference import CPU, Filter, assert_same_bytes, noise, plane_window
from tests.reference import decide, gaussian_window, mirrored_tile, tile_maps

MAPS = [field.name for field in fields(Posterior) if field.name != "samples"]


def bound(doubtful: float, **changes: Any) -> EffortBound:
    known = {"ensemble": "", "tile": 32, "overlap": 0.5, "augmentations": list(FLIPS)}
    return EffortBound.model_validate(known | {"doubtful": doubtful, "images": 1, "tiles": 1, "stopped": 0} | changes)


def how(doubtful: float | None, **changes: Any) -> InferenceSettings:
    defaults: dict[str, Any] = {"activation": "softmax", "multilabel": False, "classes": 2, "tile": 32, "batch": 1}
    effort = None if doubtful is None else bound(doubtful)
    return InferenceSettings(**defaults | {"augmentations": FLIPS, "effort": effort} | changes)


class Soft(Filter):
    """A member that is surer the brighter it is around a pixel, so that tiles differ in how doubtful they are."""

    def __init__(self, seed: int, outputs: int) -> None:
        super().__init__(seed, outputs)
        self._weights = 0.1 * self._weights + 0.2 * torch.arange(outputs)[:, None, None, None]


def members(how: InferenceSettings, count: int) -> list[Member]:
    outputs = how.classes - (how.activation == "sigmoid" and not how.multilabel) + 2 * how.flows
    return [Soft(seed, outputs) for seed in range(count)]


def patches(shape: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    """Noise that is strong in some places and nearly nothing in others."""
    rng = np.random.default_rng(seed)
    strength = np.kron(rng.choice([0.02, 4.0], (-(-shape[0] // 24), -(-shape[1] // 24))), np.ones((24, 24)))
    return noise(shape, seed) * strength[None, : shape[0], : shape[1]].astype(np.float32)


def drawn(posterior: Posterior) -> set[float]:
    return set(np.unique(posterior.samples.round(4)).tolist())


def middle(loaded: list[Member], how: InferenceSettings, plane: PlaneWindow, target: Window) -> float:
    """The middle of the widest gap between the tiles' shares of pixels in doubt, so that some are done early."""
    measuring = replace(how, effort=bound(0.0))
    efforts = Engine(loaded, measuring, CPU).efforts(plane, target, TileFeatures(plane.grid, target))
    shares = sorted({one.doubtful for one in efforts})
    widest = max(range(1, len(shares)), key=lambda upper: shares[upper] - shares[upper - 1], default=0)
    return (shares[max(0, widest - 1)] + shares[widest]) / 2


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
    assert_same_bytes(*(replace(one, samples=np.zeros((0, 90, 75), np.float32)) for one in answers))


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
    doubtful = middle(members(settings_, 2), settings_, plane_window(image, grid, everywhere), everywhere)
    engine = Engine(members(settings_, 2), replace(settings_, effort=bound(doubtful)), CPU)
    order = data.draw(st.permutations(range(RegionGrid(*shape, region).count)))
    windows = [RegionGrid(*shape, region).window(index) for index in order]
    whole = engine.posterior(plane_window(image, grid, everywhere), everywhere)
    for window in windows:
        part = engine.posterior(plane_window(image, grid, window), window)
        for name in (*MAPS, "samples"):
            expected = getattr(whole, name)[..., window.y.slice, window.x.slice]
            assert getattr(part, name).tobytes() == np.ascontiguousarray(expected).tobytes(), name


@pytest.mark.parametrize("batch", [1, 2])
def test_real_networks_get_full_effort_s_bits_tile_by_tile(batch: int) -> None:
    loaded: list[Member] = [ModuleMember(network(seed), CPU) for seed in range(3)]
    image, grid, target = patches((40, 75)), Grid.make((40, 75), 32, 0.25), Window.of(0, 40, 0, 75)
    plane = plane_window(image, grid, target)
    half = middle(loaded, how(0.0, batch=batch), plane, target)
    results = {
        doubtful: Engine(loaded, how(doubtful, batch=batch), CPU).posterior(plane, target)
        for doubtful in (None, 0.0, half, 1.0)
    }
    assert drawn(results[0.0]) == {12.0}
    for name in MAPS:
        assert getattr(results[None], name).tobytes() == getattr(results[0.0], name).tobytes(), name
    mixed = results[half]
    assert {3.0, 12.0} < drawn(mixed)
    everything, nothing = mixed.samples[0] == 12, mixed.samples[0] == 3
    assert np.array_equal(mixed.probability[:, everything], results[None].probability[:, everything])
    assert np.array_equal(mixed.probability[:, nothing], results[1.0].probability[:, nothing])


@pytest.mark.parametrize("kind", [{}, {"classes": 3}, {"classes": 2, "activation": "sigmoid", "multilabel": True}])
def test_an_adaptive_posterior_is_what_plain_loops_in_float64_give(kind: dict[str, Any]) -> None:
    settings_ = how(0.0, augmentations=("identity", "hflip", "rot90"), **kind)
    loaded = members(settings_, 3)
    shape, tile, k = (61, 83), 32, settings_.classes
    image, grid, target = patches(shape, 3), Grid.make(shape, tile, 0.5), Window.of(0, 61, 0, 83)
    plane = plane_window(image, grid, target)
    half = middle(loaded, settings_, plane, target)
    found = Engine(loaded, replace(settings_, effort=bound(half)), CPU).posterior(plane, target)

    def wide(one: Any) -> Any:
        weights = one._weights.double()
        return lambda pixels: torch.nn.functional.conv2d(torch.from_numpy(pixels)[None], weights, padding=2)[0].numpy()

    window = gaussian_window(tile)
    sums, total = np.zeros((k + 3, *shape)), np.zeros(shape)
    shares = []
    for one in grid.tiles(target):
        y, x = one.window.y.start, one.window.x.start
        pixels = mirrored_tile(image.astype(np.float64), y, x, tile)
        early = tile_maps(pixels, [wide(m) for m in loaded], ["identity"], settings_.activation)
        variance = (4 if settings_.multilabel else 2) * k * early["epistemic"]
        ranked = np.sort(early["probability"], axis=0)
        margin = np.abs(2 * early["probability"] - 1).min(axis=0) if settings_.multilabel else ranked[-1] - ranked[-2]
        shares.append(float((margin**2 * 3 < variance).mean()))
        on = shares[-1] > half
        maps = (
            tile_maps(pixels, [wide(m) for m in loaded], settings_.augmentations, settings_.activation) if on else early
        )
        counts = np.full((tile, tile), 9.0 if on else 3.0)
        values = np.concatenate([maps["probability"], [maps["epistemic"], maps["aleatoric"], counts]])
        for i in range(max(y, 0), min(y + tile, shape[0])):
            for j in range(max(x, 0), min(x + tile, shape[1])):
                sums[:, i, j] += window[i - y, j - x] * values[:, i - y, j - x]
                total[i, j] += window[i - y, j - x]
    assert min(abs(share - half) for share in shares) > 0.4 / tile**2  # no decision hangs on a rounding
    assert min(shares) < half < max(shares)
    wanted = sums / total
    np.testing.assert_allclose(found.probability, wanted[:k], atol=2e-6)
    np.testing.assert_allclose([found.epistemic, found.aleatoric], wanted[k : k + 2], atol=2e-6)
    np.testing.assert_allclose(found.samples[0], wanted[k + 2], atol=1e-4)
    labels, _, gap = decide(wanted[:k], settings_.multilabel)
    assert np.array_equal(found.labels[gap > 1e-5], labels[gap > 1e-5])


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(2, 6), st.booleans(), st.integers(0, 1000))
def test_doubt_is_a_label_within_one_standard_error(classes: int, samples: int, multilabel: bool, seed: int) -> None:
    if classes == 1 and not multilabel:
        return
    rng = np.random.default_rng(seed)
    p = (
        rng.dirichlet(np.ones(classes), (samples, 2, 5, 7))
        if not multilabel
        else rng.random((samples, 2, 5, 7, classes))
    )
    p = np.moveaxis(p, -1, 2)
    mean, epistemic = p.mean(axis=0), p.var(axis=0).mean(axis=1)
    maps = np.concatenate([mean, epistemic[:, None], epistemic[:, None]], axis=1).astype(np.float32)
    found = doubtful_pixels(torch.from_numpy(maps), classes, samples, multilabel=multilabel).tolist()
    for tile in range(2):
        least = most = 0
        for i, j in np.ndindex(5, 7):
            probabilities = sorted(mean[tile, :, i, j])
            margin = min(abs(2 * q - 1) for q in probabilities) if multilabel else probabilities[-1] - probabilities[-2]
            error = ((4 if multilabel else 2) * classes * epistemic[tile, i, j] / samples) ** 0.5
            least, most = least + (margin < error - 1e-6), most + (margin < error + 1e-6)
        assert least <= found[tile] <= most


def test_two_classes_are_in_doubt_by_the_standard_error_of_their_difference() -> None:
    p = np.array([0.5, 0.9, 0.3])
    difference = 2 * p - 1
    assert 2 * 2 * p.var() == pytest.approx(difference.var())


def test_features_are_those_of_full_effort_and_samples_are_counted_once() -> None:
    loaded: list[Member] = [ModuleMember(network(seed), CPU) for seed in range(2)]
    image, grid = patches((70, 90)), Grid.make((70, 90), 32, 0.25)
    target = Window.of(0, 70, 0, 90)
    half = middle(loaded, how(0.0), plane_window(image, grid, target), target)
    counts, sums = [], []
    for doubtful, region in ((None, 100), (half, 100), (half, 40)):
        engine = Engine(loaded, how(doubtful), CPU)
        cut = RegionGrid(70, 90, region)
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
        assert len(shapes) <= 2 * (-(-grid.count * views // 8) + 2 * waves)


def efforts(doubts: Sequence[float], fail: Sequence[bool]) -> list[TileEffort]:
    return [TileEffort(d, 0.02 if bad else 0.001, 0.0) for d, bad in zip(doubts, fail, strict=True)]


@settings(max_examples=20)
@given(st.integers(110, 400), st.floats(0, 0.1), st.integers(0, 10_000))
def test_a_bound_is_the_largest_tenth_whose_risk_the_exact_binomial_interval_keeps(
    count: int, rate: float, seed: int
) -> None:
    from scipy.stats import binomtest

    rng = np.random.default_rng(seed)
    doubts = np.round(rng.random(count), 2)
    fail = rng.random(count) < rate * 2 * doubts
    stands = []
    for part in range(1, 11):
        share = np.sort(doubts)[int(np.ceil(part * count / 10)) - 1]
        stopped = doubts <= share
        test = binomtest(int(fail[stopped].sum()), int(stopped.sum()), 0.05, alternative="less")
        if test.proportion_ci(0.995, "exact").high <= 0.05:
            stands.append(share)
    if stands:
        assert find_bound(efforts(doubts, fail), 0.005, 0.005, 0.05, 0.95) == max(stands)
    else:
        with pytest.raises(RefusedError, match="allow more of either"):
            find_bound(efforts(doubts, fail), 0.005, 0.005, 0.05, 0.95)


def test_few_tiles_show_nothing() -> None:
    with pytest.raises(RefusedError, match="give images of 104 tiles at least"):
        find_bound(efforts([0.1] * 103, [False] * 103), 0.005, 0.005, 0.05, 0.95)
    assert find_bound(efforts([0.1] * 104, [False] * 104), 0.005, 0.005, 0.05, 0.95) == 0.1


def test_a_bound_keeps_its_risk_on_tiles_that_it_was_not_measured_on() -> None:
    rng = np.random.default_rng(1)

    def tiles(count: int) -> list[TileEffort]:
        doubts = rng.random(count) * 0.04
        return efforts(doubts, rng.random(count) < np.clip(doubts * 6 - 0.1, 0, 1))

    beyond = tried = 0
    for _ in range(60):
        try:
            found = find_bound(tiles(300), 0.005, 0.005, 0.05, 0.95)
        except RefusedError:
            continue
        tried += 1
        fresh = [one for one in tiles(2000) if one.doubtful <= found]
        beyond += sum(one.changed > 0.005 for one in fresh) / len(fresh) > 0.05
    assert tried > 40
    assert beyond <= 7  # of 60, where 3 are expected at most


def test_an_engine_tells_what_full_effort_changes_of_each_tile() -> None:
    loaded: list[Member] = [ModuleMember(network(seed), CPU) for seed in range(3)]
    image, grid, target = patches((40, 60)), Grid.make((40, 60), 32, 0.0), Window.of(0, 40, 0, 60)
    found = Engine(loaded, how(0.0), CPU).efforts(plane_window(image, grid, target), target, TileFeatures(grid, target))
    assert len(found) == grid.count
    for effort, tile in zip(found, grid.tiles(target), strict=True):
        alone = np.stack(
            [mirrored_tile(image[0][None].astype(np.float64), tile.window.y.start, tile.window.x.start, 32)[0]]
        )
        own, own_grid, own_target = alone.astype(np.float32), Grid.make((32, 32), 32, 0.0), Window.of(0, 32, 0, 32)
        first, full = (
            Engine(loaded, s, CPU).posterior(plane_window(own, own_grid, own_target), own_target)
            for s in (replace(how(None), augmentations=("identity",)), how(None))
        )
        assert effort.changed == pytest.approx(np.mean(first.labels != full.labels), abs=1e-3)
        u = [one.uncertainty[one.labels > 0].mean() for one in (first, full)]
        assert effort.shift == pytest.approx(abs(u[0] - u[1]), abs=1e-5)
