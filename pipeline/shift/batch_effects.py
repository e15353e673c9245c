"""Batch effects: whether scores of a run depend on plate, row, column, or columns of a table of metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.shift.metadata import joined

LEAST_CORRELATION = 0.1
"""Spearman's rho below which a relation is negligible, and whose square is the minimum epsilon squared (Rea and Parker,
Designing and Conducting Survey Research, 1992)."""

EPSILON, RHO = "epsilon squared", "Spearman's rho"
_PLATE, _ROW, _COLUMN, _WELL = "plate", "well row", "well column", "well"
_FIELD = re.compile(r"[^/]+/([^/]+)/([^/]+)/[^/]+")
# Minimum number of wells or images of a group, and of a relation to a number.
_FEWEST, _FEWEST_NUMBERS = 3, 5
_QUARTERS = 4


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GroupLevel(_Frozen):
    """Images of a group: how many have the score, and its median."""

    name: str
    images: int
    median: float


class GroupTest(_Frozen):
    """Test of whether a score differs between groups of images.

    Attributes
    ----------
    by : ``plate``, ``well row``, ``well column``, or a column of the table
    score : column of ``scores.parquet``
    p, p_adjusted : of Kruskal and Wallis if `by` names groups, of Spearman's correlation if it is a number
    measure : name of `effect`: ``epsilon squared``, the share of the ranks' variance that lies between groups, 0 to 1;
        or ``Spearman's rho``, -1 to 1
    shifted : whether both `p_adjusted` is at most alpha, and the effect not negligible
    levels : the groups in order; for numbers, their quarters
    """

    by: str
    score: str
    p: float
    p_adjusted: float
    measure: str
    effect: float
    shifted: bool
    levels: list[GroupLevel]


class Well(_Frozen):
    """Images of a well, and the median of the score; None if none has it."""

    row: str
    column: str
    images: int
    value: float | None


class PlateMap(_Frozen):
    """A score over the wells of a plate; rows and columns in order, wells row by row."""

    plate: str
    score: str
    rows: list[str]
    columns: list[str]
    wells: list[Well]


def plate_places(names: pd.Series) -> pd.DataFrame:
    """Return plate, row, column and well of images by their ``name``, ``<plate>.ome.zarr/<row>/<column>/<field>``.

    Null for images that are not on a plate.
    """
    rows: list[tuple[str | None, ...]] = []
    for name in names:
        match = _FIELD.fullmatch(name)
        plate = name.split("/")[0].removesuffix(".ome.zarr")
        rows.append((None,) * 4 if match is None else (plate, *match.groups(), name.rpartition("/")[0]))
    return pd.DataFrame(rows, columns=[_PLATE, _ROW, _COLUMN, _WELL], index=names.index, dtype=object)


def plate_maps(scores: pd.DataFrame, names: list[str]) -> list[PlateMap]:
    """Return a map per plate and score of `names`; none without plates."""
    places = plate_places(scores["name"])
    frame = pd.concat([places, scores[names]], axis=1)[places[_PLATE].notna()]
    maps = []
    for plate, images in frame.groupby(_PLATE, sort=True):
        rows, columns = (sorted(images[key].unique(), key=_natural) for key in (_ROW, _COLUMN))
        wells = images.groupby([_ROW, _COLUMN])
        counts, medians = wells.size(), wells[names].median()
        order = sorted(counts.index, key=lambda well: (_natural(well[0]), _natural(well[1])))
        for score in names:
            values = {well: _known(value) for well, value in medians[score].items()}
            well_list = [Well(row=r, column=c, images=int(counts[r, c]), value=values[r, c]) for r, c in order]
            maps.append(PlateMap(plate=str(plate), score=score, rows=rows, columns=columns, wells=well_list))
    return maps


def group_tests(
    scores: pd.DataFrame, names: list[str], metadata: pd.DataFrame | None = None, *, alpha: float
) -> tuple[list[GroupTest], list[str]]:
    """Test whether scores differ between plates, rows and columns of plates, and by the columns of a table.

    If all images of a well have the same value of a column, as for plate, row and column, the well's median counts
    once: fields of one well are not independent. The tests are corrected together for multiple testing.

    Parameters
    ----------
    scores : rows of ``scores.parquet`` with a result, in the order of ``name``
    names : scores to test
    metadata : of `chorus.pipeline.shift.metadata.read_metadata`
    alpha : level of the tests, 0 to 1

    Returns
    -------
    tests : of each group and score
    notes : sentences on what could not be tested

    Raises
    ------
    RefusedError
        If the table fits no image.

    References
    ----------
    Kruskal and Wallis, Journal of the American Statistical Association 47:583 (1952). Epsilon squared: H / (n - 1),
    Tomczak and Tomczak, Trends in Sport Sciences 21:19 (2014). Correction: Benjamini and Hochberg, Journal of the Royal
    Statistical Society B 57:289 (1995).
    """
    from scipy.stats import false_discovery_control

    places = plate_places(scores["name"])
    groups = {key: places[key] for key in (_PLATE, _ROW, _COLUMN) if places[key].nunique() > 1}
    notes: list[str] = []
    if metadata is not None:
        given, missing = joined(scores["name"], metadata)
        notes += missing
        groups |= {f"{key} (table)" if key in groups else str(key): given[key] for key in given}
    raw: list[tuple[str, str, _Outcome]] = []
    for by, values in groups.items():
        numbers = _as_numbers(values)
        tested = [(by, score, _tested(values, numbers, scores[score], places[_WELL])) for score in names]
        raw += [(by, score, outcome) for by, score, outcome in tested if outcome is not None]
        if not any(outcome for *_, outcome in tested):
            notes.append(f"{by} is not compared: that takes two groups of {_FEWEST} wells or images, or other numbers")
    adjusted = false_discovery_control([one.p for *_, one in raw]) if raw else []
    tests = [_test(by, score, one, float(p), alpha) for (by, score, one), p in zip(raw, adjusted, strict=True)]
    return tests, notes


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Result of one test, before correction; see `GroupTest`."""

    p: float
    measure: str
    effect: float
    levels: list[GroupLevel]


def _test(by: str, score: str, outcome: _Outcome, p_adjusted: float, alpha: float) -> GroupTest:
    least = LEAST_CORRELATION**2 if outcome.measure == EPSILON else LEAST_CORRELATION
    return GroupTest(
        by=by,
        score=score,
        p=outcome.p,
        p_adjusted=p_adjusted,
        measure=outcome.measure,
        effect=outcome.effect,
        shifted=bool(p_adjusted <= alpha and abs(outcome.effect) >= least),
        levels=outcome.levels,
    )


def _tested(by: pd.Series, numbers: pd.Series | None, score: pd.Series, wells: pd.Series) -> _Outcome | None:
    """Return one test; None if there is too little to compare. `numbers` is `by` as numbers, if it can be."""
    from scipy.stats import kruskal, spearmanr

    given = by if numbers is None else numbers
    images = pd.DataFrame({"by": given, "score": score, "well": wells}).dropna(subset=["by", "score"])
    units = _units(images)
    if numbers is not None:
        if len(units) < _FEWEST_NUMBERS or units["by"].nunique() < 2 or units["score"].nunique() < 2:
            return None
        test = spearmanr(units["by"].astype(float), units["score"])
        return _Outcome(float(test.pvalue), RHO, float(test.statistic), list(_quarters(images, by)))
    samples = {name: part.to_numpy(np.float64) for name, part in units.groupby("by")["score"] if len(part) >= _FEWEST}
    if len(samples) < 2 or np.ptp(np.concatenate(list(samples.values()))) == 0:
        return None
    test = kruskal(*samples.values())
    effect = float(test.statistic) / (sum(map(len, samples.values())) - 1)
    of_level = {name: part for name, part in images.groupby("by")["score"] if name in samples}
    levels = [
        GroupLevel(name=str(name), images=len(of_level[name]), median=float(of_level[name].median()))
        for name in sorted(of_level, key=_natural)
    ]
    return _Outcome(float(test.pvalue), EPSILON, effect, levels)


def _units(images: pd.DataFrame) -> pd.DataFrame:
    """Return the independent units: wells, by the median of their images, or images.

    They are wells if all images are on a plate and `by` is constant within each well.
    """
    if len(images) and images["well"].notna().all():
        wells = images.groupby("well", sort=True)
        if (wells["by"].nunique() == 1).all():
            return wells.agg({"by": "first", "score": "median"})
    return images


def _as_numbers(values: pd.Series) -> pd.Series | None:
    """Return a column as numbers, or dates as days; None if it names groups."""
    known = values.dropna()
    if pd.api.types.is_bool_dtype(known.infer_objects()) or not len(known):
        return None
    if pd.api.types.is_numeric_dtype(known.infer_objects()):
        return values.astype(float)
    dates = pd.to_datetime(known.astype(str), errors="coerce", format="ISO8601", utc=True)
    if dates.notna().all():
        days = (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)
        return days.reindex(values.index)
    return None


def _quarters(images: pd.DataFrame, by: pd.Series) -> Iterator[GroupLevel]:
    """Yield the images in the order of their number, in four parts of about equal size; equal numbers stay together."""
    parts = pd.qcut(images["by"], _QUARTERS, duplicates="drop")
    for _, part in images.groupby(parts, observed=True, sort=True):
        own, positions = by.loc[part.index], part["by"].to_numpy()
        first, last = own.iloc[int(positions.argmin())], own.iloc[int(positions.argmax())]
        name = str(first) if first == last else f"{first} to {last}"
        yield GroupLevel(name=name, images=len(part), median=float(part["score"].median()))


def _natural(name: object) -> list[str | int]:
    """Return a sort key that orders numbers within names by value, and rows of a plate as A to Z, AA, AB."""
    text = str(name)
    if text.isalpha() and text.isupper():
        return [f"{len(text):02}{text}"]
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def _known(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
