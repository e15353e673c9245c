"""Ground truth of objects: which drawn objects are the same, which of them are real, and their shapes.

::

    expert 1    A A A . B        A, a and x are one object: IoU above 0.5, at most one per annotator
    expert 2    . a a . b   -->  B and b are another
    expert 3    . x x . .        votes: 3 of 3, 2 of 3; each keeps the pixels that most of those who drew it included

Objects of two annotators with an intersection over union above 0.5 are the same; such a partner is unique, since an
annotator's objects do not overlap. Pairs are joined in the order of their IoU, highest first, unless the joined group
would have two objects of one annotator.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chorus.pipeline.consensus.votes import Ties

SAME_OBJECT = 0.5
"""Objects with an intersection over union above this are the same."""
Rule = Literal["vote", "union", "intersection"]
_Object = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ObjectEstimate:
    """The estimate of an image's objects.

    Attributes
    ----------
    labels : (y, x) int32, 1 to n in the order of their first pixels, row by row; 0 is background
    votes : (n,) int64, how many annotators drew each object
    """

    labels: NDArray[np.int32]
    votes: NDArray[np.int64]


def vote_on_objects(labels: Sequence[NDArray[np.integer]], rule: Rule, ties: Ties = "background") -> ObjectEstimate:
    """Keep the objects that enough annotators drew, each in the shape on which enough of these agree.

    Parameters
    ----------
    labels : per annotator, (y, x) integer; 0 is background, every other value an object
    rule : ``vote`` keeps objects that more than half of the annotators drew, and of these the pixels that more than
        half of those who drew the object included; ``union`` keeps whatever anybody drew, ``intersection`` only what
        all did
    ties : what becomes of exactly half, for objects and for pixels

    Notes
    -----
    A pixel that two objects claim goes to the one with more votes for it, then to the one that begins first.
    """
    groups = [group for group in matched(labels) if _enough(len(group), len(labels), rule, ties)]
    boxes = [_boxes(one) for one in labels]
    shape = labels[0].shape
    owner, most = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for index, group in enumerate(groups, start=1):
        parts = [boxes[expert][label] for expert, label in group]
        box = tuple(
            slice(min(part[axis].start for part in parts), max(part[axis].stop for part in parts)) for axis in (0, 1)
        )
        drawn = np.array([labels[expert][box] == label for expert, label in group])
        votes: NDArray[np.int32] = drawn.sum(axis=0, dtype=np.int32)
        taken = _enough(votes, len(group), rule, ties) & (votes > most[box])
        owner[box][taken] = index
        most[box][taken] = votes[taken]
    return _in_order(owner, np.array([len(group) for group in groups], np.int64))


def matched(labels: Sequence[NDArray[np.integer]]) -> list[tuple[_Object, ...]]:
    """Group the objects of all annotators that are the same: (expert, label) in order, at most one per annotator.

    Groups are in the order in which they begin in the image (row by row), then of the annotators.

    Parameters
    ----------
    labels : per annotator, (y, x) integer; 0 is background, every other value an object
    """
    sizes = [_counts(one) for one in labels]
    group_of: dict[_Object, set[_Object]] = {}
    for expert, known in enumerate(sizes):
        for label in known:
            group_of[expert, label] = {(expert, label)}
    pairs = [pair for a, b in itertools.combinations(range(len(labels)), 2) for pair in _pairs(labels, sizes, a, b)]
    for _, first, second in sorted(pairs, key=lambda pair: (-pair[0], pair[1:])):
        one, other = group_of[first], group_of[second]
        if one is not other and not {expert for expert, _ in one} & {expert for expert, _ in other}:
            one |= other
            for member in other:
                group_of[member] = one
    begins = {(e, label): position for e, one in enumerate(labels) for label, position in _begins(one).items()}
    groups = {tuple(sorted(group)) for group in group_of.values()}
    return sorted(groups, key=lambda group: (min(begins[member] for member in group), group))


def _pairs(
    labels: Sequence[NDArray[np.integer]], sizes: Sequence[dict[int, int]], a: int, b: int
) -> list[tuple[float, _Object, _Object]]:
    """Return (IoU, object, object) of two annotators' objects that are the same."""
    both = (labels[a] != 0) & (labels[b] != 0)
    frame = pd.DataFrame({"a": labels[a][both].astype(np.int64), "b": labels[b][both].astype(np.int64)})
    pairs = []
    counted = frame.groupby(["a", "b"]).size().reset_index(name="shared")
    for one, other, shared in counted.to_numpy(np.int64).tolist():
        overlap = shared / (sizes[a][one] + sizes[b][other] - shared)
        if overlap > SAME_OBJECT:
            pairs.append((overlap, (a, one), (b, other)))
    return pairs


def _counts(labels: NDArray[np.integer]) -> dict[int, int]:
    """Return the number of pixels of every object."""
    values, counts = np.unique(labels, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True) if value}


def _begins(labels: NDArray[np.integer]) -> dict[int, int]:
    """Return the flat index of every object's first pixel, row by row."""
    values, first = np.unique(labels, return_index=True)
    return {int(value): int(position) for value, position in zip(values, first, strict=True) if value}


def _boxes(labels: NDArray[np.integer]) -> dict[int, tuple[slice, slice]]:
    """Return the bounding box of every object."""
    from scipy.ndimage import find_objects

    values, inverse = np.unique(labels, return_inverse=True)
    boxes = find_objects(inverse.reshape(labels.shape) + 1)
    return {int(value): box for value, box in zip(values, boxes, strict=True) if value}


@overload
def _enough(votes: int, experts: int, rule: Rule, ties: Ties) -> bool: ...
@overload
def _enough(votes: NDArray[np.int32], experts: int, rule: Rule, ties: Ties) -> NDArray[np.bool_]: ...
def _enough(votes: NDArray[np.int32] | int, experts: int, rule: Rule, ties: Ties) -> NDArray[np.bool_] | bool:
    """Return whether `votes` out of `experts` are enough."""
    if rule == "union":
        return votes > 0
    if rule == "intersection":
        return votes == experts
    return 2 * votes >= experts if ties == "foreground" else 2 * votes > experts


def _in_order(owner: NDArray[np.int32], votes: NDArray[np.int64]) -> ObjectEstimate:
    """Renumber objects by their first pixels; objects without pixels are dropped."""
    begins = _begins(owner)
    order = sorted(begins, key=lambda label: begins[label])
    numbers = np.zeros(len(votes) + 1, np.int32)
    numbers[order] = np.arange(1, len(order) + 1)
    return ObjectEstimate(numbers[owner], votes[np.array(order, np.int64) - 1])
