"""Outlines of pixels as polygons along their edges: filled again, they give back exactly these pixels.

::

    mask (y, x)      vertices are corners of pixels, (x, y)
    . # # .
    . # . .          (1, 0) (3, 0) (3, 1) (2, 1) (2, 2) (1, 2)

Pixel (y, x) is the square from (x, y) to (x + 1, y + 1), as in ImageJ's own traced selections and in QuPath.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# How often an outline turns at a corner of the raster, by which of the four pixels around are inside: 1 top left, 2 top
# right, 4 bottom left, 8 bottom right. Once where one or three are, twice where two that only touch at the corner are.
_FALLING, _RISING = 1 + 8, 2 + 4
_TURNS = np.isin(np.arange(16), (1, 2, 4, 7, 8, 11, 13, 14)).astype(np.int64)
_TURNS[[_FALLING, _RISING]] = 2


@dataclass(frozen=True)
class Polygon:
    """A part of an object whose pixels are joined by sides.

    Attributes
    ----------
    exterior : (vertices, 2) int64, x and y, not closed; its signed area in these coordinates is positive
    holes : the same of each hole, signed areas negative

    No ring touches itself: where an outline does, it is two rings that touch each other. So polygons are valid in the
    sense of OGC 06-103r4, 6.1.11.
    """

    exterior: NDArray[np.int64]
    holes: tuple[NDArray[np.int64], ...]

    @property
    def rings(self) -> tuple[NDArray[np.int64], ...]:
        """The exterior, then the holes, each (vertices, 2) int64 of x and y."""
        return self.exterior, *self.holes


def polygons(mask: NDArray[np.bool_], top: int = 0, left: int = 0) -> list[Polygon]:
    """Trace the outlines of an object from its pixels.

    Parameters
    ----------
    mask : (y, x) bool, its first pixel is at (`top`, `left`) of the plane

    Returns
    -------
    list[Polygon]
        One polygon per part, in the order of their first pixels; parts that touch at a corner are two. Vertices are
        those where an outline turns.
    """
    offset = np.array([left, top])
    rings = _rings(mask)
    if len(rings) == 1:  # as of most objects
        return [Polygon(rings[0] + offset, ())]
    parts, _ = ndimage.label(mask)
    result = []
    for index, box in enumerate(ndimage.find_objects(parts), 1):
        start = offset + np.array([box[1].start, box[0].start])
        own = [ring + start for ring in _rings(parts[box] == index)]
        (exterior,) = [ring for ring in own if signed_area(ring) > 0]
        result.append(Polygon(exterior, tuple(ring for ring in own if ring is not exterior)))
    return result


def signed_area(ring: NDArray[np.int64]) -> float:
    """Compute the area within a ring after Gauss; positive where x turns towards y along it.

    Parameters
    ----------
    ring : (vertices, 2) x and y in pixels, not closed

    Returns
    -------
    float
        In square pixels.
    """
    following = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * following[:, 1] - following[:, 0] * ring[:, 1]).sum()) / 2


def _rings(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Trace the simple rings around pixels (y, x) that are joined by sides, the pixels always on the same hand.

    Turns of a row of corners are joined two by two by horizontal edges, those of a column by vertical ones.
    """
    inside = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.uint8)
    inside[1:-1, 1:-1] = mask
    code = inside[:-1, :-1] + 2 * inside[:-1, 1:] + 4 * inside[1:, :-1] + 8 * inside[1:, 1:]
    turns = _TURNS[code.ravel()]
    corners = np.repeat(np.arange(len(turns)), turns)
    codes = code.ravel()[corners]
    y, x = np.divmod(corners, code.shape[1])
    touching = bool((turns == 2).any())
    if touching:
        # Of a corner that is there twice the first one ends the edge from the left. The pixel at its left is the upper
        # one where the pair falls to the right: the edge goes on upwards; else downwards, and the second one upwards.
        second = np.append(False, corners[1:] == corners[:-1])
        by_column = np.lexsort((second ^ (codes == _RISING), y, x))
    else:
        by_column = np.argsort(x, kind="stable")
    vertical = np.empty(len(corners), np.int64)
    vertical[by_column[0::2]], vertical[by_column[1::2]] = by_column[1::2], by_column[0::2]
    # Edge e lies between turns 2e and 2e + 1; it is walked to the right where the pixels are below it.
    left = np.arange(0, len(corners), 2)
    below = (codes[left] & 8 > 0) & (codes[left] & 2 == 0)
    first = np.where(below, left, left + 1)
    points = np.stack([x, y], axis=1)
    rings: list[NDArray[np.int64]] = []
    for cycle in _cycles((vertical[first ^ 1] // 2).tolist()):
        begin = first[cycle]
        ring = points[np.stack([begin, begin ^ 1], axis=1).ravel()]
        rings += _simple(ring) if touching else [ring]
    return rings


def _cycles(following: list[int]) -> list[list[int]]:
    """Return the cycles of a permutation."""
    seen = [False] * len(following)
    cycles = []
    for start in range(len(following)):
        cycle, edge = [], start
        while not seen[edge]:
            seen[edge] = True
            cycle.append(edge)
            edge = following[edge]
        if cycle:
            cycles.append(cycle)
    return cycles


def _simple(ring: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Split a ring that touches itself into simple rings, cutting where it returns to a vertex."""
    path: list[tuple[int, int]] = []
    index_of: dict[tuple[int, int], int] = {}
    rings = []
    for x, y in ring.tolist():
        if (x, y) in index_of:
            start = index_of[x, y]
            rings.append(np.array(path[start:], np.int64))
            for vertex in path[start + 1 :]:
                del index_of[vertex]
            del path[start + 1 :]
        else:
            index_of[x, y] = len(path)
            path.append((x, y))
    return [*rings, np.array(path, np.int64)]
