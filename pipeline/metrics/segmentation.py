"""Agreement of a segmentation with a ground truth, class by class: counts of pixels, and distances of boundaries.

Counts are integers that add up over regions and planes, so that an image's scores do not depend on the partition.
Distances need whole planes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of one class of a prediction with a truth.

    Attributes
    ----------
    dice, iou : 0 to 1; 1 if the class is in neither
    precision : share of the predicted pixels that are correct; None if none were predicted
    recall : share of the pixels of the truth that were found; None if the truth has none
    """

    dice: float
    iou: float
    precision: float | None
    recall: float | None


@dataclass(frozen=True, slots=True)
class BoundaryDistance:
    """Distances between two boundaries in pixels; None if only one of the two masks has a boundary.

    Attributes
    ----------
    median, p95, mean : of the distances from each pixel of either boundary to the nearest pixel of the other one,
        pooled over both boundaries; `p95` is known as HD95, `mean` as the average symmetric surface distance
    """

    median: float | None
    p95: float | None
    mean: float | None


def dice(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return 2 |A and B| / (|A| + |B|); 1 if both are empty.

    Parameters
    ----------
    predicted, truth : bool, of one shape
    """
    total = np.count_nonzero(predicted) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(predicted & truth) / total if total else 1.0


def confusion(predicted: NDArray[np.integer], truth: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Return the confusion matrix; matrices of regions add up.

    Parameters
    ----------
    predicted, truth : integer, of one shape, values 0 to classes - 1
    classes : number of classes, including the background

    Returns
    -------
    NDArray[np.int64]
        (classes, classes), number of pixels that are row i in the truth and column j in the prediction.

    Raises
    ------
    ValueError
        If a value is no class, or the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"prediction {predicted.shape} and truth {truth.shape} differ in shape")
    if any(values.size and not 0 <= values.min() <= values.max() < classes for values in (predicted, truth)):
        raise ValueError(f"values are no classes from 0 to {classes - 1}")
    cells = truth.astype(np.int64).ravel() * classes + predicted.astype(np.int64).ravel()
    counts: NDArray[np.int64] = np.bincount(cells, minlength=classes * classes).reshape(classes, classes)
    return counts


def agreements(counts: NDArray[np.int64]) -> list[Agreement]:
    """Return the agreement per foreground class (1, 2, ...).

    Parameters
    ----------
    counts : (classes, classes) int64 as returned by `confusion`, summed over an image

    References
    ----------
    Dice: Griebel et al., deepflash2, Nature Communications 14:1679 (2023), Eq. 6.
    """
    return [_agreement(int(counts[k, k]), int(counts[:, k].sum()), int(counts[k].sum())) for k in range(1, len(counts))]


def _agreement(both: int, predicted: int, truth: int) -> Agreement:
    either = predicted + truth - both
    if not either:
        return Agreement(1.0, 1.0, 1.0, 1.0)
    return Agreement(
        dice=2 * both / (predicted + truth),
        iou=both / either,
        precision=both / predicted if predicted else None,
        recall=both / truth if truth else None,
    )


def macro_dice(agreements: Sequence[Agreement]) -> float:
    """Return the mean of the Dice over foreground classes."""
    return math.fsum(one.dice for one in agreements) / len(agreements)


def boundary_distances(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Return the distance from each pixel of either boundary to the nearest pixel of the other one.

    A mask's boundary is the set of its pixels with one of four neighbours outside; beyond the image's edge is outside.

    Parameters
    ----------
    predicted, truth : (y, x) bool

    Returns
    -------
    NDArray[np.float64] or None
        In pixels, one value per boundary pixel; empty if both masks are empty; None if one of them is.

    References
    ----------
    Maier-Hein et al., Metrics reloaded, Nature Methods 21:195 (2024).
    """
    from scipy.ndimage import binary_erosion, distance_transform_edt

    if not predicted.any() and not truth.any():
        return np.empty(0)
    if not predicted.any() or not truth.any():
        return None
    first, second = (mask & ~binary_erosion(mask) for mask in (predicted, truth))
    return np.concatenate([distance_transform_edt(~second)[first], distance_transform_edt(~first)[second]])


def boundary_distance(planes: Sequence[NDArray[np.float64] | None]) -> BoundaryDistance:
    """Summarise the distances of an image's planes.

    Planes on which only one mask has a boundary are left out; if no other plane has one, there is no distance. It is 0
    if there is no boundary at all.

    Parameters
    ----------
    planes : (n,) float64 per plane, or None, as returned by `boundary_distances`
    """
    distances = np.concatenate([np.empty(0), *(plane for plane in planes if plane is not None)])
    if not distances.size:
        value = None if any(plane is None for plane in planes) else 0.0
        return BoundaryDistance(value, value, value)
    median, p95 = np.percentile(distances, (50, 95))
    return BoundaryDistance(float(median), float(p95), float(distances.mean()))
