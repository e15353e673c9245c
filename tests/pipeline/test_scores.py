"""Sums of regions: exact, in any order and any grouping; and the scores made of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from operator import add
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.posterior import Posterior
from pipeline.scores import FIXED_POINT, RegionSums, image_scores, region_sums
from tests import reference


def posterior(shape: tuple[int, int], seed: int, *, classes: int = 3, members: int = 3, bits: int = 0) -> Posterior:
    """Random maps and masks; `bits` > 0 makes masks of that many bits, as of a multi-label ensemble."""
    rng = np.random.default_rng(seed)
    high = 2**bits if bits else classes
    return Posterior(
        probability=rng.random((classes, *shape)).astype(np.float32),
        epistemic=(rng.random(shape) / 8).astype(np.float32),
        aleatoric=(rng.random(shape) / 8).astype(np.float32),
        labels=rng.integers(0, classes, shape).astype(np.uint8),
        masks=rng.integers(0, high, shape).astype(np.uint8),
        member_masks=rng.integers(0, high, (members, *shape)).astype(np.uint8),
        flows=np.zeros((0, *shape), np.float32),
    )


def part(whole: Posterior, rows: slice, columns: slice) -> Posterior:
    return Posterior(**{name: values[..., rows, columns] for name, values in vars(whole).items()})


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    cuts=st.tuples(st.lists(st.integers(1, 39), max_size=4), st.lists(st.integers(1, 39), max_size=4)),
    bits=st.sampled_from([0, 2]),
    shuffle=st.randoms(use_true_random=False),
)
def test_sums_are_equal_for_any_partition_order_and_grouping(
    shape: tuple[int, int], cuts: tuple[list[int], list[int]], bits: int, shuffle: Random
) -> None:
    whole = posterior(shape, seed=len(cuts[0]), bits=bits)

    def spans(length: int, edges: Sequence[int]) -> list[slice]:
        inside = [0, *sorted({e for e in edges if e < length}), length]
        return [slice(a, b) for a, b in pairwise(inside)]

    parts = [
        region_sums(part(whole, rows, columns), 3, multilabel=bits > 0)
        for rows in spans(shape[0], cuts[0])
        for columns in spans(shape[1], cuts[1])
    ]
    shuffle.shuffle(parts)
    middle = len(parts) // 2
    grouped = [reduce(add, half) for half in (parts[:middle], parts[middle:]) if half]
    expected = region_sums(whole, 3, multilabel=bits > 0)
    assert reduce(add, parts) == reduce(add, grouped) == expected
    assert image_scores(parts) == image_scores([expected])


@given(shape=st.tuples(st.integers(1, 30), st.integers(1, 30)), seed=st.integers(0, 50))
def test_scores_are_the_means_and_dices_by_hand(shape: tuple[int, int], seed: int) -> None:
    whole = posterior(shape, seed)
    scores = image_scores([region_sums(whole, 3, multilabel=False)])
    foreground = whole.masks != 0
    if foreground.any():
        assert scores.epistemic == pytest.approx(whole.epistemic[foreground].astype(np.float64).mean(), abs=1e-9)
        assert scores.uncertainty == pytest.approx(scores.epistemic + scores.aleatoric, abs=1e-7)
    for k in (1, 2):
        assert scores.pairwise_dice_per_class[k - 1] == pytest.approx(reference.pairwise_dice(whole.member_masks == k))
        assert scores.foreground_fraction[k - 1] == (whole.masks == k).mean()
    assert scores.pairwise_dice == pytest.approx(np.mean(scores.pairwise_dice_per_class))


def test_no_foreground_has_no_uncertainty() -> None:
    whole = posterior((4, 4), 0)
    whole.masks[...] = 0
    whole.member_masks[...] = 0
    scores = image_scores([region_sums(whole, 3, multilabel=False)])
    assert (scores.uncertainty, scores.epistemic, scores.aleatoric) == (None, None, None)
    assert scores.pairwise_dice == 1
    assert scores.foreground_fraction == [0, 0]


def test_a_single_member_has_no_pairwise_dice() -> None:
    scores = image_scores([region_sums(posterior((4, 4), 0, members=1), 3, multilabel=False)])
    assert scores.pairwise_dice is None
    assert scores.pairwise_dice_per_class == [None, None]


def test_sums_of_a_petapixel_do_not_overflow() -> None:
    pixels = 10**15
    one = RegionSums(
        pixels=pixels,
        foreground=pixels,
        class_pixels=[pixels],
        uncertainty=pixels * FIXED_POINT // 4,
        epistemic=pixels * FIXED_POINT // 8,
        aleatoric=pixels * FIXED_POINT // 8,
        overlaps=[[[pixels, pixels], [pixels, pixels]]],
    )
    scores = image_scores([one] * 100)
    assert scores.uncertainty == 0.25
    assert scores.pairwise_dice == 1
    assert RegionSums.model_validate_json((one + one).model_dump_json()) == one + one


def test_overlaps_count_exactly_beyond_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = posterior((37, 41), 5)
    expected = region_sums(whole, 3, multilabel=False)
    monkeypatch.setattr("pipeline.scores._COUNT_BLOCK", 100)
    assert region_sums(whole, 3, multilabel=False) == expected
