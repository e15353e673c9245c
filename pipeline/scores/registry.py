"""All scores, each declared once: columns, labels, orders and reasons of scores are all taken from here.

To add one, declare it in `region_scores` or `appearance_scores`, with a function that derives it from the sums of
regions, and run ``make score-tables`` for the docs. Nothing else lists scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from chorus.pipeline.scores.appearance_scores import APPEARANCE_SCORES
from chorus.pipeline.scores.judgement_scores import ESTIMATES, FURTHER
from chorus.pipeline.scores.region_scores import REGION_SCORES
from chorus.pipeline.scores.score import Column, Score

if TYPE_CHECKING:
    import pandas as pd

SCORES: tuple[Score, ...] = (*ESTIMATES, *REGION_SCORES, *APPEARANCE_SCORES, *FURTHER)
"""In order of display."""
IMAGE_TABLE = tuple(score for score in SCORES if score.table == "scores")
"""Scores of ``scores.parquet``."""
FLAG_TABLE = tuple(score for score in SCORES if score.table == "flags")
"""Scores of ``flags.parquet``."""
STATED = tuple(score for score in FLAG_TABLE if score.listed)
"""Scores that `chorus flag` and the server state for every image."""

_BY_NAME = {(score.name, score.per != "image"): score for score in SCORES}
_FORMER = {(score.former, score.per != "image"): score for score in SCORES if score.former}


def column_of(name: str) -> Column | None:
    """Return the score that a column holds, also under its name in earlier versions; None if it holds none."""
    start, colon, subject = name.partition(":")
    key = start, bool(colon)
    score = _BY_NAME.get(key) or _FORMER.get(key)
    return None if score is None else Column(score, subject)


def current_name(name: str) -> str:
    """Return the present name of a column: itself, unless it was renamed."""
    column = column_of(name)
    return name if column is None else column.key


def phrase_of(name: str) -> str:
    """Return the display name of a column within a sentence; columns that hold no score keep their name."""
    column = column_of(name)
    return name if column is None else column.phrase


def score_columns(classes: Sequence[str], channels: Sequence[str]) -> list[Column]:
    """Return the columns of ``scores.parquet``, in order.

    Parameters
    ----------
    classes : names of the foreground classes
    channels : names of the ensemble's input channels
    """
    columns = [score.column() for score in IMAGE_TABLE if score.per == "image"]
    others = (score for score in IMAGE_TABLE if score.per != "image")
    for per, group in itertools.groupby(others, lambda score: score.per):
        scores = list(group)
        if per == "class":
            columns += [score.column(name) for score in scores for name in classes]
        else:  # all scores of a channel stand together
            columns += [score.column(name) for name in channels for score in scores]
    return columns


def columns_in(names: Iterable[Hashable]) -> list[Column]:
    """Return the scores among the columns of a table, in the order of the registry; within a score, of the table."""
    columns = [column for name in map(str, names) if (column := column_of(name)) is not None and column.key == name]
    return sorted(columns, key=lambda column: _place(column.score))


@cache
def _place(score: Score) -> int:
    return SCORES.index(score)


def with_current_names(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of an earlier version with the present names of its columns; any other table unchanged."""
    return table.rename(columns={name: current for name in table if (current := current_name(str(name))) != name})
