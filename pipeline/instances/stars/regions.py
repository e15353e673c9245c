"""The objects of a region, as they are in the whole plane, from the candidates around it.

What becomes of a candidate depends on those of a better rank that touch it, and on those that touch these. No ray is
longer than the longest of the plane, so those around a region are known to suffice, or not::

    +--------------------------------------+   crop = region + halo
    |  exposed: a candidate outside of     |
    |  the crop could touch its polygon    |   objects of the region: candidates that are kept and touch it; if one that
    |      +----------------------+        |   touches it, or them, is undecided, a wider crop is taken
    |      |   region             |        |
    |      |     o   o    o       |        |
    |      +----------------------+        |
    +--------------------------------------+

An object is named by its point: ``y * width + x + 1`` in the plane. So regions agree on names without communication.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Span, Window
from chorus.pipeline.instances.regions import RegionObjects, remove
from chorus.pipeline.instances.stars.candidates import Candidates, StarSettings
from chorus.pipeline.instances.stars.drawing import draw
from chorus.pipeline.instances.stars.polygons import whole_vertices
from chorus.pipeline.instances.stars.suppression import KEPT, SUPPRESSED, UNDECIDED, suppress

# The first halo, in longest rays: an object of the region, those that touch it, and what could touch these.
_FIRST_HALO = 4


@dataclass(frozen=True)
class StarObjects:
    """Objects of a region, and what is known of each.

    Attributes
    ----------
    objects : of the region
    scores : (objects + 1,) float32, the probability of the point of each; 0 for the background
    classes : (objects + 1,) int64, the class of each; 0 for the background
    variation : (objects + 1,) float32, the members' disagreement about its outline: the coefficient of variation of its
        rays; NaN where it is unknown
    """

    objects: RegionObjects
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    variation: NDArray[np.float32]

    def of_class(self, value: int) -> RegionObjects:
        """Return the objects of a class alone; the anchors of all stay."""
        others = self.classes != value
        around = self.objects.around.copy()
        remove(around, others)
        names = np.where(np.isin(self.objects.names, self.objects.anchors[~others]), self.objects.names, 0)
        return replace(self.objects, names=names.astype(np.uint64), around=around)


def label_stars(
    read: Callable[[Window], Candidates],
    region: Window,
    plane: tuple[int, int],
    longest: float,
    settings: StarSettings,
) -> StarObjects:
    """Label the objects of a region of a plane.

    Parameters
    ----------
    read : returns the candidates of a window of the plane
    region : window of the region
    plane : height and width of the plane
    longest : no ray of a candidate of the plane is longer, in pixels
    settings : of the objects
    """
    halo = math.ceil(_FIRST_HALO * longest) + 1
    while True:
        crop = _around(region, plane, halo)
        labelled = _label(read(crop), region, crop, plane, math.ceil(longest) + 1, settings)
        if labelled is not None:
            return labelled
        halo *= 2


def _around(region: Window, plane: tuple[int, int], halo: int) -> Window:
    y, x = region.y, region.x
    return Window(
        Span(max(0, y.start - halo), min(plane[0], y.stop + halo)),
        Span(max(0, x.start - halo), min(plane[1], x.stop + halo)),
    )


def _label(
    candidates: Candidates, region: Window, crop: Window, plane: tuple[int, int], longest: int, settings: StarSettings
) -> StarObjects | None:
    """Return the objects of a region, or None if the candidates of the crop do not suffice."""
    vertices = whole_vertices(candidates.points, candidates.rays)
    boxes = _boxes(candidates.points, vertices)
    state = suppress(candidates.points, vertices, _exposed(boxes, crop, plane, longest), settings.nms_threshold)
    own = _touching(boxes, region) & (state != SUPPRESSED)
    area = _hull(region, boxes[own], plane)
    if (_touching(boxes, area) & (state == UNDECIDED)).any():
        return None
    kept = candidates[_touching(boxes, area) & (state == KEPT)]
    labels = draw(kept.points, kept.rays, area)
    sizes = np.bincount(labels.ravel(), minlength=len(kept) + 1)
    remove(labels, sizes < settings.minimum_size)
    anchors = np.concatenate([[0], kept.points[:, 0] * plane[1] + kept.points[:, 1] + 1]).astype(np.uint64)
    objects = RegionObjects(anchors[labels[region.within(area)]], area, labels, anchors, np.full(len(anchors), np.nan))
    return StarObjects(
        objects,
        np.concatenate([np.zeros(1, np.float32), kept.scores]),
        np.concatenate([np.zeros(1, np.int64), kept.classes]),
        np.concatenate([np.full(1, np.nan, np.float32), kept.variation]),
    )


def _boxes(points: NDArray[np.int64], vertices: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return (candidates, 4) first y and x, last y and x that polygons may reach; truncation took less than a pixel."""
    if not len(points):
        return np.zeros((0, 4), np.int64)
    return np.concatenate([points + vertices.min(axis=1) - 1, points + vertices.max(axis=1) + 1], axis=1)


def _exposed(boxes: NDArray[np.int64], crop: Window, plane: tuple[int, int], longest: int) -> NDArray[np.bool_]:
    """Return which polygons a candidate outside of the crop could touch: none beyond the edges of the plane."""
    result: NDArray[np.bool_] = (
        ((boxes[:, 0] - longest < crop.y.start) & (crop.y.start > 0))
        | ((boxes[:, 1] - longest < crop.x.start) & (crop.x.start > 0))
        | ((boxes[:, 2] + longest >= crop.y.stop) & (crop.y.stop < plane[0]))
        | ((boxes[:, 3] + longest >= crop.x.stop) & (crop.x.stop < plane[1]))
    )
    return result


def _touching(boxes: NDArray[np.int64], window: Window) -> NDArray[np.bool_]:
    """Return which boxes have a pixel in a window."""
    result: NDArray[np.bool_] = (
        (boxes[:, 0] < window.y.stop)
        & (boxes[:, 2] >= window.y.start)
        & (boxes[:, 1] < window.x.stop)
        & (boxes[:, 3] >= window.x.start)
    )
    return result


def _hull(region: Window, boxes: NDArray[np.int64], plane: tuple[int, int]) -> Window:
    """Return the smallest window of the plane that holds a region and boxes."""
    y0, x0 = boxes[:, :2].min(axis=0, initial=1 << 62).tolist()
    y1, x1 = boxes[:, 2:].max(axis=0, initial=-1).tolist()
    return Window(
        Span(max(0, min(y0, region.y.start)), min(plane[0], max(y1 + 1, region.y.stop))),
        Span(max(0, min(x0, region.x.start)), min(plane[1], max(x1 + 1, region.x.stop))),
    )
