"""Ranking: worst first, what has no score apart, the same order every time."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.scores.ranking import rank


def scores(rows: list[tuple[str, str, float | None, float | None]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["name", "status", "uncertainty", "pairwise_dice"])
    return frame.astype({"uncertainty": float, "pairwise_dice": float}).assign(message="")


FRAME = scores(
    [
        ("calm", "done", 0.01, 0.95),
        ("doubtful", "done", 0.2, 0.5),
        ("black", "empty", None, 1.0),
        ("broken", "failed", None, None),
        ("between", "done", 0.1, 0.7),
    ]
)


def names(frame: pd.DataFrame) -> list[Any]:
    return frame["name"].tolist()


def test_the_most_doubtful_come_first_and_empty_and_failed_stand_apart() -> None:
    ranking = rank(FRAME)
    assert names(ranking.ranked) == ["doubtful", "between", "calm"]
    assert ranking.ranked["rank"].tolist() == [1, 2, 3]
    assert names(ranking.empty) == ["black"]
    assert names(ranking.failed) == ["broken"]


def test_a_low_dice_is_the_bad_one() -> None:
    ranking = rank(FRAME, "pairwise_dice", above=0.6)
    assert names(ranking.ranked) == ["doubtful", "between", "calm"]
    assert ranking.ranked["flagged"].tolist() == [True, False, False]


def test_above_flags_what_lies_beyond_it() -> None:
    assert rank(FRAME, above=0.1).ranked["flagged"].tolist() == [True, False, False]


def test_ties_are_broken_by_name_whatever_the_order_of_the_rows() -> None:
    rows = [(name, "done", 0.1, 0.5) for name in "dbac"]
    assert names(rank(scores(rows)).ranked) == names(rank(scores(rows[::-1])).ranked) == list("abcd")


def test_every_image_is_in_exactly_one_list() -> None:
    ranking = rank(FRAME, "pairwise_dice")
    listed = names(ranking.ranked) + names(ranking.empty) + names(ranking.failed)
    assert sorted(listed) == sorted(names(FRAME))


def test_an_unknown_score_is_refused_with_those_there_are() -> None:
    with pytest.raises(RefusedError, match=r"no score 'doubt'; choose out of uncertainty, pairwise_dice"):
        rank(FRAME, "doubt")
    with pytest.raises(RefusedError, match="no score 'message'"):
        rank(FRAME, "message")


def test_images_without_any_score_are_no_error() -> None:
    only = FRAME[FRAME["status"] != "done"]
    ranking = rank(only)
    assert len(ranking.ranked) == 0
    assert names(ranking.empty) == ["black"]
