"""The polygons that rays enclose: their directions, whole vertices, areas, and the area that two of them share.

Suppression compares polygons whose vertices are truncated to whole pixels, as StarDist does. The shared area is exact:
it is the sum, over all pairs of edges of both polygons, of the area below both edges, with the sign of their directions
along x. ::

        f        the area below an edge is that between the edge and a line below both polygons; where polygons are
     __/__       traversed counter-clockwise, edges that run back subtract what is outside of the polygon
    / /e  |
   |_/____|      StarDist's library rounds the points where edges cross to whole pixels; here they are not rounded.

References
----------
``stardist/lib/stardist2d.cpp``, StarDist 0.9.2.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.instances.flows.compiled import compiled


def ray_directions(count: int) -> NDArray[np.float64]:
    """Return unit vectors (dy, dx) of the rays: ray k is at the angle ``2 pi k / count`` from x towards y.

    They are exact along the axes, and those that a flip or a turn exchanges have components of the same magnitude.

    Returns
    -------
    NDArray[np.float64]
        (count, 2).
    """
    directions = np.empty((count, 2))
    for ray in range(count):
        quadrant, rest = divmod(4 * ray, count)
        # Of angles up to 45 degrees, so that sines and cosines of mirrored angles are the same numbers.
        small = min(rest, count - rest) * math.pi / (2 * count)
        sine, cosine = (math.sin(small), math.cos(small)) if 2 * rest != count else (math.sqrt(0.5), math.sqrt(0.5))
        if 2 * rest > count:
            sine, cosine = cosine, sine
        y, x = ((sine, cosine), (cosine, -sine), (-sine, -cosine), (-cosine, sine))[quadrant]
        directions[ray] = y, x
    return directions


def whole_vertices(points: NDArray[np.int64], rays: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return the vertices of polygons, truncated towards zero in coordinates of the plane.

    Parameters
    ----------
    points : (polygons, 2) y and x of the points that the rays start from, pixels of the plane
    rays : (polygons, rays) lengths in pixels

    Returns
    -------
    NDArray[np.int32]
        (polygons, rays, 2) y and x relative to the points.
    """
    vertices = np.empty((*rays.shape, 2), np.int32)
    for axis, direction in enumerate(ray_directions(rays.shape[1]).T):
        start = points[:, None, axis]
        vertices[..., axis] = np.trunc(start + rays * direction).astype(np.int64) - start
    return vertices


def areas_of(vertices: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the areas of polygons in pixels.

    Parameters
    ----------
    vertices : (polygons, rays, 2) y and x

    Returns
    -------
    NDArray[np.float64]
        (polygons,).
    """
    y, x = (vertices[..., axis].astype(np.int64) for axis in (0, 1))
    next_y, next_x = (np.roll(values, -1, axis=1) for values in (y, x))
    result: NDArray[np.float64] = 0.5 * np.abs((x * next_y - y * next_x).sum(axis=1))
    return result


@compiled
def shared_area(a: NDArray[np.int32], b: NDArray[np.int32], dy: int, dx: int) -> float:
    """Return the area in pixels that two polygons share.

    Parameters
    ----------
    a, b : (rays, 2) int32 whole vertices, y and x, relative to the point of each
    dy, dx : from the point of `a` to that of `b`
    """
    rays = a.shape[0]
    low, left, right = b[0, 0] + dy, b[0, 1] + dx, b[0, 1] + dx
    for k in range(rays):
        low = min(low, a[k, 0], b[k, 0] + dy)
        left, right = min(left, b[k, 1] + dx), max(right, b[k, 1] + dx)
    total = 0.0
    for k in range(rays):
        after = k + 1 if k + 1 < rays else 0
        ax0, ax1 = a[k, 1], a[after, 1]
        if ax0 == ax1 or max(ax0, ax1) <= left or min(ax0, ax1) >= right:
            continue
        ay0, ay1 = float(a[k, 0] - low), float(a[after, 0] - low)
        a_slope = (ay1 - ay0) / (ax1 - ax0)
        a_left, a_right = min(ax0, ax1), max(ax0, ax1)
        for n in range(rays):
            following = n + 1 if n + 1 < rays else 0
            bx0, bx1 = b[n, 1] + dx, b[following, 1] + dx
            start, end = max(a_left, min(bx0, bx1)), min(a_right, max(bx0, bx1))
            if start >= end:
                continue
            by0, by1 = float(b[n, 0] + dy - low), float(b[following, 0] + dy - low)
            b_slope = (by1 - by0) / (bx1 - bx0)
            a_first, a_last = ay0 + a_slope * (start - ax0), ay0 + a_slope * (end - ax0)
            b_first, b_last = by0 + b_slope * (start - bx0), by0 + b_slope * (end - bx0)
            first, last = a_first - b_first, a_last - b_last
            width = end - start
            if first * last >= 0:  # one is below the other all along
                below = 0.5 * width * (min(a_first, b_first) + min(a_last, b_last))
            else:
                share = first / (first - last)
                height = a_first + share * (a_last - a_first)
                below = (
                    0.5
                    * width
                    * (share * (min(a_first, b_first) + height) + (1.0 - share) * (height + min(a_last, b_last)))
                )
            total += below if (ax1 > ax0) == (bx1 > bx0) else -below
    return total
