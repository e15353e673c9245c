"""How well a segmentation agrees with a truth, class by class: counts of pixels, and distances of boundaries.

Counts are integers that add up over regions and planes, so that an image's scores do not depend on how it was cut.
Distances need the plane whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one class of a prediction agrees with a truth.

    Attributes
    ----------
    dice, iou : 0 to 1; 1 where the class is in neither
    precision : share of what was predicted that is right; None where the class was missed altogether
    recall : share of what is there that was found; None where the class was invented
    """

    dice: float
    iou: float
    precision: float | None
    recall: float | None


@dataclass(frozen=True, slots=True)
class BoundaryDistance:
    """Distances between two boundaries in pixels; None where only one of both masks has a boundary.

    Attributes
    ----------
    median, p95, mean : of the distances from each pixel of either boundary to the nearest of the other, those of both
        boundaries together; `p95` is known as HD95, `mean` as the average symmetric surface distance
    """

    median: float | None
    p95: float | None
    mean: float | None


def dice(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """2 |A and B| / (|A| + |B|); 1 where both are empty."""
    total = np.count_nonzero(predicted) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(predicted & truth) / total if total else 1.0


def confusion(predicted: NDArray[np.integer], truth: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """(classes, classes) int64: pixels that are row i in truth and column j in the prediction; sums over regions.

    Parameters
    ----------
    predicted, truth : arrays of one shape, values 0 to classes - 1

    Raises
    ------
    ValueError
        where a value is no class, or the shapes differ
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"prediction {predicted.shape} and truth {truth.shape} differ in shape")
    if any(values.size and not 0 <= values.min() <= values.max() < classes for values in (predicted, truth)):
        raise ValueError(f"values are no classes from 0 to {classes - 1}")
    cells = truth.astype(np.int64).ravel() * classes + predicted.astype(np.int64).ravel()
    counts: NDArray[np.int64] = np.bincount(cells, minlength=classes * classes).reshape(classes, classes)
    return counts


def agreements(counts: NDArray[np.int64]) -> list[Agreement]:
    """Per foreground class (1, 2, ...) what `confusion`, summed over an image, says.

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


def macro_dice(found: Sequence[Agreement]) -> float:
    """Mean of the Dice over foreground classes."""
    return math.fsum(one.dice for one in found) / len(found)


def boundary_distances(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Distance from each pixel of either boundary to the nearest of the other, in pixels.

    A mask's boundary are its pixels with a neighbour (of four) outside; the image's edge is outside.

    Parameters
    ----------
    predicted, truth : (y, x)

    Returns
    -------
    float64, one value per boundary pixel; empty where both masks are; None where one of them is

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
    """Sum up an image's planes (`boundary_distances`).

    Planes on which only one mask has a boundary are left out; where no other has one there is no distance. It is 0
    where there is no boundary at all.
    """
    found = np.concatenate([np.empty(0), *(plane for plane in planes if plane is not None)])
    if not found.size:
        value = None if any(plane is None for plane in planes) else 0.0
        return BoundaryDistance(value, value, value)
    median, p95 = np.percentile(found, (50, 95))
    return BoundaryDistance(float(median), float(p95), float(found.mean()))
