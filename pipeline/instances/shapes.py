"""The shape of an object: Feret diameter, roundness, elongation and the box along its axes, by SimpleITK.

Each object is measured alone, cut out along its own bounding box: the numbers depend on its pixels and on nothing else,
neither where it lies nor how a plane was cut into regions. Lengths are in pixels along y; a pixel that is longer along
another axis counts as such.
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
"""Pixels of the bounding box of an object that is measured; of a larger one the shape is not a number."""
# Of fewer points all distances are taken, of more those between the corners of their convex hull: the same maximum.
_FEW = 256
# Moments whose rounding errors are taken for a width give ratios beyond that; an object without width has no ratio.
_THIN = 1e6


@dataclass(frozen=True)
class Spacing:
    """How far pixels are apart.

    Attributes
    ----------
    steps : along z (of a volume), y and x; in pixels along y, so that this one is 1
    pixel_um : micrometres of a pixel along y; NaN where the image does not say it
    """

    steps: tuple[float, ...]
    pixel_um: float = math.nan


SQUARE = Spacing((1.0, 1.0))
CUBIC = Spacing((1.0, 1.0, 1.0))


def shape_rows(masks: Callable[[int], NDArray[np.bool_] | None], count: int, spacing: Spacing) -> pd.DataFrame:
    """A row for each of `count` objects.

    Parameters
    ----------
    masks : gives the pixels of an object, (y, x) or (z, y, x), in its bounding box; None where that is too large

    Returns
    -------
    `PLANE_COLUMNS` or `VOLUME_COLUMNS`, float64. ``feret_diameter`` is the largest distance between centres of pixels.
    ``perimeter_crofton`` and ``surface_area`` (in squares of pixels) are estimated from counts of crossings of lines;
    ``roundness`` is that of the disc or ball of equal size over it, about 1 for these. ``elongation`` is the root of
    the largest principal moment over the next, ``flatness`` that of the middle one over the smallest, at least 1;
    NaN where an object has no width. ``oriented_*`` are the sides of the bounding box along the principal axes, the
    longest first.

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
    """The pixels of `value` in its bounding box; None where that is larger than `LARGEST`."""
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
    # ITK's own takes the distances of all pairs of border pixels: 0.9 s for a ball of a radius of 40.
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
    """The largest distance between the centres of two pixels of `mask`, which has some; `steps` as of `Spacing`."""
    from scipy.spatial.distance import pdist

    # Pixels at the ends of the runs along x: no other can be farthest.
    wide = np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(1, 1)])
    ends = mask & ~(wide[..., :-2] & wide[..., 2:])
    points = np.argwhere(ends) * np.asarray(steps)
    if len(points) > _FEW:
        points = points[_hull(points)]
    return float(pdist(points).max()) if len(points) > 1 else 0.0


def _hull(points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which of `points`, (n, axes), are corners of their convex hull, in the line or plane that they lie in."""
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
    SimpleITK = import_module("SimpleITK")  # seconds to import, and only needed where there are objects
    # It warns of each object that is one pixel thin on the terminal.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK
