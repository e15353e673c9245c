"""Votes: majority with its tie rule, union, intersection; against SimpleITK and against plain loops."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from chorus.pipeline.consensus.vote_patterns import PatternLabels, VotePatterns
from chorus.pipeline.consensus.votes import intersection, majority, union

LABELS = arrays(np.uint8, st.tuples(st.integers(1, 5), st.just(5), st.just(6)), elements=st.integers(0, 3))


def apply(found: PatternLabels, labels: np.ndarray) -> np.ndarray:
    return found.apply(list(labels))


def count(labels: np.ndarray, classes: int = 4) -> VotePatterns:
    return VotePatterns.count(list(labels), classes)


def plain(votes: list[int], ties: str) -> tuple[int, int, int]:
    """Majority, union and intersection of one pixel."""
    counts = Counter(votes)
    best = sorted(label for label in counts if counts[label] == max(counts.values()))
    tied = next((label for label in best if label), 0) if ties == "foreground" else 0
    drawn = Counter(label for label in votes if label)
    either = min((label for label in drawn if drawn[label] == max(drawn.values())), default=0)
    return best[0] if len(best) == 1 else tied, either, votes[0] if len(counts) == 1 else 0


@settings(max_examples=60)
@given(labels=LABELS, ties=st.sampled_from(["background", "foreground"]))
def test_every_pixel_is_what_a_plain_count_says(labels: np.ndarray, ties: str) -> None:
    patterns = count(labels)
    found = [apply(one, labels) for one in (majority(patterns, ties), union(patterns), intersection(patterns))]
    for place in np.ndindex(labels.shape[1:]):
        assert tuple(int(one[place]) for one in found) == plain(labels[:, *place].tolist(), ties)


@settings(max_examples=30)
@given(labels=LABELS)
def test_the_majority_is_that_of_simpleitk(labels: np.ndarray) -> None:
    images = [SimpleITK.GetImageFromArray(one) for one in labels]
    expected = SimpleITK.GetArrayFromImage(SimpleITK.LabelVoting(images, 0))
    assert np.array_equal(apply(majority(count(labels)), labels), expected)


@settings(max_examples=30)
@given(labels=LABELS)
def test_patterns_are_what_the_experts_said_and_every_pixel_is_counted(labels: np.ndarray) -> None:
    patterns = count(labels)
    assert patterns.pixels == labels[0].size
    expected = Counter(tuple(labels[:, *place].tolist()) for place in np.ndindex(labels.shape[1:]))
    assert dict(zip(map(tuple, patterns.votes.T.tolist()), patterns.counts.tolist(), strict=True)) == expected
    assert np.array_equal(patterns.votes_per_class.sum(axis=0), np.full(len(patterns.keys), len(labels)))


@pytest.mark.parametrize(("ties", "expected"), [("background", [0, 0, 1, 0]), ("foreground", [0, 1, 1, 1])])
def test_half_of_the_experts_is_a_tie(ties: str, expected: list[int]) -> None:
    labels = np.array([[0, 0, 1, 1], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]], np.uint8)[:, np.newaxis]
    assert apply(majority(count(labels, 2), ties), labels).ravel().tolist() == expected


def test_patterns_of_other_experts_are_not_added() -> None:
    with pytest.raises(ValueError, match="other experts"):
        count(np.zeros((2, 3, 3), np.uint8)) + count(np.zeros((3, 3, 3), np.uint8))


def test_many_classes_take_a_wider_type() -> None:
    labels = np.array([[[0, 299]], [[0, 299]]], np.uint16)
    found = apply(majority(count(labels, 300)), labels)
    assert found.dtype == np.uint16
    assert found.tolist() == [[0, 299]]
