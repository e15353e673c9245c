"""The images of a run for review: sorted, filtered, and in pages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.report.rows import Images
from chorus.pipeline.scores.flag_registry import REVIEW
from chorus.pipeline.scores.region_scores import AREA_FRACTION
from chorus.pipeline.scores.registry import column_of, current_name
from chorus.pipeline.scores.score import Column, Score
from chorus.pipeline.shift.batch_effects import plate_places
from chorus.serving.review.cache import Cache
from chorus.serving.review.decisions import DECISIONS, State
from chorus.serving.review.schemas import ImageEntry

RANK, NAME = "rank", "name"
"""Orders besides scores: as of the report (by risk after ``chorus flag``, else by uncertainty), and by name."""

_NUMBER = re.compile(r"\d+(\.\d+)?(e-?\d+)?")
# Numbers on the run itself, not scores.
_NOT_SCORES = ("rank", "regions", "tiles", "seconds")
_REASONS = 40


@dataclass(frozen=True, slots=True)
class Query:
    """Which images, and in which order; None or empty does not filter.

    Attributes
    ----------
    sort : ``rank``, ``name`` or a score
    order : ``worst`` first, or ``best``; for names ``worst`` is ascending
    flags : all of these are set; ``review`` is what `chorus flag --budget` marked
    statuses : one of these
    reason : as listed by `Gallery.reasons`
    plate, well : as of `chorus.pipeline.shift.batch_effects.plate_places`; a well is ``row/column``
    class_name : the class covers some of the image
    decision : ``accept``, ``reject``, ``correct-later``, ``any``, ``none`` or ``conflict``
    search : part of the name, of a reason or of the message, case-insensitive
    beyond : limits by score; images at or beyond it, on the bad side
    """

    sort: str = RANK
    order: Literal["worst", "best"] = "worst"
    flags: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    reason: str | None = None
    plate: str | None = None
    well: str | None = None
    class_name: str | None = None
    decision: str | None = None
    search: str = ""
    beyond: tuple[tuple[str, float], ...] = ()


class Gallery:
    """The images in memory, as columns.

    In its methods a place is the index of an image in the table.
    """

    def __init__(self, images: Images, classes: list[str]) -> None:
        self.images = images
        table = images.table
        self.names: list[str] = table["name"].tolist()
        self.places = {name: position for position, name in enumerate(self.names)}
        self.quantities = (*images.quantities, *_others(images))
        self._by_key = {quantity.key: quantity for quantity in self.quantities}
        self._values = {
            one.key: pd.to_numeric(table[one.key]).to_numpy(np.float64, na_value=np.nan) for one in self.quantities
        }
        self._classes = classes
        self._statuses = table["status"].to_numpy(str)
        self._flags = _membership(table["flags"])
        self._flags[REVIEW] = np.flatnonzero(table["review"].to_numpy(bool))
        self._reasons = _membership(table["reasons"].map(lambda reasons: tuple(_kind(reason) for reason in reasons)))
        places = plate_places(table["name"])
        self._plates = places["plate"].fillna("").to_numpy(str)
        self._wells = (places.iloc[:, 1].fillna("") + "/" + places.iloc[:, 2].fillna("")).to_numpy(str)
        reasons = table["reasons"].map("; ".join) + "; " + table["message"]
        self._text = pa.array((table["name"] + "\n" + reasons).tolist(), pa.large_string())
        self._found: Cache[NDArray[np.int64]] = Cache(32)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def plates(self) -> list[str]:
        """Names of the plates, sorted."""
        return sorted(set(self._plates.tolist()) - {""})

    @cached_property
    def flags(self) -> dict[str, int]:
        """Number of images of each flag that is set on any."""
        return {name: len(places) for name, places in self._flags.items() if len(places)}

    @cached_property
    def statuses(self) -> dict[str, int]:
        """Number of images of each status."""
        return dict(Counter(self._statuses.tolist()))

    @cached_property
    def reasons(self) -> dict[str, int]:
        """Number of images of the most common kinds of reasons (without numbers in them)."""
        counts = {name: len(places) for name, places in self._reasons.items()}
        return dict(sorted(counts.items(), key=lambda item: -item[1])[:_REASONS])

    def quantity(self, key: str) -> Column:
        """Return a score; raise RefusedError if there is none of that name."""
        key = current_name(key)
        if key not in self._by_key:
            raise RefusedError(f"no score {key!r}; choose out of {', '.join(self._by_key)}")
        return self._by_key[key]

    def values(self, key: str) -> NDArray[np.float64]:
        """Return the values of a score.

        Returns
        -------
        (images,) float64, NaN if an image has none
        """
        return self._values[self.quantity(key).key]

    def find(self, query: Query, states: Mapping[str, State], version: int) -> NDArray[np.int64]:
        """Return the images of a query, in its order.

        Parameters
        ----------
        states : decisions by image
        version : of the decisions; with the version of the first page, the list stays the same while deciding

        Returns
        -------
        (images found,) int64, places
        """
        key = (query, version if query.decision else None)
        return self._found.get(key, lambda: self._find(query, states))

    def rows(self, places: NDArray[np.int64]) -> list[ImageEntry]:
        """Return images as entries of a list.

        Parameters
        ----------
        places : (rows,) int64
        """
        rows = []
        for position, row in zip(places.tolist(), self.images.rows(places.tolist()), strict=True):
            plate = self._plates[position]
            rows.append(
                ImageEntry(
                    place=position,
                    name=row.name,
                    rank=row.rank,
                    status=row.status,
                    message=row.message,
                    flags=[flag for flag in row.flags if flag != row.status],
                    reasons=list(row.reasons),
                    review=row.review,
                    plate=str(plate) or None,
                    well=str(self._wells[position]) if plate else None,
                    values={key: _number(values[position]) for key, values in self._values.items()},
                )
            )
        return rows

    def _find(self, query: Query, states: Mapping[str, State]) -> NDArray[np.int64]:
        order = self._order(query.sort, query.order)
        keep = np.ones(len(self), bool)
        for flag in query.flags:
            keep &= self._mask(self._flags.get(flag, []))
        if query.statuses:
            keep &= np.isin(self._statuses, query.statuses)
        if query.reason:
            keep &= self._mask(self._reasons.get(query.reason, []))
        if query.plate:
            keep &= self._plates == query.plate
        if query.well:
            keep &= self._wells == query.well
        if query.class_name:
            if query.class_name not in self._classes:
                raise RefusedError(f"no class {query.class_name!r}; choose out of {', '.join(self._classes)}")
            keep &= self._values.get(AREA_FRACTION.column(query.class_name).key, np.zeros(len(self))) > 0
        for key, value in query.beyond:
            keep &= beyond(self.values(key), value, low_is_bad=self.quantity(key).low_is_bad)
        if query.search.strip():
            keep &= pc.match_substring(self._text, query.search.strip(), ignore_case=True).to_numpy(
                zero_copy_only=False
            )
        if query.decision:
            keep &= self._decided(query.decision, states)
        return order[keep[order]]

    def _order(self, sort: str, order: str) -> NDArray[np.int64]:
        if sort == RANK:
            places = np.arange(len(self))
            return places if order == "worst" else places[::-1]
        if sort == NAME:
            places = np.argsort(np.asarray(self.names), kind="stable")
            return places if order == "worst" else places[::-1]
        uncertainty = self.values(sort) * (1 if self.quantity(sort).low_is_bad else -1)
        # NaN sorts last in both orders.
        return np.argsort(uncertainty if order == "worst" else -uncertainty, kind="stable")

    def _decided(self, wanted: str, states: Mapping[str, State]) -> NDArray[np.bool_]:
        def fits(state: State) -> bool:
            if wanted in ("any", "none"):
                return state.decision is not None
            return state.conflict if wanted == "conflict" else state.decision == wanted

        keep = self._mask([self.places[n] for n, state in states.items() if n in self.places and fits(state)])
        return ~keep if wanted == "none" else keep

    def _mask(self, places: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
        mask = np.zeros(len(self), bool)
        mask[np.asarray(places, np.int64)] = True
        return mask

    def counts(self, states: Mapping[str, State]) -> dict[str, int]:
        """Count the images of each decision, with a conflict, and undecided."""
        known = [state for name, state in states.items() if name in self.places]
        counts: dict[str, int] = {name: sum(state.decision == name for state in known) for name in DECISIONS}
        counts["none"] = len(self) - sum(counts.values())
        counts["conflict"] = sum(state.conflict for state in known)
        return counts


def beyond(values: NDArray[np.float64], limit: float, *, low_is_bad: bool) -> NDArray[np.bool_]:
    """Return which values are at or beyond a limit on the bad side; never those that are NaN.

    Parameters
    ----------
    values : (images,) float64

    Returns
    -------
    (images,) bool
    """
    return values <= limit if low_is_bad else values >= limit


def _others(images: Images) -> list[Column]:
    """Return further numeric columns of the table, from other programs; they follow the scores."""
    known = {quantity.key for quantity in images.quantities} | set(_NOT_SCORES)
    others = []
    for name in images.table.columns:
        column = images.table[name]
        numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        if name not in known and numeric and column.notna().any():
            text = str(name)
            others.append(column_of(text) or Score(text, text.replace("_", " "), "", 4, "neither").column())
    return others


def _membership(reasons: pd.Series) -> dict[str, NDArray[np.int64]]:
    """Invert a column of labels per image: return for each label the places of its images, (n,) int64."""
    exploded = reasons.reset_index(drop=True).explode().dropna()
    return {str(name): group.index.to_numpy(np.int64) for name, group in exploded.groupby(exploded, sort=False)}


def _kind(reason: str) -> str:
    """Return a reason without its numbers, so that equal reasons of many images are counted together."""
    return _NUMBER.sub("…", reason)


def _number(value: float) -> float | None:
    return None if value != value else float(f"{value:.6g}")
