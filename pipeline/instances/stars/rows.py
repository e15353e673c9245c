"""Rows of objects by stars: what every object has, and what is known of the point and the rays of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.shapes import Spacing
from chorus.pipeline.instances.stars.regions import StarObjects
from chorus.pipeline.instances.table import object_rows

MEASURES = ("score", "outline_variation")
"""Columns of objects by stars: the probability of an object at its point, and the members' disagreement about its
outline, which is the coefficient of variation of its rays."""


def star_rows(
    found: StarObjects,
    value: int,
    region: Window,
    plane: tuple[int, int],
    maps: Sequence[NDArray[Any]],
    uncertainties: int,
    spacing: Spacing,
) -> pd.DataFrame:
    """Return rows of the objects of a class, each in one region.

    Parameters
    ----------
    found : of the region
    value : of the class
    region : window of the region
    plane : height and width of the plane
    maps : of ``found.objects.crop``, (y, x) each, whose means are the last columns
    uncertainties : number of the maps before which `MEASURES` have no place
    spacing : of the plane's pixels

    Returns
    -------
    pandas.DataFrame
        See `chorus.pipeline.instances.table.object_rows`; with `MEASURES` between the means of uncertainties and the
        others.
    """
    named = {str(index): each for index, each in enumerate(maps)}
    rows = object_rows(found.of_class(value), region, plane, named, spacing)
    order = np.argsort(found.objects.anchors)
    at = order[np.searchsorted(found.objects.anchors, rows["name"].to_numpy(np.uint64), sorter=order)]
    place = len(rows.columns) - len(maps) + uncertainties
    values = np.stack([found.scores[at], found.variation[at]], axis=1).astype(np.float64)
    measures = pd.DataFrame(values, rows.index, list(MEASURES))
    return pd.concat([rows.iloc[:, :place], measures, rows.iloc[:, place:]], axis=1)
