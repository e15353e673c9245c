"""Vote patterns: how often each combination of the annotators' labels occurs in an image.

A pattern is the combination of all annotators' labels of one pixel, such as (0, 1, 1) of three. Every estimate of the
truth that treats pixels one by one is a function of the pattern alone, so an image of any size is first counted and
then looked up::

    expert 1   0 0 1 1        pattern    (0,0,0)  (0,0,1)  (1,1,1)  (1,1,0)
    expert 2   0 0 1 1   -->  count         1        1        1        1    -->  estimate, a label per pattern
    expert 3   0 1 1 0                                                           applied to every pixel

Counts are integers and add up over regions, in any order: the estimate does not depend on the partition of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chorus.pipeline.errors import ImageError

_MOST_KEYS = 2**62


@dataclass(frozen=True, slots=True)
class VotePatterns:
    """The patterns of an image, or of a part of it, and how many pixels have each.

    Attributes
    ----------
    experts, classes : number of each; class 0 is background
    keys : (patterns,) int64, ascending; the labels of all annotators as digits of a number, the first annotator's first
    counts : (patterns,) int64, pixels, 1 or more
    """

    experts: int
    classes: int
    keys: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def count(cls, labels: Sequence[NDArray[np.integer]], classes: int) -> VotePatterns:
        """Count the patterns of a block.

        Parameters
        ----------
        labels : per annotator, (y, x) integer with values 0 to `classes` - 1
        classes : number of classes, including the background

        Raises
        ------
        ImageError
            If there are more possible patterns than an integer can distinguish: 62 annotators of 2 classes, 26 of 5.
        """
        if classes ** len(labels) > _MOST_KEYS:
            raise ImageError(
                f"{len(labels)} experts with {classes} classes are too many to count; take fewer with --expert"
            )
        occurrences = pd.Series(pattern_keys(labels, classes).ravel()).value_counts(sort=False).sort_index()
        counts = np.asarray(occurrences, np.int64)
        return cls(len(labels), classes, occurrences.index.to_numpy(np.int64), counts)

    def __add__(self, other: VotePatterns) -> VotePatterns:
        if (self.experts, self.classes) != (other.experts, other.classes):
            raise ValueError("patterns of other experts or classes")
        keys, inverse = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, inverse, np.concatenate([self.counts, other.counts]))
        return VotePatterns(self.experts, self.classes, keys, counts)

    @property
    def votes(self) -> NDArray[np.int64]:
        """(experts, patterns) int64, each annotator's label."""
        weights = np.array([self.classes**exponent for exponent in reversed(range(self.experts))], np.int64)
        digits: NDArray[np.int64] = self.keys[np.newaxis] // weights[:, np.newaxis] % self.classes
        return digits

    @property
    def votes_per_class(self) -> NDArray[np.int64]:
        """(classes, patterns) int64, number of annotators with this label."""
        votes = self.votes
        return np.array([(votes == label).sum(axis=0) for label in range(self.classes)], np.int64)

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return int(self.counts.sum())


@dataclass(frozen=True, slots=True)
class PatternLabels:
    """An estimate of the truth: the label of every pattern of `patterns`, (patterns,) uint8 or uint16."""

    patterns: VotePatterns
    labels: NDArray[np.unsignedinteger]

    @classmethod
    def of(cls, patterns: VotePatterns, labels: NDArray[np.integer]) -> PatternLabels:
        """Convert labels to the smallest dtype that holds all classes.

        Parameters
        ----------
        patterns : of an image
        labels : (patterns,) integer
        """
        return cls(patterns, labels.astype(np.uint8 if patterns.classes <= 256 else np.uint16))

    def apply(self, labels: Sequence[NDArray[np.integer]]) -> NDArray[np.unsignedinteger]:
        """Look up the estimate of a block whose patterns were counted.

        Parameters
        ----------
        labels : per annotator, (y, x) integer

        Returns
        -------
        NDArray[np.unsignedinteger]
            (y, x).
        """
        places = np.searchsorted(self.patterns.keys, pattern_keys(labels, self.patterns.classes))
        result: NDArray[np.unsignedinteger] = self.labels[places]
        return result


def pattern_keys(labels: Sequence[NDArray[np.integer]], classes: int) -> NDArray[np.int64]:
    """Return the key of every pixel's pattern; see `VotePatterns`.

    Parameters
    ----------
    labels : per annotator, integer arrays of one shape
    classes : number of classes, including the background

    Returns
    -------
    NDArray[np.int64]
        In the shape of the labels.
    """
    keys = np.zeros(labels[0].shape, np.int64)
    for one in labels:
        keys *= classes
        keys += one.astype(np.int64, copy=False)
    return keys
