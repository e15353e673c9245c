"""Detection of objects: average precision, panoptic quality, splits and merges.

Objects of a plane are matched by their intersection over union (IoU). Counts add up over planes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Thresholds of intersection over union, 0.5 to 0.95: mAP is the mean over them."""


@dataclass(frozen=True, slots=True)
class ObjectCounts:
    """Matched objects of one plane or several.

    Attributes
    ----------
    truths, predicted : number of objects in the truth and in the prediction
    matched : per threshold of `THRESHOLDS`, pairs of one of each with at least that IoU, each object in one pair
    overlapping : IoU of each pair above 0.5; an object is in one such pair at most
    splits : objects of the truth that contain more than half of the pixels of each of two or more predicted objects
    merges : predicted objects that contain more than half of the pixels of each of two or more objects of the truth
    """

    truths: int
    predicted: int
    matched: tuple[int, ...] = (0,) * len(THRESHOLDS)
    overlapping: tuple[float, ...] = ()
    splits: int = 0
    merges: int = 0

    def __add__(self, other: ObjectCounts) -> ObjectCounts:
        return ObjectCounts(
            self.truths + other.truths,
            self.predicted + other.predicted,
            tuple(a + b for a, b in zip(self.matched, other.matched, strict=True)),
            self.overlapping + other.overlapping,
            self.splits + other.splits,
            self.merges + other.merges,
        )

    @property
    def average_precision(self) -> list[float]:
        """TP / (TP + FP + FN) at each of `THRESHOLDS`; 1 if neither has an object.

        References
        ----------
        Caicedo et al., Nature Methods 16:1247 (2019); Stringer et al., Nature Methods 18:100 (2021).
        """
        total = self.truths + self.predicted
        return [hits / (total - hits) if total else 1.0 for hits in self.matched]

    @property
    def mean_average_precision(self) -> float:
        """Mean over `THRESHOLDS`.

        References
        ----------
        Griebel et al., deepflash2, Nature Communications 14:1679 (2023), Eq. 7.
        """
        return math.fsum(self.average_precision) / len(THRESHOLDS)

    @property
    def panoptic_quality(self) -> float:
        """Sum of the IoU of pairs above 0.5 / (TP + FP / 2 + FN / 2); 1 if neither has an object.

        References
        ----------
        Kirillov et al., Panoptic Segmentation, CVPR 2019, Eq. 1.
        """
        total = self.truths + self.predicted
        return 2 * math.fsum(self.overlapping) / total if total else 1.0


def count_objects(truth: NDArray[np.integer], predicted: NDArray[np.integer], *, minimum_size: int = 0) -> ObjectCounts:
    """Match the objects of one plane.

    Only overlapping pairs are compared, so that planes of many objects take little memory; the counts are those of
    ``cellpose.metrics.average_precision``.

    Parameters
    ----------
    truth, predicted : (y, x) integer, 0 is background, every other value an object
    minimum_size : objects of fewer pixels are left out of both
    """
    from scipy.sparse import coo_array

    (truth, truths), (predicted, predictions) = (_numbered(labels, minimum_size) for labels in (truth, predicted))
    if not truths or not predictions:
        return ObjectCounts(truths, predictions)
    sizes, sizes_found = (np.bincount(labels.ravel())[1:] for labels in (truth, predicted))
    both = (truth > 0) & (predicted > 0)
    at = truth[both] - 1, predicted[both] - 1
    table = coo_array((np.ones(len(at[0]), np.int64), at), shape=(truths, predictions))
    table.sum_duplicates()
    row, column, overlap = table.row, table.col, table.data
    iou = overlap / (sizes[row] + sizes_found[column] - overlap)
    within = 2 * overlap > sizes_found[column], 2 * overlap > sizes[row]
    return ObjectCounts(
        truths,
        predictions,
        tuple(_pairs(row, column, iou >= threshold, (truths, predictions)) for threshold in THRESHOLDS),
        tuple(iou[iou > 0.5].tolist()),
        splits=int(np.count_nonzero(np.bincount(row[within[0]]) > 1)),
        merges=int(np.count_nonzero(np.bincount(column[within[1]]) > 1)),
    )


def _pairs(row: NDArray[Any], column: NDArray[Any], close: NDArray[np.bool_], shape: tuple[int, int]) -> int:
    """Return the largest number of pairs among those that are `close` such that no object is in two.

    Above an IoU of 0.5 there is no choice; at exactly 0.5 an object may match two halves.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    graph = csr_array((np.ones(np.count_nonzero(close)), (row[close], column[close])), shape=shape)
    return int(np.count_nonzero(maximum_bipartite_matching(graph, perm_type="column") >= 0))


def average_precision(truth: NDArray[np.integer], predicted: NDArray[np.integer]) -> list[float]:
    """Return the AP of the objects of one plane at each of `THRESHOLDS`; see `ObjectCounts.average_precision`.

    Parameters
    ----------
    truth, predicted : (y, x) integer, 0 is background, every other value an object
    """
    return count_objects(truth, predicted).average_precision


def components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Label the 4-connected components of a mask.

    Parameters
    ----------
    mask : (y, x) bool

    Returns
    -------
    NDArray[np.int32]
        (y, x), objects 1 to n, 0 for background.
    """
    from skimage.measure import label

    return np.asarray(label(mask, connectivity=1), np.int32)  # type: ignore[no-untyped-call]


def objects_of(label: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the objects of a label image that may be a mask.

    Parameters
    ----------
    label : (y, x) integer, 0 for background

    Returns
    -------
    NDArray[np.integer]
        (y, x): `label` itself, or its connected components if it has a single value besides 0.
    """
    values = label[label != 0]
    if values.size and values.min() != values.max():
        return label
    return components(label != 0)


def _numbered(labels: NDArray[np.integer], minimum_size: int) -> tuple[NDArray[np.int32], int]:
    """Return the objects of at least `minimum_size` pixels, numbered 1 to n, and n."""
    codes, values = pd.factorize(labels.ravel())  # ten times as fast as sorting them
    kept = (values != 0) & (np.bincount(codes, minlength=len(values)) >= minimum_size)
    numbers = (np.cumsum(kept) * kept).astype(np.int32)  # background stays 0
    return numbers[codes].reshape(labels.shape), int(np.count_nonzero(kept))
