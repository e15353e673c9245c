"""Scores against a truth: by hand, and by a matching written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from pipeline.training.evaluation import THRESHOLDS, Score, average_precision, dice, summarise, verdict


def discs(centres: list[tuple[int, int]], radius: float, size: int = 64) -> np.ndarray:
    labels = np.zeros((size, size), np.int32)
    y, x = np.mgrid[:size, :size]
    for number, (cy, cx) in enumerate(centres, 1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = 7 * number
    return labels


def by_hand(truth: np.ndarray, predicted: np.ndarray, threshold: float) -> float:
    """TP / (TP + FP + FN) with the matching that has the most pairs beyond the threshold."""
    a, b = ([labels == v for v in np.unique(labels) if v] for labels in (truth, predicted))
    iou = np.array([[np.sum(p & q) / np.sum(p | q) for q in b] for p in a]).reshape(len(a), len(b))
    rows, columns = linear_sum_assignment(-(iou >= threshold).astype(float))
    hits = int((iou[rows, columns] >= threshold).sum())
    return hits / (len(a) + len(b) - hits)


def test_average_precision_is_that_of_a_matching_written_out() -> None:
    truth = discs([(12, 12), (12, 44), (44, 12), (44, 44)], 8)
    predicted = discs([(13, 12), (15, 44), (44, 17)], 8)
    found = average_precision(truth, predicted)
    assert found == pytest.approx([by_hand(truth, predicted, t) for t in THRESHOLDS])
    assert 0 < found[0] < 1


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


def test_dice_of_nothing_and_nothing_is_one() -> None:
    nothing, half = np.zeros((4, 4), bool), np.arange(16).reshape(4, 4) < 8
    assert dice(nothing, nothing) == 1
    assert dice(half, nothing) == 0
    assert dice(half, np.ones((4, 4), bool)) == pytest.approx(2 / 3)


def test_verdict_says_honestly_when_a_member_is_better() -> None:
    def scores(ensemble: float) -> list[Score]:
        members = [Score("a", f"member-{i}", True, 0.5 + i / 10) for i in range(2)]
        return [*members, Score("a", "ensemble", True, ensemble), Score("a", "member-1", False, 0.99)]

    assert "is not at least as good as its best member (Dice 0.5500; member-1 0.6000)" in verdict(
        summarise(scores(0.55))
    )
    assert "is at least as good" in verdict(summarise(scores(0.6)))
