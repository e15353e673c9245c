"""Objects of one class in a plane, from wherever its foreground and flows are: in storage, or in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.instances.components import label_pieces
from chorus.pipeline.instances.flows.dynamics import Crop
from chorus.pipeline.instances.measures import measured_rows
from chorus.pipeline.instances.methods import Method
from chorus.pipeline.instances.regions import ObjectSettings, RegionObjects, label_region
from chorus.pipeline.instances.shapes import Spacing
from chorus.pipeline.instances.stars.candidates import Candidates, StarMaps, StarSettings
from chorus.pipeline.instances.stars.regions import label_stars
from chorus.pipeline.instances.stars.rows import star_rows
from chorus.pipeline.instances.table import object_rows, with_shapes
from chorus.pipeline.instances.watershed import distance_crop

ReadMaps = Callable[[Window], Sequence[NDArray[Any]]]
"""Reads the maps, (y, x) of a window each, whose mean over each object is measured."""


class Plane(Protocol):
    """The results of a class, by its value, in a window of a plane."""

    def crop(self, window: Window, value: int) -> Crop:
        """Return foreground and flows of the class `value` in `window`."""
        ...

    def foreground(self, window: Window, value: int) -> NDArray[np.bool_]:
        """Return where the class `value` is in `window`.

        Returns
        -------
        NDArray[np.bool_]
            (y, x) of `window`.
        """
        ...


@dataclass(frozen=True)
class PlaneInMemory:
    """See `Plane`: a plane whose results are in memory.

    Attributes
    ----------
    labels : (y, x) classes
    probability : per class value (y, x), where a pixel may be of several classes; else empty
    flows : (2, y, x), or None where there are none
    stars : what stars are made of, or None where there are no rays
    """

    labels: NDArray[np.unsignedinteger[Any]]
    probability: Mapping[int, NDArray[np.floating[Any]]]
    flows: NDArray[np.floating[Any]] | None
    stars: StarMaps | None = None

    def crop(self, window: Window, value: int) -> Crop:
        """See `Plane.crop`."""
        assert self.flows is not None
        height, width = self.labels.shape
        flows = self.flows[:, window.y.slice, window.x.slice]
        return Crop(self.foreground(window, value), flows, window, (height, width))

    def foreground(self, window: Window, value: int) -> NDArray[np.bool_]:
        """See `Plane.foreground`.

        Returns
        -------
        NDArray[np.bool_]
            (y, x) of `window`.
        """
        at = window.y.slice, window.x.slice
        if self.probability:
            return np.asarray(self.probability[value][at] >= 0.5)
        return np.asarray(self.labels[at] == value)


def converging_objects(
    plane: Plane, region: Window, shape: tuple[int, int], value: int, method: Method, settings: ObjectSettings
) -> RegionObjects:
    """Find the objects of a region whose pixels' paths meet, along flows or (``watershed``) away from background.

    Parameters
    ----------
    shape : height and width of the plane
    value : of the class
    """
    read = partial(plane.crop, value=value)
    if method == "watershed":
        foreground = partial(plane.foreground, value=value)
        read = partial(distance_crop, foreground, plane=shape, diameter=settings.diameter)
        settings = replace(settings, lengths=False)  # which are of flows
    return label_region(read, region, shape, settings)


def converging_rows(
    objects: RegionObjects,
    region: Window,
    shape: tuple[int, int],
    method: Method,
    maps: ReadMaps,
    columns: int,
    spacing: Spacing,
) -> pd.DataFrame:
    """Return rows of objects of `converging_objects`; the last `columns` are means of `maps`.

    Parameters
    ----------
    spacing : of the plane's pixels
    """
    if objects.around.any():
        values = list(maps(objects.crop))
    else:  # nothing is read where there is nothing to measure
        values = [np.broadcast_to(np.float64(0), objects.crop.shape)] * columns
    named = {str(index): each for index, each in enumerate(values)}
    rows = object_rows(objects, region, shape, named, spacing)
    if method == "watershed":
        rows["flow_error"] = np.nan  # there are no flows to be wrong
    return rows


@dataclass(frozen=True)
class PlaneObjects:
    """Objects of a class in a whole plane.

    Attributes
    ----------
    names : (y, x) uint64, 0 for background
    rows : of each object, sorted by name; the last columns are means
    """

    names: NDArray[np.uint64]
    rows: pd.DataFrame


def plane_objects(
    plane: Plane,
    shape: tuple[int, int],
    value: int,
    method: Method,
    settings: ObjectSettings,
    maps: ReadMaps,
    columns: Sequence[str],
    region: int,
    spacing: Spacing,
) -> PlaneObjects:
    """Find and measure the objects of a class in a plane; their names are held in memory.

    Parameters
    ----------
    shape : height and width of the plane in pixels
    value : of the class in the label image
    maps, columns : maps whose mean over each object is measured, and the names of these columns
    region : edge in pixels of the windows that are processed one after the other; the result does not depend on it
    spacing : of the plane's pixels
    """
    whole = Window.of(0, shape[0], 0, shape[1])
    if method == "components":
        pieces = label_pieces(plane.foreground(whole, value), whole, shape, lambda: maps(whole), settings.minimum_size)
        rows = measured_rows(pieces.whole, shape, list(columns))
        rows = with_shapes(rows, pieces.names, rows["name"].to_numpy(np.uint64), whole, spacing)
        return PlaneObjects(pieces.names, rows.sort_values("name", ignore_index=True))
    grid, names, tables = RegionGrid.make(shape, region), np.zeros(shape, np.uint64), []
    for index in range(grid.count):
        window = grid.window(index)
        objects = converging_objects(plane, window, shape, value, method, settings)
        names[window.y.slice, window.x.slice] = objects.names
        tables.append(converging_rows(objects, window, shape, method, maps, len(columns), spacing))
    # Empty tables have no reliable column types.
    rows = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    return PlaneObjects(names, rows.sort_values("name", ignore_index=True))


def plane_stars(
    maps: StarMaps,
    shape: tuple[int, int],
    value: int,
    settings: StarSettings,
    means: ReadMaps,
    uncertainties: int,
    spacing: Spacing,
) -> PlaneObjects:
    """Find and measure the objects of a class in a plane by stars.

    Parameters
    ----------
    maps : of the whole plane
    shape : height and width of the plane in pixels
    value : of the class
    settings : of the objects
    means, uncertainties : maps whose mean over each object is measured, and how many of the first are uncertainties
    spacing : of the plane's pixels
    """
    whole, candidates = Window.of(0, shape[0], 0, shape[1]), Candidates.of(maps, shape, settings)
    found = label_stars(lambda _: candidates, whole, shape, 0.0, settings)
    rows = star_rows(found, value, whole, shape, list(means(found.objects.crop)), uncertainties, spacing)
    return PlaneObjects(found.of_class(value).names, rows)
