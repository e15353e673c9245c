"""Comparisons of a run with the reference set: one test for each column of its scores, and one for all features."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.reference.distances import feature_matrix
from chorus.pipeline.reference.marginals import CLASS_DICE, FOREGROUND, numbers
from chorus.pipeline.reference.reference import Reference
from chorus.pipeline.scores.image_scores import SCORE_FIELDS
from chorus.pipeline.shift.two_samples import NEGLIGIBLE, Difference, compare_points, compare_values, draw

FEATURES, EMPTY = "features", "empty"
# Of columns of scores.parquet, by how they begin: what a difference in them means.
KINDS = {
    "intensity_": "intensity",
    "background:": "intensity",
    "contrast:": "intensity",
    "noise:": "noise",
    "sharpness:": "sharpness",
    "object_radius:": "object size",
    FOREGROUND: "prior",
    CLASS_DICE: "doubt",
    **dict.fromkeys(SCORE_FIELDS, "doubt"),
}
_FEWEST = 2


class ShiftTest(BaseModel):
    """One comparison of run and reference.

    Attributes
    ----------
    kind : ``intensity``, ``noise``, ``sharpness``, ``object size``, ``features``, ``doubt``, ``prior``
    name : column of ``scores.parquet``; ``features``; or ``empty``, the share of images in which nothing was found
    reference_median, run_median : None for features; for ``empty`` the shares
    effect : Cliff's delta, -1 to 1, positive where the run's values are higher
    low, high : its 95 % interval; None where a side has but one value
    p, p_adjusted : of the test, and after correction for all tests
    shifted : whether `p_adjusted` is at most alpha and the effect at least small
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    name: str
    reference_median: float | None
    run_median: float | None
    effect: float
    low: float | None
    high: float | None
    p: float
    p_adjusted: float
    shifted: bool


def kind_of(name: str) -> str | None:
    """What a column of ``scores.parquet`` tells of an image; None where that is nothing to compare."""
    return next((kind for start, kind in KINDS.items() if name.startswith(start)), None)


def shift_tests(
    table: pd.DataFrame, reference: Reference, features: pd.DataFrame | None, alpha: float
) -> list[ShiftTest]:
    """All comparisons of the images of `table`, sorted by name, in the order of their kinds.

    They are corrected together (Benjamini and Hochberg, Journal of the Royal Statistical Society B 57:289 (1995)).
    """
    from scipy.stats import false_discovery_control

    known = {name: numbers(reference.frame(), [name])[:, 0] for name in reference.scores if kind_of(name) is not None}
    given = {name: numbers(table, [name])[:, 0] for name in known}
    known[EMPTY] = np.asarray(reference.empty, np.float64)
    given[EMPTY] = np.asarray(table["status"] == "empty", np.float64)
    found: list[tuple[str, str, float | None, float | None, Difference]] = []
    for name in known:
        first, second = (values[np.isfinite(values)] for values in (known[name], given[name]))
        if min(len(first), len(second)) < _FEWEST or np.ptp(np.concatenate([first, second])) == 0:
            continue
        middle = np.mean if name == EMPTY else np.median
        kind = kind_of(name) or "prior"
        found.append((kind, name, float(middle(first)), float(middle(second)), compare_values(first, second)))
    clouds = _clouds(table, reference, features)
    if clouds is not None and (difference := compare_points(*clouds)) is not None:
        found.append((FEATURES, FEATURES, None, None, difference))
    order = {kind: place for place, kind in enumerate([*KINDS.values(), FEATURES])}
    found.sort(key=lambda one: order[one[0]])
    adjusted = false_discovery_control([one[-1].p for one in found]) if found else []
    return [
        ShiftTest(
            kind=kind,
            name=name,
            reference_median=before,
            run_median=now,
            effect=one.effect,
            low=one.low,
            high=one.high,
            p=one.p,
            p_adjusted=float(p),
            shifted=bool(p <= alpha and abs(one.effect) >= NEGLIGIBLE),
        )
        for (kind, name, before, now, one), p in zip(found, adjusted, strict=True)
    ]


def _clouds(
    table: pd.DataFrame, reference: Reference, features: pd.DataFrame | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Features of the reference and of the run, those of `draw`; None where either has none."""
    if features is None or reference.features is None:
        return None
    before = reference.features.astype(np.float64)
    names = [str(name) for name in table["name"].to_numpy()[draw(len(table))]]
    now = feature_matrix(features, names, before.shape[1])
    if now is None:
        return None
    first, second = (rows[np.isfinite(rows).all(axis=1)] for rows in (before, now))
    return first[draw(len(first))], second
