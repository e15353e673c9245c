"""Measurements of an object from exact sums over its pixels: position, size, shape and intensity.

Sums are integers, and floats that are added up without rounding. The sums of an object's parts in several regions
therefore add up exactly, and no number depends on the partition of a plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from chorus.pipeline.core.geometry import Window

# Foreground pixels that are summed at once: few enough for sums of products of coordinates, and of halves of
# mantissas, to be exact in float64.
_AT_ONCE = 1 << 20
MOMENTS = ("sum_y", "sum_x", "sum_yy", "sum_xx", "sum_yx")
CORNERS = ("straight", "diagonal", "mixed")
# How border pixels count towards the perimeter, by the weighted sum of those around them (Benkrid and Crookes 2000,
# ``skimage.measure.perimeter``): 1, the root of 2, and the mean of both.
_AROUND = np.array([[10, 2, 10], [2, 1, 2], [10, 2, 10]])
_KINDS = ((5, 7, 15, 17, 25, 27), (21, 33), (13, 23))
_LENGTHS = (1.0, math.sqrt(2), (1 + math.sqrt(2)) / 2)


def corners(labels: NDArray[np.integer[Any] | np.bool_]) -> NDArray[np.uint8]:
    """Classify the contribution of each pixel to its object's perimeter.

    Parameters
    ----------
    labels : (y, x) integer or bool, 0 for background; everything beyond the array counts as background

    Returns
    -------
    NDArray[np.uint8]
        (y, x): 0 for none, 1 for a straight piece, 2 for a diagonal one and 3 for half of each. A pixel's value depends
        on the two pixels around it.

    References
    ----------
    Benkrid & Crookes, Design and FPGA Implementation of a Perimeter Estimator (2000); ``skimage.measure.perimeter``.
    """
    wide = np.pad(labels, 1)
    own = wide[1:-1, 1:-1]
    shape = own.shape

    def moved(array: NDArray[Any], a: int, b: int) -> NDArray[Any]:
        return array[1 + a : 1 + a + shape[0], 1 + b : 1 + b + shape[1]]

    sides = ((-1, 0), (1, 0), (0, -1), (0, 1))
    border = np.zeros(shape, bool)
    for a, b in sides:
        border |= moved(wide, a, b) != own
    border &= own != 0
    on_border = np.pad(border, 1)
    patterns = border.astype(np.uint8)
    for a in (-1, 0, 1):
        for b in (-1, 0, 1):
            if (a, b) != (0, 0):
                same = moved(on_border, a, b) & (moved(wide, a, b) == own)
                patterns += np.uint8(_AROUND[1 + a, 1 + b]) * same
    kind = np.zeros(256, np.uint8)
    for index, corner_count in enumerate(_KINDS, 1):
        kind[list(corner_count)] = index
    return np.where(border, kind[patterns], np.uint8(0))


def perimeter(mask: NDArray[np.bool_] | None) -> float:
    """Return the perimeter of an object from its mask, (y, x) in its bounding box; NaN if there is none."""
    if mask is None:
        return math.nan
    counts = np.bincount(corners(mask).ravel(), minlength=4)[1:]
    return float(sum(length * count for length, count in zip(_LENGTHS, counts.tolist(), strict=True)))


def pixel_sums(
    numbers: NDArray[np.int32],
    pixels: NDArray[np.int64],
    names: NDArray[np.uint64],
    region: Window,
    of_perimeter: NDArray[np.uint8],
    maps: Sequence[NDArray[np.number]],
) -> pd.DataFrame:
    """Sum over the pixels of each piece, with coordinates relative to its bounding box.

    Parameters
    ----------
    numbers : (y, x) int32 of the region, 0 for background, pieces 1, 2, ...
    pixels : (n,) int64, flat indices of the foreground
    names : (pieces,) uint64, the name of each piece
    region : position of the region in the plane
    of_perimeter : (y, x) uint8 of the region, see `corners`
    maps : (y, x) of the region each, any numeric dtype

    Returns
    -------
    pandas.DataFrame
        A row per piece: moments as int64, and ``map:<i>`` as lists of floats whose exact sum is that of map i.
    """
    count, width = len(names), region.shape[1]
    totals = {name: np.zeros(count + 1, np.int64) for name in ("area", *MOMENTS, *CORNERS)}
    for start in range(0, len(pixels), _AT_ONCE):
        part = pixels[start : start + _AT_ONCE]
        number, (y, x) = numbers.ravel()[part], np.divmod(part, width)
        weights = [None, y, x, y * y, x * x, y * x, *(of_perimeter.ravel()[part] == kind for kind in (1, 2, 3))]
        for total, weight in zip(totals.values(), weights, strict=True):
            total += np.bincount(number, weight, minlength=count + 1).astype(np.int64)
    boxes = ndimage.find_objects(numbers, count)
    sides = np.array([(b[0].start, b[0].stop, b[1].start, b[1].stop) for b in boxes], np.int64).reshape(-1, 4)
    frame = pd.DataFrame({"name": names} | {name: total[1:] for name, total in totals.items()})
    origin = region.y.start, region.x.start
    frame["y0"], frame["x0"] = sides[:, 0] + origin[0], sides[:, 2] + origin[1]
    frame["y1"], frame["x1"] = sides[:, 1] + origin[0], sides[:, 3] + origin[1]
    shift(frame, pd.Series(-sides[:, 0]), pd.Series(-sides[:, 2]))
    for index, values in enumerate(maps):
        parts = exact_parts(np.asarray(values).ravel()[pixels], numbers.ravel()[pixels], count)
        frame[f"map:{index}"] = pd.Series(list(parts), dtype=object)
    return frame


def shift(sums: pd.DataFrame, y: pd.Series[Any], x: pd.Series[Any]) -> None:
    """Move the origin of the coordinates in `sums`, in place.

    Parameters
    ----------
    sums : a row per piece
    y, x : coordinates of the old origin relative to the new one, one per row
    """
    area, of_y, of_x = sums["area"], sums["sum_y"], sums["sum_x"]
    sums["sum_yy"] += 2 * y * of_y + y * y * area
    sums["sum_xx"] += 2 * x * of_x + x * x * area
    sums["sum_yx"] += y * of_x + x * of_y + y * x * area
    sums["sum_y"], sums["sum_x"] = of_y + y * area, of_x + x * area


def exact_parts(values: NDArray[np.number], numbers: NDArray[np.int32], count: int) -> NDArray[np.float64]:
    """Return (count, parts) floats whose exact sum over parts is the sum of the values of each number."""
    if values.dtype.kind in "bu" and values.dtype.itemsize <= 2:
        return np.bincount(numbers, values.astype(np.float64), minlength=count + 1)[1:, None].astype(np.float64)
    exact = values.astype(np.float64)
    finite = np.isfinite(exact)
    mantissa, exponent = np.frexp(np.where(finite, exact, 0))
    places, group = np.unique(exponent, return_inverse=True)
    upper = np.floor(mantissa * 2.0**26)
    halves = ((upper, -26), ((mantissa * 2.0**26 - upper) * 2.0**27, -53))
    cell = numbers.astype(np.int64) * len(places) + group
    parts = [
        np.ldexp(np.bincount(cell, half, minlength=(count + 1) * len(places)).reshape(count + 1, -1), places + low)
        for half, low in halves
        if half.any()
    ]
    if not finite.all():
        parts.append(np.bincount(numbers, np.where(finite, 0, exact), minlength=count + 1)[:, None])
    return np.concatenate([np.zeros((count + 1, 1)), *parts], axis=1)[1:]


def measured_rows(sums: pd.DataFrame, plane: tuple[int, int], maps: Sequence[str]) -> pd.DataFrame:
    """Measure objects from the sums over their pixels.

    Parameters
    ----------
    sums : a row per object, see `pixel_sums`
    plane : height and width of the plane
    maps : names of the summed maps

    Returns
    -------
    pandas.DataFrame
        A row per object, sorted by name; ``flow_error`` is NaN until it is filled in.
    """
    rows = pd.DataFrame({"name": sums["name"].astype(np.uint64), "area": sums["area"].astype(np.int64)})
    for name in ("y0", "x0", "y1", "x1"):
        rows[name] = sums[name].astype(np.int64)
    shapes = [_shape(*one) for one in sums[["area", *MOMENTS]].itertuples(index=False)]
    columns = ("y", "x", "eccentricity", "major_axis", "minor_axis", "orientation")
    rows[list(columns)] = np.array(shapes, np.float64).reshape(-1, len(columns))
    rows["y"], rows["x"] = rows["y"] + rows["y0"], rows["x"] + rows["x0"]
    rows["perimeter"] = sum(length * sums[name] for length, name in zip(_LENGTHS, CORNERS, strict=True))
    rows["perimeter"] = rows["perimeter"].astype(np.float64)
    rows["touches_border"] = (rows["y0"] == 0) | (rows["x0"] == 0) | (rows["y1"] == plane[0]) | (rows["x1"] == plane[1])
    rows["flow_error"] = np.nan
    for index, name in enumerate(maps):
        totals = [rounded_once(parts) for parts in sums.get(f"map:{index}", [])]
        rows[f"mean:{name}"] = np.array(totals, np.float64) / rows["area"]
    return rows.sort_values("name", ignore_index=True)


def _shape(area: int, sum_y: int, sum_x: int, sum_yy: int, sum_xx: int, sum_yx: int) -> tuple[float, ...]:
    """Return the centroid within the bounding box, and eccentricity, axes and orientation of the equivalent ellipse.

    The ellipse has the object's second moments. The products are exact integers, so that a number is rounded once,
    whatever the pieces were. The formulas are those of ``skimage.measure.regionprops``.
    """
    n, y, x, yy, xx, yx = (int(value) for value in (area, sum_y, sum_x, sum_yy, sum_xx, sum_yx))
    of_y, of_x, of_both = n * yy - y * y, n * xx - x * x, n * yx - y * x
    major = ((of_y + of_x) / n**2 + math.hypot((of_y - of_x) / n**2, 2 * of_both / n**2)) / 2
    minor = (of_y * of_x - of_both**2) / n**4 / major if major else 0.0
    eccentricity = math.sqrt(max(0.0, 1 - minor / major)) if major else 0.0
    if of_y == of_x:
        orientation = math.pi / 4 if of_both > 0 else -math.pi / 4
    else:
        orientation = 0.5 * math.atan2(2 * of_both / n**2, (of_y - of_x) / n**2)
    return y / n, x / n, eccentricity, 4 * math.sqrt(major), 4 * math.sqrt(minor), orientation


def rounded_once(parts: Sequence[float]) -> float:
    """Return the sum of the parts, rounded once; NaN if it is undefined or overflows."""
    try:
        return math.fsum(parts)
    except (ValueError, OverflowError):  # infinities of both signs; more than a float holds
        return math.nan
