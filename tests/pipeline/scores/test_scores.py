"""Sums of regions: exact, in any order and any grouping; and the scores made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from operator import add
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.scores.image_scores import FIXED_POINT, RegionSums, image_scores, patch_edge, region_sums
from tests.support import reference
from tests.support.engines import arrays_of, posterior_of

NAMES = ["cell", "nucleus"]


def posterior(shape: tuple[int, int], seed: int, *, classes: int = 3, members: int = 3, bits: int = 0) -> Posterior:
    """Random maps and masks; `bits` > 0 makes masks of that many bits, as of a multi-label ensemble."""
    rng = np.random.default_rng(seed)
    high = 2**bits if bits else classes
    return Posterior(
        fields={
            "probability": rng.random((classes, *shape)).astype(np.float32),
            "epistemic": (rng.random((1, *shape)) / 8).astype(np.float32),
            "aleatoric": (rng.random((1, *shape)) / 8).astype(np.float32),
            "flows": np.zeros((2, *shape), np.float32),
            "flow_variance": rng.random((1, *shape)).astype(np.float32),
        },
        labels=rng.integers(0, classes, shape).astype(np.uint8),
        masks=rng.integers(0, high, shape).astype(np.uint8),
        member_masks=rng.integers(0, high, (members, *shape)).astype(np.uint8),
    )


def part(whole: Posterior, rows: slice, columns: slice) -> Posterior:
    return posterior_of({name: values[..., rows, columns] for name, values in arrays_of(whole).items()})


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    cuts=st.tuples(st.lists(st.integers(1, 39), max_size=4), st.lists(st.integers(1, 39), max_size=4)),
    bits=st.sampled_from([0, 2]),
    patch=st.integers(1, 7),
    shuffle=st.randoms(use_true_random=False),
)
def test_sums_are_equal_for_any_partition_order_and_grouping(
    shape: tuple[int, int], cuts: tuple[list[int], list[int]], bits: int, patch: int, shuffle: Random
) -> None:
    whole = posterior(shape, seed=len(cuts[0]), bits=bits)

    def spans(length: int, edges: Sequence[int]) -> list[slice]:
        """Regions begin at multiples of the patch."""
        inside = [0, *sorted({e * patch for e in edges if e * patch < length}), length]
        return [slice(a, b) for a, b in pairwise(inside)]

    parts = [
        region_sums(part(whole, rows, columns), 3, multilabel=bits > 0, patch=patch)
        for rows in spans(shape[0], cuts[0])
        for columns in spans(shape[1], cuts[1])
    ]
    shuffle.shuffle(parts)
    middle = len(parts) // 2
    grouped = [reduce(add, half) for half in (parts[:middle], parts[middle:]) if half]
    expected = region_sums(whole, 3, multilabel=bits > 0, patch=patch)
    assert reduce(add, parts) == reduce(add, grouped) == expected
    assert image_scores(parts, NAMES) == image_scores([expected], NAMES)


@given(shape=st.tuples(st.integers(1, 30), st.integers(1, 30)), seed=st.integers(0, 50))
def test_scores_are_the_means_and_dices_by_hand(shape: tuple[int, int], seed: int) -> None:
    whole = posterior(shape, seed)
    scores = image_scores([region_sums(whole, 3, multilabel=False, patch=8)], NAMES)
    foreground = whole.masks != 0
    worst = reference.patch_maximum(whole.uncertainty.astype(np.float64), 8)
    assert scores["patch_uncertainty_max"] == (pytest.approx(worst, abs=1e-9) if worst and foreground.any() else None)
    if foreground.any():
        assert scores["epistemic"] == pytest.approx(whole.epistemic[foreground].astype(np.float64).mean(), abs=1e-9)
        assert scores["uncertainty"] == pytest.approx(scores["epistemic"] + scores["aleatoric"], abs=1e-7)
        wanted = whole.flow_variance[0][foreground].astype(np.float64).mean()
        assert scores["flow_variance"] == pytest.approx(wanted, abs=1e-9)
    for k in (1, 2):
        dices = reference.pairwise_dices(whole.member_masks == k)
        assert scores[f"pairwise_dice:{NAMES[k - 1]}"] == pytest.approx(np.mean(dices))
        assert scores[f"pairwise_dice_min:{NAMES[k - 1]}"] == min(dices)
        assert scores[f"area_fraction:{NAMES[k - 1]}"] == (whole.masks == k).mean()
    assert scores["pairwise_dice"] == pytest.approx(np.mean([scores[f"pairwise_dice:{name}"] for name in NAMES]))
    assert scores["pairwise_dice_min"] == min(scores[f"pairwise_dice_min:{name}"] for name in NAMES)


@pytest.mark.parametrize("multilabel", [False, True])
def test_entropy_is_that_of_scipy_over_the_foreground(multilabel: bool) -> None:
    from scipy.stats import entropy

    whole = posterior((23, 31), 3, bits=2 if multilabel else 0)
    p = whole.probability
    p[:, :4] = [[[0.0]], [[1.0]], [[0.0]]]  # nothing is less uncertain
    p[:, 4:8] = 1 / 2 if multilabel else 1 / 3  # nothing more
    if not multilabel:
        p /= p.sum(axis=0)
    pairs = np.stack([p, 1 - p]).astype(np.float64)
    wanted = entropy(pairs, base=2).mean(axis=0) if multilabel else entropy(p.astype(np.float64), base=3)
    scores = image_scores([region_sums(whole, 3, multilabel=multilabel, patch=8)], NAMES)
    assert scores["entropy"] == pytest.approx(wanted[whole.masks != 0].mean(), abs=1e-6)
    for rows, extreme in ((slice(4), 0.0), (slice(4, 8), 1.0)):
        found = image_scores([region_sums(part(whole, rows, slice(None)), 3, multilabel=multilabel, patch=8)], NAMES)
        assert found["entropy"] == pytest.approx(extreme, abs=1e-6)


def test_entropy_takes_probabilities_that_are_a_rounding_off() -> None:
    whole = posterior((4, 4), 0, bits=2)
    whole.masks[...] = 1
    whole.probability[:, ::2] = np.nextafter(np.float32(1), np.float32(2))
    whole.probability[:, 1::2] = -np.float32(1e-8)
    for multilabel in (True, False):
        assert region_sums(whole, 3, multilabel=multilabel, patch=8).entropy == 0


@given(length=st.integers(1, 60), start=st.integers(0, 40), seed=st.integers(0, 5))
def test_entropy_of_a_pixel_does_not_depend_on_its_place(length: int, start: int, seed: int) -> None:
    # Vectorised functions may treat the last few numbers of an array otherwise than the others.
    whole = posterior((1, 100), seed, classes=9)
    whole.masks[...] = 1

    def entropy(columns: slice) -> int:
        return region_sums(part(whole, slice(None), columns), 9, multilabel=False, patch=8).entropy

    alone = sum(entropy(slice(index, index + 1)) for index in range(start, start + length))
    assert entropy(slice(start, start + length)) == alone


def test_the_patch_maximum_does_not_depend_on_the_foreground_in_it() -> None:
    whole = posterior((32, 32), 0)
    whole.masks[...] = 0
    whole.epistemic[...], whole.aleatoric[...] = 0, 0
    whole.aleatoric[16:, :16] = 0.125
    whole.masks[0, 31] = 1
    scores = image_scores([region_sums(whole, 3, multilabel=False, patch=16)], NAMES)
    assert (scores["uncertainty"], scores["patch_uncertainty_max"]) == (0, 0.125)


@pytest.mark.parametrize(("chunk", "edge"), [(16, 16), (512, 16), (48, 16), (17, 17), (20, 20), (500, 20), (509, 509)])
def test_patches_part_every_chunk(chunk: int, edge: int) -> None:
    assert patch_edge(chunk) == edge
    assert chunk % edge == 0


def test_no_foreground_has_no_uncertainty() -> None:
    whole = posterior((4, 4), 0)
    whole.masks[...] = 0
    whole.member_masks[...] = 0
    scores = image_scores([region_sums(whole, 3, multilabel=False, patch=1)], NAMES)
    assert (scores["uncertainty"], scores["epistemic"], scores["aleatoric"]) == (None, None, None)
    assert (scores["entropy"], scores["patch_uncertainty_max"], scores["flow_variance"]) == (None, None, None)
    assert (scores["pairwise_dice"], scores["pairwise_dice_min"]) == (1, 1)
    assert [scores[f"area_fraction:{name}"] for name in NAMES] == [0, 0]


@given(shape=st.tuples(st.integers(1, 30), st.integers(1, 30)), seed=st.integers(0, 50), members=st.integers(2, 5))
def test_areas_vary_by_their_standard_deviation_over_members(shape: tuple[int, int], seed: int, members: int) -> None:
    whole = posterior(shape, seed, members=members)
    scores = image_scores([region_sums(whole, 3, multilabel=False, patch=8)], NAMES)
    for k, name in enumerate(NAMES, 1):
        areas = (whole.member_masks == k).sum(axis=(1, 2))
        wanted = pytest.approx(areas.std() / areas.mean(), abs=1e-12) if areas.any() else None
        assert scores[f"area_cv:{name}"] == wanted


def test_a_single_member_has_no_pairwise_dice() -> None:
    scores = image_scores([region_sums(posterior((4, 4), 0, members=1), 3, multilabel=False, patch=1)], NAMES)
    assert (scores["pairwise_dice"], scores["pairwise_dice_min"]) == (None, None)
    assert {
        scores[f"{kind}:{name}"] for kind in ("pairwise_dice", "pairwise_dice_min", "area_cv") for name in NAMES
    } == {None}


def test_flow_variance_is_unknown_without_flows_and_where_a_region_was_done_by_an_earlier_chorus() -> None:
    whole = posterior((6, 6), 0)
    without = replace(whole, fields={name: whole.fields[name] for name in ("probability", "epistemic", "aleatoric")})
    known, unknown = (region_sums(one, 3, multilabel=False, patch=1) for one in (whole, without))
    earlier = RegionSums.model_validate(known.model_dump(exclude={"flow_variance"}))
    assert image_scores([unknown], NAMES)["flow_variance"] is None
    assert image_scores([known, earlier], NAMES)["flow_variance"] is None
    assert image_scores([known, earlier], NAMES)["uncertainty"] == image_scores([known], NAMES)["uncertainty"]


def test_sums_of_a_petapixel_do_not_overflow() -> None:
    pixels = 10**15
    one = RegionSums(
        pixels=pixels,
        foreground=pixels,
        class_pixels=[pixels],
        uncertainty=pixels * FIXED_POINT // 4,
        epistemic=pixels * FIXED_POINT // 8,
        aleatoric=pixels * FIXED_POINT // 8,
        entropy=pixels * FIXED_POINT,
        patch=(FIXED_POINT * 64, 256),
        overlaps=[[[pixels, pixels], [pixels, pixels]]],
        flow_variance=pixels * FIXED_POINT,
    )
    scores = image_scores([one] * 100, NAMES[:1])
    assert (scores["uncertainty"], scores["entropy"], scores["patch_uncertainty_max"]) == (0.25, 1, 0.25)
    assert (scores["pairwise_dice"], scores["flow_variance"]) == (1, 1)
    assert RegionSums.model_validate_json((one + one).model_dump_json()) == one + one


def test_sums_are_exact_beyond_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = posterior((37, 41), 5)
    expected = region_sums(whole, 3, multilabel=False, patch=4)
    monkeypatch.setattr("chorus.pipeline.scores.image_scores._COUNT_BLOCK", 100)
    monkeypatch.setattr("chorus.pipeline.scores.image_scores._BAND", 100)
    assert region_sums(whole, 3, multilabel=False, patch=4) == expected


def test_sums_do_not_depend_on_how_arrays_lie_in_memory() -> None:
    whole = posterior((37, 41), 5)
    pixel_by_pixel = np.ascontiguousarray(whole.member_masks.transpose(1, 2, 0)).transpose(2, 0, 1)
    turned = replace(whole, masks=np.asfortranarray(whole.masks), member_masks=pixel_by_pixel)
    assert region_sums(turned, 3, multilabel=False, patch=4) == region_sums(whole, 3, multilabel=False, patch=4)
