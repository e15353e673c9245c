"""The shape of an object: Feret diameter, roundness, elongation and the oriented bounding box, by SimpleITK.

Each object is measured alone, cropped to its own bounding box: the numbers depend on its pixels alone, neither on its
position nor on the partition of a plane into regions. Lengths are in pixels along y; steps along other axes are scaled
by their pixel size relative to y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Side = tuple[slice, ...]
PLANE_COLUMNS = (
    "pixel_size_um", "feret_diameter", "perimeter_crofton", "roundness", "elongation", "oriented_length",
    "oriented_width",
)  # fmt: skip
VOLUME_COLUMNS = (
    "pixel_size_um", "feret_diameter", "surface_area", "roundness", "elongation", "flatness", "oriented_length",
    "oriented_width", "oriented_thickness",
)  # fmt: skip
LARGEST = 1 << 26
"""Maximum number of pixels of a bounding box; the shape of a larger object is NaN."""
# Up to this many points all distances are compared, beyond it those between corners of the convex hull: the maximum is
# the same.
_FEW = 256
# Larger ratios come from rounding errors of moments of an object without width, which has no ratio.
_THIN = 1e6


@dataclass(frozen=True)
class Spacing:
    """Distances between pixels.

    Attributes
    ----------
    steps : along z (of a volume), y and x; in pixels along y, so that this one is 1
    pixel_um : micrometres per pixel along y; NaN if the image does not state it
    """

    steps: tuple[float, ...]
    pixel_um: float = math.nan


SQUARE = Spacing((1.0, 1.0))
CUBIC = Spacing((1.0, 1.0, 1.0))


def shape_rows(masks: Callable[[int], NDArray[np.bool_] | None], count: int, spacing: Spacing) -> pd.DataFrame:
    """Measure the shape of each object.

    Parameters
    ----------
    masks : returns the mask of an object by its index, (y, x) or (z, y, x) bool, in its bounding box; None if that is
        too large
    count : number of objects
    spacing : of the pixels

    Returns
    -------
    pandas.DataFrame
        `PLANE_COLUMNS` or `VOLUME_COLUMNS`, float64. ``feret_diameter`` is the largest distance between centres of
        pixels. ``perimeter_crofton`` and ``surface_area`` (in squares of pixels) are estimated from counts of line
        crossings; ``roundness`` is the perimeter or surface of the disc or ball of equal size divided by that of the
        object, about 1 for discs and balls. ``elongation`` is the root of the largest principal moment over the next
        one, ``flatness`` that of the middle one over the smallest, at least 1; NaN if an object has no width.
        ``oriented_*`` are the sides of the bounding box along the principal axes, the longest first.

    References
    ----------
    G. Lehmann, Label object representation and manipulation with ITK, Insight Journal, 2007, and the Crofton
    perimeter of G. Lehmann and D. Legland, Insight Journal, 2012: ``itk::LabelShapeStatisticsImageFilter``.
    """
    columns = PLANE_COLUMNS if len(spacing.steps) == 2 else VOLUME_COLUMNS
    rows = np.full((count, len(columns)), np.nan)
    rows[:, 0] = spacing.pixel_um
    for index in range(count):
        mask = masks(index)
        if mask is not None:
            rows[index, 1:] = _shape(mask, spacing.steps)
    return pd.DataFrame(rows, columns=list(columns))


def cut_out(labels: NDArray[np.integer[Any]], value: int, box: Side) -> NDArray[np.bool_] | None:
    """Return the mask of one object in its bounding box.

    Parameters
    ----------
    labels : (y, x) or (z, y, x) integers
    value : of the object
    box : its bounding box, a slice per axis

    Returns
    -------
    NDArray[np.bool_] or None
        In the shape of `box`; None if that has more than `LARGEST` pixels.
    """
    if math.prod(side.stop - side.start for side in box) > LARGEST:
        return None
    mask: NDArray[np.bool_] = labels[box] == value
    return mask


def _shape(mask: NDArray[np.bool_], steps: Sequence[float]) -> list[float]:
    sitk = _sitk()
    image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
    image.SetSpacing(tuple(reversed(steps)))
    measured = sitk.LabelShapeStatisticsImageFilter()
    measured.SetNumberOfThreads(1)
    measured.ComputePerimeterOn()
    measured.ComputeOrientedBoundingBoxOn()
    # ITK's own Feret diameter compares all pairs of border pixels: 0.9 s for a ball with a radius of 40 pixels.
    measured.ComputeFeretDiameterOff()
    measured.Execute(image)
    ratios = [measured.GetElongation(1)] + ([measured.GetFlatness(1)] if mask.ndim == 3 else [])
    return [
        feret_diameter(mask, steps),
        measured.GetPerimeter(1),
        measured.GetRoundness(1),
        *(ratio if 1 <= ratio < _THIN else math.nan for ratio in ratios),
        *sorted(measured.GetOrientedBoundingBoxSize(1), reverse=True),
    ]


def feret_diameter(mask: NDArray[np.bool_], steps: Sequence[float]) -> float:
    """Return the largest distance between the centres of two pixels of a mask.

    Parameters
    ----------
    mask : (y, x) or (z, y, x) bool, not empty
    steps : distances between pixels per axis, see `Spacing`

    Returns
    -------
    float
        In units of `steps`; 0 for a single pixel.
    """
    from scipy.spatial.distance import pdist

    # Pixels at the ends of runs along x: no other pixel can be an end of the largest distance.
    wide = np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(1, 1)])
    ends = mask & ~(wide[..., :-2] & wide[..., 2:])
    points = np.argwhere(ends) * np.asarray(steps)
    if len(points) > _FEW:
        points = points[_hull(points)]
    return float(pdist(points).max()) if len(points) > 1 else 0.0


def _hull(points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return which of `points`, (n, axes), are corners of their convex hull, in the line or plane that they lie in."""
    from scipy.spatial import ConvexHull

    centred = points - points[0]
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    rank = int((spread > spread[0] * 1e-9).sum())
    flat = centred @ axes[:rank].T
    if rank == 1:
        return np.array([flat[:, 0].argmin(), flat[:, 0].argmax()])
    corners: NDArray[np.intp] = ConvexHull(flat).vertices
    return corners


@cache
def _sitk() -> ModuleType:
    SimpleITK = import_module("SimpleITK")  # takes seconds to import, and is only needed for objects
    # SimpleITK would print a warning for each object that is one pixel thin.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK
