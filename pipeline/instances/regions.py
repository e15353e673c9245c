"""The objects of a region, as they are in the whole plane, from a crop around it.

A crop is enough when nothing that the region's objects depend on is beyond it: no path that matters came to its sides,
and none from outside can end near. Where that is not so, a wider crop is taken for this region alone. Paths have a
length, so a crop that is wide enough always exists, whatever the flows are::

    +--------------------------------------+   crop = region + halo
    |    (~~~~) unknown: reached from      |
    |      +-----outside----------+        |
    |      |   region             |        |   every pixel of the region ends where the counts are known,
    |      |     o   o    o       |        |   so all of its objects are whole within the crop
    |      +----------------------+        |
    +--------------------------------------+

An object is named by its anchor, the seed to which its pixels converge: ``y * width + x + 1`` in the plane. So regions
agree on names without talking to each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.geometry import Span, Window
from pipeline.instances.dynamics import Crop, FlowField, steps_for
from pipeline.instances.flow_error import flow_errors
from pipeline.instances.seeds import REACH, find_seeds

# What a crop must reach beyond paths: the reach of seeds, and the outermost cells.
_RIM = REACH + 6


@dataclass(frozen=True)
class ObjectSettings:
    """What defines the objects of a plane.

    Attributes
    ----------
    diameter : typical one, in pixels of the plane; sets how far paths lead, and the first halo
    minimum_size : objects of fewer pixels are removed
    flow_error : objects of a larger flow error are removed, before holes are filled; None keeps all
    """

    diameter: float = 30.0
    minimum_size: int = 15
    flow_error: float | None = None

    @property
    def steps(self) -> int:
        return steps_for(self.diameter)

    @property
    def largest_hole(self) -> int:
        """Holes within an object are filled up to this height and width, in pixels."""
        return max(1, round(self.diameter))

    @property
    def first_halo(self) -> int:
        return 2 * round(self.diameter) + _RIM

    @property
    def widest_halo(self) -> int:
        """Beyond it nothing matters: an object is within two paths of the region, those that touch a hole in it within
        two more."""
        return 4 * self.steps + 2 * self.largest_hole + _RIM


@dataclass(frozen=True)
class RegionObjects:
    """Objects of a region.

    Attributes
    ----------
    names : (y, x) uint64 of the region, 0 for background
    crop : the window that was needed
    around : (y, x) int32 objects of the crop, 0 for background; right for those that have a pixel in the region
    anchors : (objects + 1,) uint64, the names of 0 (background) and of 1, 2, ...
    flow_errors : (objects + 1,) float64, of each before its holes are filled, NaN where there is none;
        see `pipeline.instances.flow_error`
    """

    names: NDArray[np.uint64]
    crop: Window
    around: NDArray[np.int32]
    anchors: NDArray[np.uint64]
    flow_errors: NDArray[np.float64]


def label_region(
    read: Callable[[Window], Crop], region: Window, plane: tuple[int, int], settings: ObjectSettings
) -> RegionObjects:
    """The objects of a region of a plane.

    Parameters
    ----------
    read : gives foreground and flows of a window of the plane
    """
    halo = settings.first_halo
    while True:
        crop = read(_around(region, plane, halo))
        found = _label(crop, region, settings, enough=halo >= settings.widest_halo)
        if found is not None:
            return found
        halo = min(2 * halo, settings.widest_halo)


def _around(region: Window, plane: tuple[int, int], halo: int) -> Window:
    y, x = region.y, region.x
    return Window(
        Span(max(0, y.start - halo), min(plane[0], y.stop + halo)),
        Span(max(0, x.start - halo), min(plane[1], x.stop + halo)),
    )


def _inner(crop: Window, region: Window) -> tuple[slice, slice]:
    """The region within the crop's arrays."""
    return (
        slice(region.y.start - crop.y.start, region.y.stop - crop.y.start),
        slice(region.x.start - crop.x.start, region.x.stop - crop.x.start),
    )


def _label(crop: Crop, region: Window, settings: ObjectSettings, *, enough: bool) -> RegionObjects | None:
    """The objects of a region, or None where the crop does not say for certain; `enough` says that it must."""
    inner = _inner(crop.window, region)
    field = FlowField(crop)
    objects, anchors, unknown = _gathered(crop, field, settings)
    if enough:  # what is unknown is too far away to matter
        unknown[:] = False
    if unknown[inner].any():
        return None
    # An object of which one pixel is known is whole within the crop, so that all regions measure the same. The others
    # are nothing yet.
    sizes = np.bincount(objects.ravel(), minlength=len(anchors))
    known = sizes > np.bincount(objects[unknown], minlength=len(anchors))
    _remove(objects, ~known | (sizes < settings.minimum_size))
    errors = flow_errors(objects, len(anchors) - 1, field.vectors)
    if settings.flow_error is not None:
        _remove(objects, errors > settings.flow_error)
    certain = _fill_holes(objects, unknown, crop, inner, settings.largest_hole)
    if not certain and not enough:
        return None
    return RegionObjects(anchors[objects[inner]], crop.window, objects, anchors, errors)


def _remove(objects: NDArray[np.int32], which: NDArray[np.bool_]) -> None:
    """Make objects background; `which` is (objects + 1,), and 0 stays."""
    if which.any():
        objects[:] = np.where(which, 0, np.arange(len(which), dtype=np.int32))[objects]


def _gathered(
    crop: Crop, field: FlowField, settings: ObjectSettings
) -> tuple[NDArray[np.int32], NDArray[np.uint64], NDArray[np.bool_]]:
    """Objects 0 to n of the crop, their names, and the foreground pixels of which the object is not known."""
    shape = crop.foreground.shape
    paths = field.follow(settings.steps)
    ends = np.bincount(paths.ends[paths.known], minlength=crop.foreground.size)
    seeds = find_seeds(ends.reshape(shape))
    objects, unknown = np.zeros(shape, np.int32), np.zeros(shape, bool)
    objects.ravel()[paths.pixels] = np.where(paths.known, seeds.owner.ravel()[paths.ends], 0)
    if any(crop.open_sides):
        uncertain = field.near_outside(REACH)
        unknown.ravel()[paths.pixels] = ~paths.known | uncertain.ravel()[paths.ends]
    y, x = seeds.y + crop.window.y.start, seeds.x + crop.window.x.start
    names = np.concatenate([[0], y * crop.plane[1] + x + 1]).astype(np.uint64)
    return objects, names, unknown


def _fill_holes(
    objects: NDArray[np.int32],
    unknown: NDArray[np.bool_],
    crop: Crop,
    inner: tuple[slice, slice],
    largest: int,
) -> bool:
    """Give an object's number to background that it encloses alone; whether that is certain for the region's objects.

    Background is connected by its sides and touches an object by sides and corners. What touches the plane's edge, or
    is higher or wider than `largest`, is no hole. Unknown pixels count as background here: they are of no object that
    is known, so that a hole which they touch can be one only if they are part of it.
    """
    components, _ = ndimage.label(objects == 0)
    ours = np.zeros(int(objects.max()) + 1, bool)
    ours[objects[inner]] = True
    certain = True
    for index, box in enumerate(ndimage.find_objects(components), 1):
        if any(side.stop - side.start > largest for side in box):
            continue
        grown = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        hole = components[grown] == index
        touched = np.unique(objects[grown][ndimage.binary_dilation(hole, np.ones((3, 3), bool)) & ~hole])
        edges = (box[0].start == 0, box[0].stop == objects.shape[0], box[1].start == 0, box[1].stop == objects.shape[1])
        open_edges = [more for edge, more in zip(edges, crop.open_sides, strict=True) if edge]
        if len(touched) != 1 or touched[0] == 0 or not all(open_edges):
            continue
        if open_edges or unknown[grown][hole].any():
            certain &= not (ours[touched[0]] or bool((components[inner] == index).any()))
        else:
            objects[grown][hole] = touched[0]
    return certain
