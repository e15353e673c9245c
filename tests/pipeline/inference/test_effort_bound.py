"""The bound of adaptive effort: which pixels are in doubt, and what reference tiles say of how many labels change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.adaptive_bound import (
    TileEffort,
    doubtful_pixels,
    find_factors,
    spread_within,
    stopped_at,
)


@settings(max_examples=40)
@given(st.integers(1, 4), st.booleans(), st.integers(0, 1000))
def test_doubt_is_a_label_within_one_standard_error(classes: int, multilabel: bool, seed: int) -> None:
    if classes == 1 and not multilabel:
        return
    rng = np.random.default_rng(seed)
    mean = rng.dirichlet(np.ones(classes), (2, 5, 7)) if not multilabel else rng.random((2, 5, 7, classes))
    mean, variance = np.moveaxis(mean, -1, 1), rng.random((2, 5, 7)) * 0.1
    maps, spread = (torch.from_numpy(one.astype(np.float32)) for one in (mean, variance))
    found = doubtful_pixels(maps, spread, classes, multilabel=multilabel).tolist()
    for tile in range(2):
        least = most = 0
        for i, j in np.ndindex(5, 7):
            probabilities = sorted(mean[tile, :, i, j])
            margin = min(abs(2 * q - 1) for q in probabilities) if multilabel else probabilities[-1] - probabilities[-2]
            error = ((4 if multilabel else 2) * classes * variance[tile, i, j]) ** 0.5
            least, most = least + (margin < error - 1e-5), most + (margin < error + 1e-5)
        assert least <= found[tile] <= most


def test_the_spread_within_members_is_the_error_of_what_is_left_out() -> None:
    # Two of T samples of each of M members, drawn at random: how far is their mean from that of all?
    rng = np.random.default_rng(0)
    members, ways = 3, 4
    everything = rng.normal(rng.normal(size=(members, 1)), 1 + np.arange(members)[:, None], (members, ways))
    places = rng.permuted(np.tile(np.arange(ways), (20_000, members, 1)), axis=2)[..., :2]
    two = np.take_along_axis(everything[None], places, axis=2)  # (draws, members, 2)
    errors = (two.mean(axis=(1, 2)) - everything.mean()) ** 2
    first, second = ([torch.from_numpy(two[:, m, i, None, None, None]) for m in range(members)] for i in range(2))
    spreads = spread_within(first, second, ways).numpy()
    assert np.mean(spreads) == pytest.approx(np.mean(errors), rel=0.03)


def efforts(
    doubts: Sequence[float], changed: Sequence[float], shift: Sequence[float] | None = None
) -> list[TileEffort]:
    moved = [0.0] * len(doubts) if shift is None else shift
    return [TileEffort((d,), (c,), (m,)) for d, c, m in zip(doubts, changed, moved, strict=True)]


@settings(max_examples=20)
@given(st.integers(80, 400), st.integers(0, 10_000))
def test_a_factor_is_the_least_ratio_that_so_few_tiles_are_beyond(count: int, seed: int) -> None:
    from scipy.stats import binomtest

    rng = np.random.default_rng(seed)
    doubts = 0.001 + rng.random(count) * 0.03
    ratios = rng.gamma(2, 0.2, count)
    (found,) = find_factors(efforts(doubts, doubts * ratios), 0.9, 0.1, 0.05, 0.95)

    def stands(factor: float) -> bool:
        # As many tiles at or beyond it as would rarely be, were more than one in twenty beyond.
        at = int((ratios > factor * (1 - 1e-9)).sum())
        return at > 0 and binomtest(at - 1, count, 0.05, alternative="less").pvalue <= 0.025

    known = sorted(ratios)
    place = int(np.argmin(np.abs(np.array(known) - found)))
    assert found == pytest.approx(known[place])
    assert stands(known[place])
    assert not stands(known[place - 1])


def test_factors_keep_their_risk_on_tiles_that_they_were_not_measured_on() -> None:
    rng = np.random.default_rng(1)
    beyond = 0
    for _ in range(100):
        doubts = 0.001 + rng.random(200) * 0.03
        (factor,) = find_factors(efforts(doubts, doubts * rng.gamma(2, 0.2, 200)), 0.9, 0.1, 0.05, 0.95)
        beyond += np.mean(rng.gamma(2, 0.2, 20_000) > factor) > 0.05
    assert beyond <= 7  # of 100, where 2.5 are expected


def test_few_tiles_and_a_score_that_moves_show_nothing() -> None:
    few = efforts([0.01] * 70, [0.001] * 70)
    with pytest.raises(RefusedError, match="give images of 72 tiles at least"):
        find_factors(few, 0.01, 0.005, 0.05, 0.95)
    assert find_factors(efforts([0.01] * 72, [0.001] * 72), 0.01, 0.005, 0.05, 0.95) == [pytest.approx(0.1)]
    moving = efforts([0.01] * 100, [0.001] * 100, [0.0] * 90 + [0.006] * 10)
    with pytest.raises(RefusedError, match=r"U of 10 of these would move by more than --shift 0\.005"):
        find_factors(moving, 0.01, 0.005, 0.05, 0.95)
    assert find_factors(moving, 0.01, 0.007, 0.05, 0.95) == [pytest.approx(0.1)]
    with pytest.raises(RefusedError, match="0 could be done after 1 samples a member"):
        find_factors(efforts([0.01] * 100, [0.02] * 100), 0.01, 0.005, 0.05, 0.95)


def test_tiles_are_done_at_the_first_look_that_they_pass() -> None:
    tiles = [
        TileEffort((d, e), (0.0, 0.0), (0.0, 0.0)) for d, e in ((0.01, 0.0), (0.03, 0.01), (0.03, 0.03), (0.02, 0.9))
    ]
    assert stopped_at(tiles, [0.5, 0.5], 0.01) == [2, 1]
