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
    """

    diameter: float = 30.0
    minimum_size: int = 15

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
    """

    names: NDArray[np.uint64]
    crop: Window
    around: NDArray[np.int32]
    anchors: NDArray[np.uint64]


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
        objects, anchors, certain = _label(crop, region, settings, enough=halo >= settings.widest_halo)
        if certain:
            return RegionObjects(anchors[objects[_inner(crop.window, region)]], crop.window, objects, anchors)
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


def _label(
    crop: Crop, region: Window, settings: ObjectSettings, *, enough: bool
) -> tuple[NDArray[np.int32], NDArray[np.uint64], bool]:
    """Objects of the crop, their names, and whether the region's are certain: `enough` says that they must be."""
    inner = _inner(crop.window, region)
    objects, anchors, unknown = _gathered(crop, settings)
    if enough:  # what is unknown is too far away to matter
        unknown[:] = False
    certain = not unknown[inner].any()
    sizes = np.bincount(objects.ravel(), minlength=len(anchors))
    small = sizes < settings.minimum_size
    small[0] = False
    objects[small[objects]] = 0
    certain &= _fill_holes(objects, unknown, crop, inner, settings.largest_hole)
    return objects, anchors, certain or enough


def _gathered(crop: Crop, settings: ObjectSettings) -> tuple[NDArray[np.int32], NDArray[np.uint64], NDArray[np.bool_]]:
    """Objects 0 to n of the crop, their names, and the foreground pixels of which the object is not known."""
    shape = crop.foreground.shape
    field = FlowField(crop)
    paths = field.follow(settings.steps)
    ends = np.bincount((paths.end_y * shape[1] + paths.end_x)[paths.known], minlength=crop.foreground.size)
    seeds = find_seeds(ends.reshape(shape))
    objects, unknown = np.zeros(shape, np.int32), np.zeros(shape, bool)
    objects[paths.y, paths.x] = np.where(paths.known, seeds.owner[paths.end_y, paths.end_x], 0)
    if any(crop.open_sides):
        uncertain = ndimage.maximum_filter(field.reached_from_outside(), size=2 * REACH + 1, mode="constant")
        unknown[paths.y, paths.x] = ~paths.known | uncertain[paths.end_y, paths.end_x]
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
