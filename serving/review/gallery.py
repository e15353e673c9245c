"""The images of a run as a person goes through them: in an order, narrowed to some, page by page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

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

RANK, NAME = "rank", "name"
"""Orders besides scores: as of the report (by risk after ``chorus flag``, else by uncertainty), and by name."""

_NUMBER = re.compile(r"\d+(\.\d+)?(e-?\d+)?")
# Numbers of a run's making, not of what it found.
_NOT_SCORES = ("rank", "regions", "tiles", "seconds")
_REASONS = 40


@dataclass(frozen=True, slots=True)
class Query:
    """Which images, and in which order; what is None or empty does not narrow.

    Attributes
    ----------
    sort : ``rank``, ``name`` or a score
    order : ``worst`` first, or ``best``; of names ``worst`` is ascending
    flags : all of these were raised; ``review`` is what `chorus flag --budget` marked
    statuses : one of these
    reason : as listed by `Gallery.reasons`
    plate, well : as of `chorus.pipeline.shift.batch_effects.plate_places`; a well is ``row/column``
    class_name : the class covers some of the image
    decision : ``accept``, ``reject``, ``correct-later``, ``any``, ``none`` or ``conflict``
    search : part of the name, of a reason or of the message, whatever the case
    beyond : per score a value; images at or beyond it, on the side that is bad
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
    """The images in memory, as columns."""

    def __init__(self, images: Images, classes: list[str]) -> None:
        self.images = images
        table = images.table
        self.names: list[str] = table["name"].tolist()
        self.places = {name: place for place, name in enumerate(self.names)}
        self.quantities = (*images.quantities, *_others(images))
        self._by_key = {quantity.key: quantity for quantity in self.quantities}
        self._values = {
            one.key: pd.to_numeric(table[one.key]).to_numpy(np.float64, na_value=np.nan) for one in self.quantities
        }
        self._classes = classes
        self._statuses = table["status"].to_numpy(str)
        self._flags = _membership(table["flags"])
        self._flags[REVIEW] = np.flatnonzero(table["review"].to_numpy(bool))
        self._reasons = _membership(table["reasons"].map(lambda said: tuple(_kind(reason) for reason in said)))
        places = plate_places(table["name"])
        self._plates = places["plate"].fillna("").to_numpy(str)
        self._wells = (places.iloc[:, 1].fillna("") + "/" + places.iloc[:, 2].fillna("")).to_numpy(str)
        said = table["reasons"].map("; ".join) + "; " + table["message"]
        self._text = pa.array((table["name"] + "\n" + said).tolist(), pa.large_string())
        self._found: Cache[NDArray[np.int64]] = Cache(32)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def plates(self) -> list[str]:
        return sorted(set(self._plates.tolist()) - {""})

    @cached_property
    def flags(self) -> dict[str, int]:
        """Images of each flag that some have."""
        return {name: len(places) for name, places in self._flags.items() if len(places)}

    @cached_property
    def statuses(self) -> dict[str, int]:
        return dict(Counter(self._statuses.tolist()))

    @cached_property
    def reasons(self) -> dict[str, int]:
        """The commonest kinds of reasons (numbers left out) and their images."""
        counts = {name: len(places) for name, places in self._reasons.items()}
        return dict(sorted(counts.items(), key=lambda item: -item[1])[:_REASONS])

    def quantity(self, key: str) -> Column:
        """A score; raises RefusedError where there is none of that name."""
        key = current_name(key)
        if key not in self._by_key:
            raise RefusedError(f"no score {key!r}; choose out of {', '.join(self._by_key)}")
        return self._by_key[key]

    def values(self, key: str) -> NDArray[np.float64]:
        """(images,) of a score, NaN without."""
        return self._values[self.quantity(key).key]

    def find(self, query: Query, states: Mapping[str, State], version: int) -> NDArray[np.int64]:
        """Places of the images of a query, in its order.

        Parameters
        ----------
        states : what is decided
        version : of the decisions; who goes on with the one of the first page sees the same list while deciding
        """
        key = (query, version if query.decision else None)
        return self._found.get(key, lambda: self._find(query, states))

    def rows(self, places: NDArray[np.int64]) -> list[dict[str, Any]]:
        """The images at some places as records."""
        found = []
        for place, row in zip(places.tolist(), self.images.rows(places.tolist()), strict=True):
            plate = self._plates[place]
            found.append(
                {
                    "place": place,
                    "name": row.name,
                    "rank": row.rank,
                    "status": row.status,
                    "message": row.message,
                    "flags": [flag for flag in row.flags if flag != row.status],
                    "reasons": list(row.reasons),
                    "review": row.review,
                    "plate": str(plate) or None,
                    "well": str(self._wells[place]) if plate else None,
                    "values": {key: _number(values[place]) for key, values in self._values.items()},
                }
            )
        return found

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
        doubt = self.values(sort) * (1 if self.quantity(sort).low_is_bad else -1)
        # NaN goes last either way.
        return np.argsort(doubt if order == "worst" else -doubt, kind="stable")

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
        """Images of each decision, of a conflict, and undecided ones."""
        known = [state for name, state in states.items() if name in self.places]
        counts: dict[str, int] = {name: sum(state.decision == name for state in known) for name in DECISIONS}
        counts["none"] = len(self) - sum(counts.values())
        counts["conflict"] = sum(state.conflict for state in known)
        return counts


def beyond(values: NDArray[np.float64], limit: float, *, low_is_bad: bool) -> NDArray[np.bool_]:
    """Which values reach a limit on the side that is bad; never those that are NaN."""
    return values <= limit if low_is_bad else values >= limit


def _others(images: Images) -> list[Column]:
    """Further columns of numbers of the table, of another program; they stand after the scores."""
    known = {quantity.key for quantity in images.quantities} | set(_NOT_SCORES)
    found = []
    for name in images.table.columns:
        column = images.table[name]
        numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        if name not in known and numeric and column.notna().any():
            text = str(name)
            found.append(column_of(text) or Score(text, text.replace("_", " "), "", 4, "neither").column())
    return found


def _membership(said: pd.Series) -> dict[str, NDArray[np.int64]]:
    """By what is said of images, the places of those of which it is."""
    exploded = said.reset_index(drop=True).explode().dropna()
    return {str(name): group.index.to_numpy(np.int64) for name, group in exploded.groupby(exploded, sort=False)}


def _kind(reason: str) -> str:
    """A reason without its numbers, such that those of many images are the same."""
    return _NUMBER.sub("…", reason)


def _number(value: float) -> float | None:
    return None if value != value else float(f"{value:.6g}")
