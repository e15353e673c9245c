"""Estimates of the ground truth that count votes: majority, union, intersection."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.consensus.vote_patterns import PatternLabels, VotePatterns

Ties = Literal["background", "foreground"]
"""Label of a pixel on which several classes are equally likely: background, or the first other one of them."""


def majority(patterns: VotePatterns, ties: Ties = "background") -> PatternLabels:
    """Return the class with the most votes; of two classes that is the majority."""
    return PatternLabels.of(patterns, winners(patterns.votes_per_class, ties))


def union(patterns: VotePatterns) -> PatternLabels:
    """Return foreground where any annotator has it: of several classes the one with the most votes, then the first."""
    votes = patterns.votes_per_class
    foreground = votes[1:]
    return PatternLabels.of(patterns, np.where(foreground.any(axis=0), 1 + foreground.argmax(axis=0), 0))


def intersection(patterns: VotePatterns) -> PatternLabels:
    """Return foreground where all annotators have the same class."""
    votes = patterns.votes
    return PatternLabels.of(patterns, np.where((votes == votes[0]).all(axis=0), votes[0], 0))


def winners(scores: NDArray[Any], ties: Ties, tolerance: float = 0.0) -> NDArray[np.int64]:
    """Return the class with the highest score per pattern.

    Parameters
    ----------
    scores : (classes, patterns) of any real dtype
    ties : decides if another class is within `tolerance` of the highest
    tolerance : in units of the scores

    Returns
    -------
    NDArray[np.int64]
        (patterns,).
    """
    best = scores >= scores.max(axis=0) - tolerance
    tied = best.sum(axis=0) > 1
    otherwise = 1 + best[1:].argmax(axis=0) if ties == "foreground" else 0
    return np.where(tied, otherwise, best.argmax(axis=0))
