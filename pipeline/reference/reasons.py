"""Why an image is flagged, in words that a person at the microscope can check; the registry of scores has them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from chorus.pipeline.scores.registry import column_of
from chorus.pipeline.scores.score import Column, Score

_MOST = 3


def detector_reasons(
    values: Mapping[str, float], sigmas: Mapping[str, float], tails: Mapping[str, float], level: float
) -> list[str]:
    """What the detectors say of an image, the most unusual first, at most three.

    Parameters
    ----------
    values : its scores
    sigmas, tails : by detector, its sigma and the tail beyond it (a probability), without those that say nothing
    level : tails above are no reason; where all are, the most unusual is given alone
    """
    unusual = sorted((name for name in tails if tails[name] <= level), key=lambda name: (tails[name], name))
    if not unusual and tails:
        unusual = [min(tails, key=lambda name: (tails[name], name))]
    said: dict[str, str] = {}
    for name in unusual:
        column = column_of(name) or unknown(name)
        # Both distances of features are one thing to a person, and so are the two of the members' Dice.
        said.setdefault(_subject(column), sentence(column, values.get(name, math.nan), sigmas[name]))
    return list(said.values())[:_MOST]


def sentence(column: Column, value: float, sigma: float) -> str:
    """Say of a score of an image that it is unusual.

    Parameters
    ----------
    value : of the image; NaN for distances, which have none that a person could check
    sigma : distance from the median of the reference set, positive above it
    """
    distance = f"{_size(sigma)} sigma"
    side = "above" if sigma >= 0 else "below"
    template = column.score.reason or column.phrase.replace("{", "{{").replace("}", "}}") + " {value:.3f}, {away}"
    return template.format(
        of=column.of,
        value=value,
        percent=percent(value),
        complement=percent(1 - value),
        sigma=distance,
        away=f"{distance} {side} the reference set",
    )


def percent(share: float) -> str:
    """``34 %``; a digit more below 10 %."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def unknown(name: str) -> Column:
    """A detector that this version does not know, of a reference set that another one made."""
    return Score(name, name, "", 3, "high").column()


def _subject(column: Column) -> str:
    """What a score is about: one reason is given of each."""
    return (
        f"{column.score.subject}:{column.of}"
        if column.of and column.score.subject
        else column.score.subject or column.key
    )


def _size(sigma: float) -> str:
    size = abs(sigma)
    if size > 1000:
        return "more than 1000"
    return f"{size:.0f}" if size >= 9.95 else f"{size:.1f}"
