"""Objects of several experts: who drew the same, what is kept, in which shape; on drawings small enough to read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from chorus.pipeline.consensus.instance_votes import matched, vote_on_objects


def drawing(text: str) -> np.ndarray:
    """Labels from rows of characters; ``.`` is background, equal letters are an object."""
    rows = [[0 if letter == "." else ord(letter) for letter in line] for line in text.split()]
    return np.array(rows, np.int32)


def of(labels: np.ndarray, letter: str) -> np.ndarray:
    """(y, x) bool: the object of that letter."""
    return labels == ord(letter)


FIRST = drawing("AAA...BB  AAA...BB  ......BB")
SECOND = drawing("aaa....b  aaaa...b  .......b")  # a is larger, b is half of B
THIRD = drawing("xxx.....  xxx.....  ....y...")  # misses B, sees y


def test_objects_that_overlap_by_more_than_half_are_the_same() -> None:
    a, b, small = ord("A"), ord("a"), ord("x")
    groups = matched([FIRST, SECOND, THIRD])
    assert groups[0] == ((0, a), (1, b), (2, small))
    # B and b overlap by exactly half of B, which is not more
    assert groups[1:] == [((0, ord("B")),), ((1, ord("b")),), ((2, ord("y")),)]


def test_what_most_drew_is_kept_in_the_shape_that_most_gave_it() -> None:
    found = vote_on_objects([FIRST, SECOND, THIRD], "vote")
    assert np.array_equal(found.labels, of(FIRST, "A").astype(np.int32))
    assert found.votes.tolist() == [3]


def test_union_keeps_everything_and_intersection_what_all_drew() -> None:
    either = vote_on_objects([FIRST, SECOND, THIRD], "union").labels
    assert either[1, 3] == 1  # only the second expert's a reaches there
    assert len(np.unique(either)) - 1 == 3  # a, B (b lies within it) and y
    assert np.array_equal(either != 0, (FIRST != 0) | (SECOND != 0) | (THIRD != 0))
    both = vote_on_objects([FIRST, SECOND, THIRD], "intersection").labels
    assert np.array_equal(both, ((FIRST != 0) & (SECOND != 0) & (THIRD != 0)).astype(np.int32))


@pytest.mark.parametrize(("ties", "kept"), [("background", 1), ("foreground", 2)])
def test_half_of_the_experts_is_a_tie(ties: str, kept: int) -> None:
    first, second = drawing("AA..BB  AA..BB"), drawing("aa....  a.....")
    found = vote_on_objects([first, second], "vote", ties)
    assert found.labels.max() == kept
    shape = of(first, "A") if ties == "foreground" else of(second, "a")
    assert np.array_equal(found.labels == 1, shape)


def test_one_expert_who_merges_what_two_keep_apart_is_outvoted() -> None:
    apart, merged = drawing("AABB  AABB"), drawing("MMMM  MMMM")
    found = vote_on_objects([apart, apart, merged], "vote")
    assert found.labels.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    assert found.votes.tolist() == [2, 2]


def test_a_group_never_has_two_objects_of_one_expert() -> None:
    # a chain from A to B, both of the first expert: each object overlaps the next by 9 of 15
    rows = ["A" * 12 + "B" * 12, *("." * skip + "x" * 12 + "." * (12 - skip) for skip in (3, 6, 9))]
    groups = matched([drawing(row) for row in rows])
    assert max(len(group) for group in groups) > 1
    for group in groups:
        experts = [expert for expert, _ in group]
        assert len(set(experts)) == len(experts)


def test_equal_drawings_are_the_truth_but_for_the_numbers() -> None:
    for rule in ("vote", "union", "intersection"):
        found = vote_on_objects([FIRST] * 3, rule)
        assert np.array_equal(found.labels, of(FIRST, "A") + 2 * of(FIRST, "B"))


def test_nothing_drawn_is_nothing() -> None:
    empty = np.zeros((4, 5), np.uint16)
    found = vote_on_objects([empty, empty], "vote")
    assert not found.labels.any()
    assert len(found.votes) == 0


@settings(max_examples=60)
@given(labels=arrays(np.uint8, (4, 7, 6), elements=st.integers(0, 3)))
def test_numbers_are_consecutive_in_the_order_of_first_pixels_and_enough_experts_stand_behind_each(
    labels: np.ndarray,
) -> None:
    estimate = vote_on_objects(list(labels), "vote")
    found = estimate.labels
    assert set(np.unique(found)) - {0} == set(range(1, len(estimate.votes) + 1))
    _, first = np.unique(found[found != 0], return_index=True)
    assert (np.diff(first) > 0).all()
    assert (estimate.votes >= 3).all()
    assert ((labels != 0).sum(axis=0)[found != 0] >= 2).all()
