"""Reasons why an image is flagged, in words that a person at the microscope can check.

Their templates are in the registry of scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from chorus.pipeline.scores.registry import column_of
from chorus.pipeline.scores.score import Column, Score

_MOST = 3


def detector_reasons(
    values: Mapping[str, float], sigmas: Mapping[str, float], tails: Mapping[str, float], level: float
) -> list[str]:
    """Return the reasons of the detectors, the most unusual first, at most three.

    Parameters
    ----------
    values : the image's scores
    sigmas, tails : by detector, its sigma and the tail beyond it (a probability), without detectors that have no value
    level : tails above it are no reason; if all are, the most unusual one is given alone
    """
    unusual = sorted((name for name in tails if tails[name] <= level), key=lambda name: (tails[name], name))
    if not unusual and tails:
        unusual = [min(tails, key=lambda name: (tails[name], name))]
    reasons: dict[str, str] = {}
    for name in unusual:
        column = column_of(name) or unknown(name)
        # Both distances of features share a reason, and so do the mean and minimum of the members' Dice.
        reasons.setdefault(_subject(column), sentence(column, values.get(name, math.nan), sigmas[name]))
    return list(reasons.values())[:_MOST]


def sentence(column: Column, value: float, sigma: float) -> str:
    """Return a sentence that says how a score of an image is unusual.

    Parameters
    ----------
    column : of the score
    value : of the image; NaN for distances, whose values a person cannot check
    sigma : distance from the median of the reference set, positive above it
    """
    distance = f"{_size(sigma)} sigma"
    side = "above" if sigma >= 0 else "below"
    template = column.score.reason or column.phrase.replace("{", "{{").replace("}", "}}") + " {value:.3f}, {away}"
    return template.format(
        part=column.part,
        value=value,
        percent=percent(value),
        complement=percent(1 - value),
        sigma=distance,
        away=f"{distance} {side} the reference set",
    )


def percent(share: float) -> str:
    """Format a share as ``34 %``; with one decimal below 10 %."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def unknown(name: str) -> Column:
    """Return a column for a detector that this version does not know, from a reference set made by another version."""
    return Score(name, name, "", 3, "high").column()


def _subject(column: Column) -> str:
    """Return the subject of a score: one reason is given per subject."""
    return (
        f"{column.score.subject}:{column.part}"
        if column.part and column.score.subject
        else column.score.subject or column.key
    )


def _size(sigma: float) -> str:
    size = abs(sigma)
    if size > 1000:
        return "more than 1000"
    return f"{size:.0f}" if size >= 9.95 else f"{size:.1f}"
