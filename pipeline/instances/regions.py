"""The objects of a region, as they are in the whole plane, from a crop around it.

A crop is sufficient if nothing that the region's objects depend on lies beyond it: no relevant path reaches its sides,
and no path from outside can end near them. Otherwise a wider crop is taken for this region alone. Paths have a maximum
length, so a sufficiently wide crop always exists, whatever the flows are::

    +--------------------------------------+   crop = region + halo
    |    (~~~~) unknown: reached from      |
    |      +-----outside----------+        |
    |      |   region             |        |   every pixel of the region ends where the counts are known,
    |      |     o   o    o       |        |   so all of its objects are whole within the crop
    |      +----------------------+        |
    +--------------------------------------+

An object is named by its anchor, the seed to which its pixels converge: ``y * width + x + 1`` in the plane. So regions
agree on names without communication.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from chorus.pipeline.core.geometry import Span, Window
from chorus.pipeline.instances.flows.dynamics import Crop, FlowField, Paths, steps_for
from chorus.pipeline.instances.flows.flow_error import flow_errors
from chorus.pipeline.instances.flows.seeds import REACH, Seeds, find_seeds

# Pixels that a crop needs beyond the paths: the reach of seeds, and the outermost cells.
_RIM = REACH + 6
_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class ObjectSettings:
    """All settings that define the objects of a plane.

    Attributes
    ----------
    diameter : of a typical object, in pixels of the plane; sets the length of paths, and the first halo
    minimum_size : objects of fewer pixels are removed
    flow_error : objects of a larger flow error are removed, before holes are filled; None keeps all
    lengths : whether paths and flow errors take flows with their lengths, as Cellpose does, or their directions alone;
        see `chorus.pipeline.instances.flows.dynamics.FlowField`
    """

    diameter: float = 30.0
    minimum_size: int = 15
    flow_error: float | None = None
    lengths: bool = False

    @property
    def steps(self) -> int:
        """Number of Euler steps of a path."""
        return steps_for(self.diameter)

    @property
    def largest_hole(self) -> int:
        """Holes within an object are filled up to this height and width, in pixels."""
        return max(1, round(self.diameter))

    @property
    def first_halo(self) -> int:
        """Pixels around a region that are read first."""
        return 2 * round(self.diameter) + _RIM

    @property
    def widest_halo(self) -> int:
        """Pixels around a region beyond which nothing matters.

        An object is within two paths of the region, and objects that touch a hole in it within two more.
        """
        return 4 * self.steps + 2 * self.largest_hole + _RIM


@dataclass(frozen=True)
class RegionObjects:
    """Objects of a region.

    Attributes
    ----------
    names : (y, x) uint64 of the region, 0 for background
    crop : the window that was needed
    around : (y, x) int32 objects of the crop, 0 for background; correct for objects with a pixel in the region
    anchors : (objects + 1,) uint64, the names of 0 (background) and of 1, 2, ...
    flow_errors : (objects + 1,) float64, of each object before its holes are filled, NaN if undefined;
        see `chorus.pipeline.instances.flows.flow_error`
    """

    names: NDArray[np.uint64]
    crop: Window
    around: NDArray[np.int32]
    anchors: NDArray[np.uint64]
    flow_errors: NDArray[np.float64]


def label_region(
    read: Callable[[Window], Crop], region: Window, plane: tuple[int, int], settings: ObjectSettings
) -> RegionObjects:
    """Label the objects of a region of a plane.

    Parameters
    ----------
    read : returns foreground and flows of a window of the plane
    region : window of the region
    plane : height and width of the plane
    settings : of the objects
    """
    halo = settings.first_halo
    while True:
        crop = read(_around(region, plane, halo))
        labelled = _label(crop, region, settings, enough=halo >= settings.widest_halo)
        if labelled is not None:
            return labelled
        halo = min(2 * halo, settings.widest_halo)


def _around(region: Window, plane: tuple[int, int], halo: int) -> Window:
    y, x = region.y, region.x
    return Window(
        Span(max(0, y.start - halo), min(plane[0], y.stop + halo)),
        Span(max(0, x.start - halo), min(plane[1], x.stop + halo)),
    )


def _label(crop: Crop, region: Window, settings: ObjectSettings, *, enough: bool) -> RegionObjects | None:
    """Return the objects of a region, or None if the crop is not sufficient; with `enough` it is known to be."""
    inner = region.within(crop.window)
    field = FlowField(crop, lengths=settings.lengths)
    objects, anchors, unknown = _gathered(crop, field, settings)
    if enough:  # what is unknown is too far away to matter
        unknown[:] = False
    if unknown[inner].any():
        return None
    remove(objects, unsettled(objects, unknown, len(anchors), settings.minimum_size))
    errors = flow_errors(objects, len(anchors) - 1, field.vectors)
    if settings.flow_error is not None:
        remove(objects, errors > settings.flow_error)
    largest = (settings.largest_hole, settings.largest_hole)
    certain = fill_holes(objects, unknown, crop.open_sides, inner, largest)
    if not certain and not enough:
        return None
    return RegionObjects(anchors[objects[inner]], crop.window, objects, anchors, errors)


def _gathered(
    crop: Crop, field: FlowField, settings: ObjectSettings
) -> tuple[NDArray[np.int32], NDArray[np.uint64], NDArray[np.bool_]]:
    """Return objects 0 to n of the crop, their names, and the foreground pixels whose object is unknown."""
    paths = field.follow(settings.steps)
    seeds = find_seeds(ends_of(paths, crop.foreground.shape))
    uncertain = field.near_outside(REACH) if any(crop.open_sides) else None
    objects, unknown = owned(paths, seeds, uncertain)
    origin = crop.window.y.start, crop.window.x.start
    return objects, names_of(seeds, origin, crop.plane), unknown


def ends_of(paths: Paths, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Count the known paths that end in each pixel.

    Parameters
    ----------
    paths : of a crop
    shape : of the crop

    Returns
    -------
    NDArray[np.int64]
        Of `shape`.
    """
    return np.bincount(paths.ends[paths.known], minlength=math.prod(shape)).reshape(shape)


def owned(
    paths: Paths, seeds: Seeds, uncertain: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Assign each foreground pixel of a crop to the seed in which its path ends.

    Parameters
    ----------
    paths : of the crop
    seeds : of the crop
    uncertain : bool, in the shape of the crop, pixels near which a path from outside may end; None if there is no
        outside

    Returns
    -------
    objects : int32, in the shape of the crop, rank of the seed plus 1, 0 for none
    unknown : bool, of the same shape, foreground pixels whose object is unknown
    """
    objects, unknown = np.zeros(seeds.owner.shape, np.int32), np.zeros(seeds.owner.shape, bool)
    objects.ravel()[paths.pixels] = np.where(paths.known, seeds.owner.ravel()[paths.ends], 0)
    if uncertain is not None:
        unknown.ravel()[paths.pixels] = ~paths.known | uncertain.ravel()[paths.ends]
    return objects, unknown


def names_of(seeds: Seeds, origin: Sequence[int], shape: Sequence[int]) -> NDArray[np.uint64]:
    """Return the names of the objects of a crop.

    Parameters
    ----------
    seeds : of the crop
    origin : position of the crop in the plane or volume
    shape : of the plane or volume

    Returns
    -------
    NDArray[np.uint64]
        (objects + 1,), 0 for the background first.
    """
    flat = np.zeros(seeds.places.shape[1], np.int64)
    for places, start, length in zip(seeds.places, origin, shape, strict=True):
        flat = flat * length + places + start
    return np.concatenate([[0], flat + 1]).astype(np.uint64)


def unsettled(
    objects: NDArray[np.int32], unknown: NDArray[np.bool_], count: int, minimum_size: int
) -> NDArray[np.bool_]:
    """Return which objects are too small, or not known to be objects.

    An object with one known pixel is whole within the crop, so that all regions measure the same. Objects without a
    known pixel are left out.

    Parameters
    ----------
    objects : int32, in the shape of the crop, 0 for background
    unknown : bool, of the same shape
    count : number of objects, including the background
    minimum_size : in pixels

    Returns
    -------
    NDArray[np.bool_]
        (count,).
    """
    flat = objects.ravel()
    sizes = np.zeros(count, np.int64)
    for start in range(0, flat.size, _AT_ONCE):  # since bincount makes a copy in 64 bits
        sizes += np.bincount(flat[start : start + _AT_ONCE], minlength=count)
    known = sizes > np.bincount(objects[unknown], minlength=count)
    return ~known | (sizes < minimum_size)


def remove(objects: NDArray[np.int32], which: NDArray[np.bool_]) -> None:
    """Set objects to background, in place.

    Parameters
    ----------
    objects : int32, any shape
    which : (objects + 1,) bool; entry 0, the background, is ignored
    """
    if which.any():
        objects[:] = np.where(which, 0, np.arange(len(which), dtype=np.int32))[objects]


def fill_holes(
    objects: NDArray[np.int32],
    unknown: NDArray[np.bool_],
    open_sides: Sequence[bool],
    inner: tuple[slice, ...],
    largest: tuple[int, ...],
) -> bool:
    """Fill the holes of objects in place: background that a single object encloses gets its number.

    Background is connected by sides and touches an object by sides and corners. Background that touches the plane's
    edge, or is longer than `largest` on an axis, is no hole. Unknown pixels count as background here: they belong to no
    known object, so a hole that they touch can only be a hole if they are part of it.

    Parameters
    ----------
    objects : int32, (y, x) or (z, y, x) of the crop, 0 for background; changed in place
    unknown : bool, of the same shape, foreground pixels whose object is unknown
    open_sides : whether the plane continues beyond the crop's first and last pixel of each axis
    inner : the region within the crop
    largest : length of the largest hole, in pixels, per axis

    Returns
    -------
    bool
        Whether the result is certain for the region's objects.
    """
    components, _ = ndimage.label(objects == 0)
    ours = np.zeros(int(objects.max()) + 1, bool)
    ours[objects[inner]] = True
    around, certain = np.ones((3,) * objects.ndim, bool), True
    for index, box in enumerate(ndimage.find_objects(components), 1):
        if any(side.stop - side.start > most for side, most in zip(box, largest, strict=True)):
            continue
        grown = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        hole = components[grown] == index
        touched = np.unique(objects[grown][ndimage.binary_dilation(hole, around) & ~hole])
        at_edge = [at for side, n in zip(box, objects.shape, strict=True) for at in (side.start == 0, side.stop == n)]
        open_edges = [more for edge, more in zip(at_edge, open_sides, strict=True) if edge]
        if len(touched) != 1 or touched[0] == 0 or not all(open_edges):
            continue
        if open_edges or unknown[grown][hole].any():
            certain &= not (ours[touched[0]] or bool((components[inner] == index).any()))
        else:
            objects[grown][hole] = touched[0]
    return certain
