"""Estimates of the truth that count votes: majority, union, intersection."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.consensus.vote_patterns import PatternLabels, VotePatterns

Ties = Literal["background", "foreground"]
"""What a pixel becomes on which several classes are equally likely: background, or the first of them that is not."""


def majority(patterns: VotePatterns, ties: Ties = "background") -> PatternLabels:
    """The class with the most votes; of two classes that is the majority."""
    return PatternLabels.of(patterns, winners(patterns.votes_per_class, ties))


def union(patterns: VotePatterns) -> PatternLabels:
    """Foreground where any expert says so: of several classes the one with the most votes, then the first."""
    votes = patterns.votes_per_class
    foreground = votes[1:]
    return PatternLabels.of(patterns, np.where(foreground.any(axis=0), 1 + foreground.argmax(axis=0), 0))


def intersection(patterns: VotePatterns) -> PatternLabels:
    """Foreground where all experts say the same class."""
    votes = patterns.votes
    return PatternLabels.of(patterns, np.where((votes == votes[0]).all(axis=0), votes[0], 0))


def winners(scores: NDArray[Any], ties: Ties, tolerance: float = 0.0) -> NDArray[np.int64]:
    """The class of the highest score per pattern.

    Parameters
    ----------
    scores : (classes, patterns)
    ties : decides where another class is within `tolerance` of the highest

    Returns
    -------
    (patterns,) int64
    """
    best = scores >= scores.max(axis=0) - tolerance
    tied = best.sum(axis=0) > 1
    otherwise = 1 + best[1:].argmax(axis=0) if ties == "foreground" else 0
    return np.where(tied, otherwise, best.argmax(axis=0))
