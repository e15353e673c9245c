"""Objects against a truth: by Cellpose, by a matching written out, and by plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cellpose import metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from chorus.pipeline.metrics.objects import THRESHOLDS, average_precision, components, count_objects, objects_of


def discs(centres: list[tuple[int, int]], radius: float, size: int = 64) -> np.ndarray:
    labels = np.zeros((size, size), np.int32)
    y, x = np.mgrid[:size, :size]
    for number, (cy, cx) in enumerate(centres, 1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = 7 * number
    return labels


def overlaps(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """IoU of every two objects, by plain loops."""
    a, b = ([labels == v for v in np.unique(labels) if v] for labels in (truth, predicted))
    return np.array([[np.sum(p & q) / np.sum(p | q) for q in b] for p in a]).reshape(len(a), len(b))


def by_hand(truth: np.ndarray, predicted: np.ndarray, threshold: float) -> float:
    """TP / (TP + FP + FN) with the matching that has the most pairs beyond the threshold."""
    iou = overlaps(truth, predicted)
    rows, columns = linear_sum_assignment(-(iou >= threshold).astype(float))
    hits = int((iou[rows, columns] >= threshold).sum())
    return hits / (sum(iou.shape) - hits)


@st.composite
def label_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of few pixels, so that objects overlap in all ways, halves included; the second is a changed first."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=7))
    truth = draw(hnp.arrays(np.uint16, shape, elements=st.sampled_from([0, 1, 2, 5, 900])))
    other = draw(hnp.arrays(np.uint16, shape, elements=st.sampled_from([0, 1, 3, 4])))
    changed = draw(hnp.arrays(np.bool_, shape))
    return truth, np.where(changed, other, truth)


@given(label_pairs())
@settings(max_examples=100)
def test_average_precision_is_that_of_cellpose(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, predicted = pair
    found = average_precision(truth, predicted)
    if not truth.any() and not predicted.any():
        assert found == [1.0] * len(THRESHOLDS)
        return
    # Cellpose takes the least label for background and needs consecutive ones.
    padded = [np.pad(np.unique(one, return_inverse=True)[1] + (one.min() > 0), 1) for one in pair]
    known = metrics.average_precision(*padded, threshold=list(THRESHOLDS))[0]
    assert found == pytest.approx(known.astype(float).tolist(), abs=1e-6)


@given(label_pairs())
@settings(max_examples=100)
def test_panoptic_quality_splits_and_merges_are_those_of_plain_loops(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, predicted = pair
    counts = count_objects(truth, predicted)
    a, b = ([labels == v for v in np.unique(labels) if v] for labels in (truth, predicted))
    assert (counts.truths, counts.predicted) == (len(a), len(b))
    iou = overlaps(truth, predicted)
    hits = int((iou > 0.5).sum())
    denominator = hits + (len(b) - hits) / 2 + (len(a) - hits) / 2
    assert counts.panoptic_quality == pytest.approx(iou[iou > 0.5].sum() / denominator if denominator else 1.0)
    assert counts.splits == sum(sum(2 * np.sum(p & q) > np.sum(q) for q in b) > 1 for p in a)
    assert counts.merges == sum(sum(2 * np.sum(p & q) > np.sum(p) for p in a) > 1 for q in b)


def test_average_precision_is_that_of_a_matching_written_out() -> None:
    truth = discs([(12, 12), (12, 44), (44, 12), (44, 44)], 8)
    predicted = discs([(13, 12), (15, 44), (44, 17)], 8)
    found = count_objects(truth, predicted)
    assert found.average_precision == pytest.approx([by_hand(truth, predicted, t) for t in THRESHOLDS])
    assert found.mean_average_precision == pytest.approx(np.mean(found.average_precision))
    assert 0 < found.average_precision[0] < 1


@pytest.mark.parametrize(
    ("truth", "predicted", "wanted"),
    [
        (np.zeros((8, 8), int), np.zeros((8, 8), int), 1.0),
        (np.zeros((8, 8), int), np.ones((8, 8), int), 0.0),
        (np.ones((8, 8), int), np.zeros((8, 8), int), 0.0),
        (np.full((8, 8), 5), np.ones((8, 8), int), 1.0),
    ],
    ids=["both empty", "invented", "missed", "no background at all"],
)
def test_average_precision_is_a_number_at_the_ends(truth: np.ndarray, predicted: np.ndarray, wanted: float) -> None:
    assert average_precision(truth, predicted) == [wanted] * len(THRESHOLDS)
    assert count_objects(truth, predicted).panoptic_quality == wanted


def test_an_object_in_two_halves_is_matched_once_and_counted_as_split() -> None:
    whole, halves = np.ones((2, 4), np.uint8), np.array([[1, 1, 2, 2]] * 2, np.uint8)
    cut = count_objects(whole, halves)
    assert (cut.matched[0], cut.splits, cut.merges) == (1, 1, 0)
    joined = count_objects(halves, whole)
    assert (joined.matched[0], joined.splits, joined.merges) == (1, 0, 1)


@given(label_pairs(), st.integers(0, 6))
@settings(max_examples=50)
def test_objects_below_the_minimum_size_are_in_neither(pair: tuple[np.ndarray, np.ndarray], least: int) -> None:
    without = []
    for labels in pair:
        kept = labels.copy()
        for value in np.unique(labels):
            if np.sum(labels == value) < least:
                kept[labels == value] = 0
        without.append(kept)
    assert count_objects(*pair, minimum_size=least) == count_objects(*without)


@given(label_pairs(), label_pairs())
@settings(max_examples=30)
def test_counts_of_planes_add_up_to_those_of_both_side_by_side(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> None:
    planes = [count_objects(*first), count_objects(*second)]
    height = max(one[0].shape[0] for one in (first, second))

    def side_by_side(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        padded = [np.pad(one.astype(int), ((0, height - one.shape[0]), (0, 1))) for one in (a, b)]
        return np.hstack([padded[0], np.where(padded[1], padded[1] + 1000, 0)])

    both = count_objects(*(side_by_side(a, b) for a, b in zip(first, second, strict=True)))
    total = planes[0] + planes[1]
    assert sorted(total.overlapping) == sorted(both.overlapping)
    fields = ("truths", "predicted", "matched", "splits", "merges")
    assert [getattr(total, name) for name in fields] == [getattr(both, name) for name in fields]


def test_labels_do_not_matter_however_large() -> None:
    truth = discs([(12, 12), (44, 44)], 8)
    for kind, factor in itertools.product((np.uint32, np.uint64), (1, 100_000_000)):
        assert average_precision(truth.astype(kind) * kind(factor), truth) == [1.0] * len(THRESHOLDS)


def test_a_mask_is_cut_into_what_is_joined_by_sides_and_objects_are_left_as_they_are() -> None:
    mask = np.array([[255, 0, 255], [0, 255, 0]], np.uint8)
    assert components(mask > 0).max() == 3
    assert objects_of(mask).max() == 3
    touching = np.array([[1, 2, 2]], np.uint8)
    assert objects_of(touching) is touching
    assert not objects_of(np.zeros((2, 2), np.uint8)).any()
