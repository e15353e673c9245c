"""One row per object: position, size, shape, intensity and uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.measures import corners, measured_rows, pixel_sums
from chorus.pipeline.instances.regions import RegionObjects
from chorus.pipeline.instances.shapes import SQUARE, Spacing, cut_out, shape_rows


def object_rows(
    objects: RegionObjects,
    region: Window,
    plane: tuple[int, int],
    maps: Mapping[str, NDArray[np.floating]],
    spacing: Spacing = SQUARE,
) -> pd.DataFrame:
    """Measure the objects whose first pixel, in row-major order, is in the region: each object is in one region's rows.

    Parameters
    ----------
    objects : of `chorus.pipeline.instances.regions.label_region`
    region : window of the region
    plane : height and width of the plane
    maps : of the crop, (y, x) each, any floating dtype; a column ``mean:<name>`` is the mean over the object's pixels
    spacing : of the pixels

    Returns
    -------
    pandas.DataFrame
        Columns: ``name`` (uint64, of the anchor), ``area`` (pixels), ``y0 x0 y1 x1`` (bounding box, half-open), ``y x``
        (centroid), ``eccentricity`` (0 to 1), ``major_axis minor_axis`` (pixels, of the ellipse of equal second
        moments), ``orientation`` (radians), ``perimeter`` (pixels), those of
        `chorus.pipeline.instances.shapes.shape_rows`, ``touches_border``, ``flow_error`` and the means; sorted by name.
    """
    chosen = _first_pixels_inside(objects, region)
    numbers = np.zeros(len(objects.anchors), np.int32)
    numbers[chosen] = np.arange(1, len(chosen) + 1)
    labels = numbers[objects.around]
    pixels = np.flatnonzero(labels)
    of_perimeter = corners(labels) if len(pixels) else np.zeros(labels.shape, np.uint8)
    sums = pixel_sums(labels, pixels, objects.anchors[chosen], objects.crop, of_perimeter, list(maps.values()))
    rows = measured_rows(sums, plane, list(maps))
    rows["flow_error"] = objects.flow_errors[chosen]
    return with_shapes(rows, labels, np.arange(1, len(chosen) + 1), objects.crop, spacing)


def with_shapes(
    rows: pd.DataFrame,
    labels: NDArray[np.integer[Any]],
    values: NDArray[np.integer[Any]],
    window: Window,
    spacing: Spacing,
) -> pd.DataFrame:
    """Add the columns of their shapes to rows of objects that are whole in a window of the plane.

    Parameters
    ----------
    rows : with the bounding boxes of the objects
    labels : (y, x) integers of the window
    values : (rows,) of each object in `labels`
    window : of the plane
    spacing : of the pixels
    """

    def mask(index: int) -> NDArray[np.bool_] | None:
        y0, x0, y1, x1 = boxes[index]
        return cut_out(labels, values[index], (slice(y0, y1), slice(x0, x1)))

    origin = np.array([window.y.start, window.x.start] * 2)
    boxes = rows[["y0", "x0", "y1", "x1"]].to_numpy(np.int64) - origin
    return insert_shapes(rows, shape_rows(mask, len(rows), spacing))


def insert_shapes(rows: pd.DataFrame, shapes: pd.DataFrame) -> pd.DataFrame:
    """Insert the columns of `shapes` before ``touches_border``, so that the means stay the last columns."""
    at = list(rows.columns).index("touches_border")
    return pd.concat([rows.iloc[:, :at], shapes.set_axis(rows.index), rows.iloc[:, at:]], axis=1)


def _first_pixels_inside(objects: RegionObjects, region: Window) -> NDArray[np.int64]:
    """Return the objects whose first pixel in row-major order is in the region, sorted by their names."""
    flat = objects.around.ravel()
    pixels = np.flatnonzero(flat)[::-1]
    first = np.full(len(objects.anchors), -1, np.int64)
    first[flat[pixels]] = pixels  # the last to be written is the first pixel
    y, x = np.divmod(first, objects.around.shape[1])
    y, x = y + objects.crop.y.start, x + objects.crop.x.start
    inside = (y >= region.y.start) & (y < region.y.stop) & (x >= region.x.start) & (x < region.x.stop)
    chosen = np.flatnonzero(inside & (first >= 0))
    result: NDArray[np.int64] = chosen[np.argsort(objects.anchors[chosen])]
    return result


def numbered(names: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.uint32] | NDArray[np.uint64]:
    """Return consecutive labels: 1 for the first of `known`, background stays 0.

    Parameters
    ----------
    names : (y, x) uint64, 0 for background
    known : (n,) uint64, all names of the plane, sorted

    Returns
    -------
    NDArray[np.uint32] or NDArray[np.uint64]
        Shape of `names`; uint64 only if the plane has more objects than uint32 holds.
    """
    labels = np.where(names == 0, 0, np.searchsorted(known, names) + 1)
    return labels.astype(np.uint32) if len(known) <= np.iinfo(np.uint32).max else labels.astype(np.uint64)
