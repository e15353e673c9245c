"""Images in the order in which a person should review them: the most uncertain first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.scores.registry import column_of, current_name

# Takes long to import, and is not needed to put rows in order.
if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Ranking:
    """Images by a score, worst first; images without a score are listed apart, never at an end of the list.

    Attributes
    ----------
    ranked : with a column ``rank`` (1 is worst) and, if a threshold was given, ``flagged``
    empty : images in which nothing was predicted as foreground, so that they have no uncertainty
    failed : with the reason in ``message``
    """

    score: str
    ranked: pd.DataFrame
    empty: pd.DataFrame
    failed: pd.DataFrame


@dataclass(frozen=True)
class RankedRows:
    """As `Ranking`, in plain rows."""

    ranked: list[dict[str, object]]
    empty: list[dict[str, object]]
    failed: list[dict[str, object]]


def rank(scores: pd.DataFrame, score: str = "uncertainty", above: float | None = None) -> Ranking:
    """Rank the rows of ``scores.parquet`` by a score.

    Parameters
    ----------
    scores : rows of ``scores.parquet``
    score : name of the column. The registry defines which end is the doubtful one; for columns that hold no score it is
        the high end.
    above : if given, images beyond it are flagged: above, or below if low values are doubtful

    Raises
    ------
    RefusedError
        If there is no such score.
    """
    import pandas as pd

    score = current_name(score)
    require_score(score, [name for name in scores.columns if pd.api.types.is_numeric_dtype(scores[name])])
    values = [None if pd.isna(value) else value for value in scores[score].tolist()]
    parts = _order(scores["name"].tolist(), scores["status"].tolist(), values, score)
    ranked, empty, failed = (scores.iloc[part].reset_index(drop=True) for part in parts)
    ranked.insert(0, "rank", range(1, len(ranked) + 1))
    if above is not None:
        ranked["flagged"] = ranked[score] < above if _low_is_bad(score) else ranked[score] > above
    return Ranking(score, ranked, empty, failed)


def rank_rows(
    columns: Mapping[str, Sequence[Any]], score: str = "uncertainty", above: float | None = None
) -> RankedRows:
    """As `rank`, of columns with ``name``, ``status`` and `score`, for whom pandas takes too long to import."""
    values = columns[score]
    parts = _order(columns["name"], columns["status"], values, score)
    ranked, empty, failed = ([{name: columns[name][row] for name in columns} for row in part] for part in parts)
    ranked = [{"rank": rank, **row} for rank, row in enumerate(ranked, 1)]
    if above is not None:
        low = _low_is_bad(score)
        for row in ranked:
            row["flagged"] = row[score] < above if low else row[score] > above
    return RankedRows(ranked, empty, failed)


def with_judgement(rows: Sequence[dict[str, object]], flags: Mapping[str, Sequence[Any]]) -> list[dict[str, object]]:
    """Return rows of images with what ``flags.parquet`` states of each, but for its rank."""
    stated = [name for name in flags if name not in ("rank", "name")]
    place = {name: row for row, name in enumerate(flags["name"])}
    nothing: dict[str, object] = {name: [] if name in ("flags", "reasons") else None for name in stated}
    judged = []
    for row in rows:
        at = place.get(row["name"])
        judged.append({**row, **(nothing if at is None else {name: flags[name][at] for name in stated})})
    return judged


def by_risk(columns: Mapping[str, Sequence[Any]], flags: Mapping[str, Sequence[Any]]) -> RankedRows:
    """Rank images as they are ranked in ``flags.parquet``: the highest risk first; empty predictions have one, too.

    Parameters
    ----------
    columns : of ``scores.parquet``, with ``name`` and ``status``
    flags : columns of ``flags.parquet``, with ``rank`` and ``name``
    """
    rows = {columns["name"][row]: {name: columns[name][row] for name in columns} for row in range(len(columns["name"]))}
    ranks = {name: int(rank) for rank, name in zip(flags["rank"], flags["name"], strict=True) if rank is not None}
    order = sorted((name for name in rows if name in ranks), key=ranks.__getitem__)
    ranked = with_judgement([{"rank": ranks[name], **rows[name]} for name in order], flags)
    left = with_judgement([row for name, row in rows.items() if name not in ranks], flags)
    failed = [row for row in left if row["status"] == "failed"]
    return RankedRows(ranked, [row for row in left if row["status"] != "failed"], failed)


def require_score(score: str, numeric: Sequence[str]) -> None:
    """Raise RefusedError where `score` is none of the columns of numbers."""
    if score not in numeric:
        raise RefusedError(f"no score {score!r}; choose out of {', '.join(numeric)}")


def _low_is_bad(score: str) -> bool:
    column = column_of(score)
    return column is not None and column.low_is_bad


def _order(
    names: Sequence[str], status: Sequence[str], values: Sequence[float | None], score: str
) -> tuple[list[int], list[int], list[int]]:
    """Rows with a score, worst first; those without one; those that failed."""
    sign = 1 if _low_is_bad(score) else -1
    # Names break ties, so that the order is the same in every run.
    scored = [
        (sign * value, name, row)
        for row, (name, state, value) in enumerate(zip(names, status, values, strict=True))
        if state == "done" and value is not None and value == value
    ]
    ranked = [row for _, _, row in sorted(scored)]
    known = set(ranked)
    failed = [row for row, state in enumerate(status) if state == "failed"]
    empty = [row for row, state in enumerate(status) if state != "failed" and row not in known]
    return ranked, empty, failed
