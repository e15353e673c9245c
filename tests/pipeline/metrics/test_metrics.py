"""Metrics of classes and boundaries: those of scikit-learn, of plain loops, and the same under any cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.metrics import hausdorff_distance
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, precision_score, recall_score

from chorus.pipeline.metrics.segmentation import (
    BoundaryDistance,
    agreements,
    boundary_distance,
    boundary_distances,
    confusion,
    dice,
    macro_dice,
)

CLASSES = 4
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)


@st.composite
def label_pairs(draw: st.DrawFn, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(SHAPES)
    one = hnp.arrays(np.uint8, shape, elements=st.integers(0, classes - 1))
    return draw(one), draw(one)


def boundary_by_hand(mask: np.ndarray) -> list[tuple[int, int]]:
    """Pixels with one of four neighbours outside the mask or the image."""
    height, width = mask.shape

    def inside(y: int, x: int) -> bool:
        return 0 <= y < height and 0 <= x < width and bool(mask[y, x])

    around = [(-1, 0), (1, 0), (0, -1), (0, 1)]
    return [(y, x) for y, x in np.argwhere(mask).tolist() if not all(inside(y + dy, x + dx) for dy, dx in around)]


def distances_by_hand(predicted: np.ndarray, truth: np.ndarray) -> list[float]:
    first, second = boundary_by_hand(predicted), boundary_by_hand(truth)
    there = [min(math.dist(a, b) for b in second) for a in first]
    return there + [min(math.dist(a, b) for a in first) for b in second]


@given(label_pairs())
@settings(max_examples=50)
def test_counts_and_shares_are_those_of_scikit_learn(pair: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, truth = pair
    counts = confusion(predicted, truth, CLASSES)
    flat = truth.ravel(), predicted.ravel()
    assert np.array_equal(counts, confusion_matrix(*flat, labels=range(CLASSES)))
    foreground = {"labels": [1, 2, 3], "average": None, "zero_division": np.nan}
    found = agreements(counts)
    known = {
        "dice": f1_score(*flat, **foreground),
        "iou": jaccard_score(*flat, **(foreground | {"zero_division": 0})),
        "precision": precision_score(*flat, **foreground),
        "recall": recall_score(*flat, **foreground),
    }
    for k, one in enumerate(found, start=1):
        if not counts[k].sum() and not counts[:, k].sum():
            assert (one.dice, one.iou, one.precision, one.recall) == (1, 1, 1, 1)
            continue
        for name, values in known.items():
            value = getattr(one, name)
            assert np.isnan(values[k - 1]) if value is None else value == pytest.approx(values[k - 1])
    assert macro_dice(found) == pytest.approx(np.mean([one.dice for one in found]))
    assert [one.dice for one in found] == [dice(predicted == k, truth == k) for k in (1, 2, 3)]


@given(label_pairs(), st.data())
@settings(max_examples=50)
def test_counts_are_exact_under_any_cut(pair: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
    predicted, truth = pair
    cuts = [sorted(data.draw(st.lists(st.integers(0, length), max_size=3))) for length in truth.shape]
    parts = [
        confusion(a, b, CLASSES)
        for rows in zip(np.split(predicted, cuts[0]), np.split(truth, cuts[0]), strict=True)
        for a, b in zip(*(np.split(one, cuts[1], axis=1) for one in rows), strict=True)
    ]
    assert np.array_equal(sum(parts), confusion(predicted, truth, CLASSES))


def test_a_class_that_is_nowhere_is_right_and_one_that_is_missed_has_no_precision() -> None:
    nothing, half = np.zeros((4, 4), np.uint8), np.uint8(np.arange(16).reshape(4, 4) < 8)
    (empty,) = agreements(confusion(nothing, nothing, 2))
    (missed,) = agreements(confusion(nothing, half, 2))
    (invented,) = agreements(confusion(half, nothing, 2))
    assert (empty.dice, empty.iou, empty.precision, empty.recall) == (1, 1, 1, 1)
    assert (missed.dice, missed.iou, missed.precision, missed.recall) == (0, 0, None, 0)
    assert (invented.dice, invented.iou, invented.precision, invented.recall) == (0, 0, 0, None)


def test_dice_of_nothing_and_nothing_is_one() -> None:
    nothing, half = np.zeros((4, 4), bool), np.arange(16).reshape(4, 4) < 8
    assert dice(nothing, nothing) == 1
    assert dice(half, nothing) == 0
    assert dice(half, np.ones((4, 4), bool)) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("predicted", "truth"), [([2], [0]), ([0], [2]), ([0], [-1]), ([0, 0], [0])])
def test_values_that_are_no_classes_and_other_shapes_are_refused(predicted: list[int], truth: list[int]) -> None:
    with pytest.raises(ValueError, match=r"no classes|differ in shape"):
        confusion(np.array(predicted), np.array(truth), 2)


@given(label_pairs(classes=2))
@settings(max_examples=60)
def test_boundary_distances_are_those_of_plain_loops(pair: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, truth = (one.astype(bool) for one in pair)
    found = boundary_distances(predicted, truth)
    if predicted.any() != truth.any():
        assert found is None
        return
    assert found is not None
    expected = distances_by_hand(predicted, truth) if truth.any() else []
    assert sorted(found) == pytest.approx(sorted(expected))
    if truth.any():
        edges = [np.zeros(truth.shape, bool) for _ in range(2)]
        for edge, mask in zip(edges, (predicted, truth), strict=True):
            edge[tuple(np.array(boundary_by_hand(mask)).T)] = True
        assert max(found) == pytest.approx(hausdorff_distance(*edges))
        one = boundary_distance([found])
        assert one.median == pytest.approx(np.median(expected))
        assert one.p95 == pytest.approx(np.percentile(expected, 95))
        assert one.mean == pytest.approx(math.fsum(expected) / len(expected))


def test_a_square_that_is_moved_by_three_pixels_is_three_pixels_away_at_most() -> None:
    truth = np.zeros((40, 40), bool)
    truth[10:20, 10:20] = True
    moved = np.roll(truth, 3, axis=1)
    found = boundary_distance([boundary_distances(moved, truth)])
    assert found.p95 == 3
    assert 0 < (found.median or 0) <= (found.mean or 0) + 3


def test_planes_count_together_and_one_without_any_boundary_has_none() -> None:
    one, other = np.array([0.0, 2.0]), np.array([4.0])
    assert boundary_distance([one, None, other, np.empty(0)]).mean == 2
    assert boundary_distance([np.empty(0), np.empty(0)]) == BoundaryDistance(0, 0, 0)
    assert boundary_distance([np.empty(0), None]) == BoundaryDistance(None, None, None)
