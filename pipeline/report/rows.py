"""The images of a run, one row each, in the order in which a person should review them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.parquet_errors import parquet_errors
from chorus.pipeline.io.storage_failures import failure_sentence
from chorus.pipeline.report.documents import read_table
from chorus.pipeline.scores.flag_registry import with_current_flags
from chorus.pipeline.scores.judgement_scores import MEASURED_DICE
from chorus.pipeline.scores.ranking import rank
from chorus.pipeline.scores.registry import FLAG_TABLE, IMAGE_TABLE, columns_in, with_current_names
from chorus.pipeline.scores.score import Column

STATUSES = ("done", "empty", "failed")
_TEXTS = ("image", "source", "name", "status", "message")
_JUDGED = tuple(score.name for score in FLAG_TABLE)


@dataclass(frozen=True, slots=True)
class Row:
    """One image; numbers are None if the run has none, `rank` is None for images without one."""

    name: str
    source_url: str
    status: str
    message: str
    rank: int | None
    values: dict[str, float | None]
    flags: tuple[str, ...]
    reasons: tuple[str, ...]
    review: bool


@dataclass(frozen=True)
class Images:
    """All images of a run in order, those to review first on top, the failed ones last.

    Attributes
    ----------
    table : columns ``name``, ``source_url``, ``status``, ``message``, ``rank`` (0 without one), ``flags`` and
        ``reasons`` (tuples), ``review``, and those of `quantities`
    judged : whether `chorus flag` has judged them; else they are in order of uncertainty
    measured : whether some have a Dice against a truth
    quantities : scores that some image has, in order of display
    """

    table: pd.DataFrame
    judged: bool
    measured: bool
    quantities: tuple[Column, ...]

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, places: Iterable[int]) -> list[Row]:
        """Return the images at these indices of the order."""
        keys = [quantity.key for quantity in self.quantities]
        rows = []
        for values in self.table.iloc[list(places)].to_dict("records"):
            numbers = {key: _finite(values[key]) for key in keys}
            rows.append(
                Row(
                    name=values["name"],
                    source_url=values["source_url"],
                    status=values["status"],
                    message=values["message"],
                    rank=int(values["rank"]) or None,
                    values=numbers,
                    flags=values["flags"],
                    reasons=values["reasons"],
                    review=bool(values["review"]),
                )
            )
        return rows

    def places(self, status: str) -> list[int]:
        """Return the indices of the images with a status."""
        return [int(position) for position in np.flatnonzero(self.table["status"] == status)]

    def noted(self) -> list[int]:
        """Return the indices of completed images with a note, for example on an unknown pixel size."""
        return [int(i) for i in np.flatnonzero((self.table["status"] != "failed") & (self.table["message"] != ""))]

    def ranked(self) -> list[int]:
        """Return the indices of the images that have a rank and foreground."""
        return [
            int(position) for position in np.flatnonzero((self.table["rank"] > 0) & (self.table["status"] == "done"))
        ]

    def values(self, key: str) -> np.ndarray:
        """Return the finite numbers of a column.

        Parameters
        ----------
        key : name of the column

        Returns
        -------
        np.ndarray
            (n,) float64; empty if there is no such column.
        """
        if key not in self.table:
            return np.empty(0)
        numbers = self.table[key].to_numpy(np.float64, na_value=np.nan)
        return np.asarray(numbers[np.isfinite(numbers)])


def read_images(out: str, notes: list[str]) -> Images:
    """Return the images of the run at `out`.

    Parameters
    ----------
    out : URL of the run
    notes : gets a sentence for each table beside the scores that does not fit them

    Raises
    ------
    RefusedError
        If there are no scores.
    """
    scores = _read_scores(storage.join(out, "scores.parquet"))
    flags = read_table(out, "flags.parquet", {"name", "rank", "flags", "reasons"}, "chorus flag", notes)
    flags = None if flags is None else with_current_flags(flags)
    if flags is not None and set(flags["name"]) != set(scores["name"]):
        notes.append("flags.parquet is of other images than scores.parquet and left out; run `chorus flag` again")
        flags = None
    measured = read_table(out, "evaluation.parquet", {"name", "dice"}, "chorus evaluate", notes)
    table = _by_uncertainty(scores) if flags is None else _by_risk(scores, flags)
    if measured is not None:
        dice = pd.to_numeric(measured.drop_duplicates("name").set_index("name")["dice"])
        table[MEASURED_DICE.name] = table["name"].map(dice)
    has_dice = measured is not None and bool(table[MEASURED_DICE.name].notna().any())
    known = [column for column in columns_in(table) if column.score.table != "run"]
    shown = tuple(column for column in known if table[column.key].notna().any())
    return Images(table, flags is not None, has_dice, shown)


def _read_scores(url: str) -> pd.DataFrame:
    """Return ``scores.parquet`` with every column that the page needs."""
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        sentence = failure_sentence(error, url)
        raise RefusedError(f"{sentence}; a report needs the --out of a `chorus predict` run") from error
    with parquet_errors(url, "run predict again to mend it"):
        table = with_current_names(pd.read_parquet(io.BytesIO(data)))
    for name in _TEXTS:
        # A column with only nulls has a numeric dtype.
        table[name] = table[name].astype(object).where(table[name].notna(), "").astype(str) if name in table else ""
    always = {score.name for score in IMAGE_TABLE if score.per == "image"}
    for name in (*always.difference(table), *(column.key for column in columns_in(table))):
        table[name] = pd.to_numeric(table[name]) if name in table else np.nan
    roots = table["source"].str.rstrip("/")
    within = table["image"].str.strip("/")
    table["source_url"] = roots.where(within == "", roots + "/" + within)
    bare = within.where(within != "", roots.map(storage.basename))
    table["name"] = table["name"].where(table["name"] != "", bare)
    return table


def _by_uncertainty(scores: pd.DataFrame) -> pd.DataFrame:
    """Order by uncertainty, the most uncertain first, then empty predictions, then failed images."""
    ranking = rank(scores)
    table = pd.concat([ranking.ranked, ranking.empty, ranking.failed], ignore_index=True)
    table["rank"] = (table["rank"] if "rank" in table else pd.Series(np.nan, index=table.index)).fillna(0).astype(int)
    table["flags"] = table["reasons"] = pd.Series([()] * len(table), index=table.index, dtype=object)
    table["review"] = False
    return table


def _by_risk(scores: pd.DataFrame, flags: pd.DataFrame) -> pd.DataFrame:
    """Order as in ``flags.parquet``: the highest risk first, failed images last."""
    chosen = flags[["name", "rank", "flags", "reasons", *(n for n in (*_JUDGED, "review") if n in flags)]]
    table = chosen.merge(scores.drop(columns=["rank", "flags", "reasons", *_JUDGED], errors="ignore"), on="name")
    table["rank"] = pd.to_numeric(table["rank"]).fillna(0).astype(int)
    for name in ("flags", "reasons"):
        table[name] = [tuple(map(str, reasons)) for reasons in table[name]]
    table["review"] = table["review"].fillna(False).astype(bool) if "review" in table else False
    return table


def _finite(value: Any) -> float | None:
    number = float("nan") if value is None or value is pd.NA else float(value)
    return number if math.isfinite(number) else None
