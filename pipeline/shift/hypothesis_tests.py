"""Comparison of a run with the reference set: one test for each column of its scores, and one for all features."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.reference.distances import feature_matrix
from chorus.pipeline.reference.marginals import numbers
from chorus.pipeline.reference.reference import Reference
from chorus.pipeline.scores.judgement_scores import EMPTY as NOTHING_FOUND
from chorus.pipeline.scores.judgement_scores import FEATURES as ENCODER
from chorus.pipeline.scores.registry import column_of
from chorus.pipeline.shift.two_samples import NEGLIGIBLE, Difference, compare_points, compare_values, draw

FEATURES, EMPTY = ENCODER.name, NOTHING_FOUND.name
KINDS = ("intensity", "noise", "sharpness", "object size", "prior", "uncertainty", FEATURES)
"""Kinds of differences, in order of display."""
_FEWEST = 2


class ShiftTest(BaseModel):
    """One comparison of run and reference.

    Attributes
    ----------
    kind : ``intensity``, ``noise``, ``sharpness``, ``object size``, ``features``, ``uncertainty``, ``prior``
    name : column of ``scores.parquet``; ``features``; or ``empty``, the share of empty predictions
    reference_median, run_median : None for features; for ``empty`` the shares
    effect : Cliff's delta, -1 to 1, positive if the run's values are higher
    low, high : its 95 % interval; None if a side has only one value
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
    """Return the kind of difference that a column of ``scores.parquet`` shows; None if it is not compared."""
    column = column_of(name)
    return None if column is None else column.score.kind


def shift_tests(
    table: pd.DataFrame, reference: Reference, features: pd.DataFrame | None, alpha: float
) -> list[ShiftTest]:
    """Compare the images of `table`, sorted by name, with the reference set, in the order of the kinds.

    The tests are corrected together for multiple testing.

    References
    ----------
    Benjamini and Hochberg, Journal of the Royal Statistical Society B 57:289 (1995).
    """
    from scipy.stats import false_discovery_control

    known = {name: numbers(reference.frame(), [name])[:, 0] for name in reference.scores if kind_of(name) is not None}
    given = {name: numbers(table, [name])[:, 0] for name in known}
    known[EMPTY] = np.asarray(reference.empty, np.float64)
    given[EMPTY] = np.asarray(table["status"] == "empty", np.float64)
    tests: list[tuple[str, str, float | None, float | None, Difference]] = []
    for name in known:
        first, second = (values[np.isfinite(values)] for values in (known[name], given[name]))
        if min(len(first), len(second)) < _FEWEST or np.ptp(np.concatenate([first, second])) == 0:
            continue
        middle = np.mean if name == EMPTY else np.median
        kind = kind_of(name) or "prior"
        tests.append((kind, name, float(middle(first)), float(middle(second)), compare_values(first, second)))
    clouds = _clouds(table, reference, features)
    if clouds is not None and (difference := compare_points(*clouds)) is not None:
        tests.append((FEATURES, FEATURES, None, None, difference))
    tests.sort(key=lambda one: KINDS.index(one[0]))
    adjusted = false_discovery_control([one[-1].p for one in tests]) if tests else []
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
        for (kind, name, before, now, one), p in zip(tests, adjusted, strict=True)
    ]


def _clouds(
    table: pd.DataFrame, reference: Reference, features: pd.DataFrame | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return features of the reference and of the run, those of `draw`; None if either has none."""
    if features is None or reference.features is None:
        return None
    before = reference.features.astype(np.float64)
    names = [str(name) for name in table["name"].to_numpy()[draw(len(table))]]
    now = feature_matrix(features, names, before.shape[1])
    if now is None:
        return None
    first, second = (rows[np.isfinite(rows).all(axis=1)] for rows in (before, now))
    return first[draw(len(first))], second
