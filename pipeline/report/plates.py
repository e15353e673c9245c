"""Heat maps of plates: the median of every score per well, whose position is taken from the images' names."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chorus.pipeline.report.rows import Images
from chorus.pipeline.scores.score import Column
from chorus.pipeline.shift.batch_effects import plate_places

# Rows and columns of the usual formats; a heat map shows the whole plate, including wells without images.
_FORMATS = ((8, 12), (16, 24), (32, 48))
_LETTERS = [*string.ascii_uppercase, *(f"A{letter}" for letter in string.ascii_uppercase)]


@dataclass(frozen=True, slots=True)
class PlateMap:
    """What the page's script draws of a plate.

    Attributes
    ----------
    rows, columns : names
    wells : of every well the index of its row and column, and its number of images
    values : per quantity, the median of every well; None if no image has one
    """

    rows: list[str]
    columns: list[str]
    wells: list[tuple[int, int, int]]
    values: list[list[float | None]]


@dataclass(frozen=True)
class Plates:
    """The plates of a run.

    Attributes
    ----------
    names : of the plates
    maps : one per plate
    quantities : whose medians these are
    limits : per quantity the values at the two ends of the colours, the same on all plates
    """

    names: list[str]
    maps: list[PlateMap]
    quantities: list[Column]
    limits: list[tuple[float, float]]


def plates_of(images: Images) -> Plates:
    """Return the plates of a run; none if no image is on a plate."""
    places = plate_places(images.table["name"])
    on_plate = places["plate"].notna()
    quantities = list(images.quantities)
    keys = [quantity.key for quantity in quantities]
    table = pd.concat([places, images.table[keys].apply(pd.to_numeric)], axis=1)[on_plate]
    if table.empty:
        return Plates([], [], [], [])
    wells = table.groupby(["plate", "well row", "well column"], sort=False)
    medians, counts = wells[keys].median(), wells.size()
    limits = [_limits(medians[key].to_numpy(np.float64)) for key in keys]
    names = sorted({str(name) for name in medians.index.get_level_values(0)}, key=_natural)
    maps = [_map(medians.loc[name], counts.loc[name], quantities) for name in names]
    return Plates(names, maps, quantities, limits)


def _map(medians: pd.DataFrame, counts: pd.Series[int], quantities: list[Column]) -> PlateMap:
    rows, columns = _frame(
        [str(row) for row in medians.index.unique(0)], [str(column) for column in medians.index.unique(1)]
    )
    at_row, at_column = ({name: index for index, name in enumerate(names)} for names in (rows, columns))
    places = [(at_row[str(row)], at_column[str(column)]) for row, column in medians.index]
    values = [rounded(medians[quantity.key].to_numpy(np.float64), quantity.digits) for quantity in quantities]
    wells = [(*well, int(count)) for well, count in zip(places, counts.to_numpy(), strict=True)]
    return PlateMap(rows, columns, wells, values)


def _frame(rows: list[str], columns: list[str]) -> tuple[list[str], list[str]]:
    """Return all rows and columns of the smallest usual format that contains these; else these themselves."""
    width = max((len(column) for column in columns), default=0)
    for height, length in _FORMATS:
        every_row = _LETTERS[:height]
        every_column = [str(number + 1).zfill(width) for number in range(length)]
        if set(rows) <= set(every_row) and set(columns) <= set(every_column):
            return every_row, every_column
    return sorted(rows, key=_natural), sorted(columns, key=_natural)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Return the 2nd and the 98th percentile, so that one well does not take up the whole colour range."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (2, 98)) if finite.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1e-9


def rounded(values: np.ndarray, digits: int) -> list[float | None]:
    """Round numbers for display.

    Parameters
    ----------
    values : (n,) float64
    digits : after the decimal point

    Returns
    -------
    list of float or None
        None for NaN.
    """
    return [None if value != value else value for value in np.round(values, digits).tolist()]


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key by which A2 comes before A10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", name)]
