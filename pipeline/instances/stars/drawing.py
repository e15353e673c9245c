"""Pixels of polygons: those whose centre is within, as scikit-image and StarDist draw them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.flows.compiled import compiled
from chorus.pipeline.instances.stars.polygons import ray_directions


def draw(points: NDArray[np.int64], rays: NDArray[np.float32], window: Window) -> NDArray[np.int32]:
    """Draw polygons one over the other, the first on top.

    Parameters
    ----------
    points : (polygons, 2) y and x in pixels of the plane
    rays : (polygons, rays) lengths in pixels
    window : of the plane

    Returns
    -------
    NDArray[np.int32]
        (y, x) of the window: 1 for the first polygon, 2 for the second, ..., 0 for none.
    """
    labels = np.zeros(window.shape, np.int32)
    directions = ray_directions(rays.shape[1])
    for index in reversed(range(len(points))):
        # Relative to the point, so that a polygon has the same pixels wherever it is.
        y, x = points[index] - (window.y.start, window.x.start)
        _draw(labels, int(y), int(x), rays[index].astype(np.float64)[:, None] * directions, index + 1)
    return labels


@compiled
def _draw(labels: NDArray[np.int32], y: int, x: int, vertices: NDArray[np.float64], value: int) -> None:
    """Draw a polygon around (y, x), rows by where its edges cross them."""
    height, width = labels.shape
    count = vertices.shape[0]
    crossings = np.empty(count, np.float64)
    first, last = math.ceil(vertices[:, 0].min()), math.floor(vertices[:, 0].max())
    for row in range(max(first, -y), min(last, height - 1 - y) + 1):
        found = 0
        for k in range(count):
            after = k + 1 if k + 1 < count else 0
            y0, x0, y1, x1 = vertices[k, 0], vertices[k, 1], vertices[after, 0], vertices[after, 1]
            if (y0 <= row) != (y1 <= row):
                crossings[found] = x0 + (row - y0) * (x1 - x0) / (y1 - y0)
                found += 1
        ordered = np.sort(crossings[:found])
        for pair in range(0, found - 1, 2):
            start = max(math.ceil(ordered[pair]) + x, 0)
            stop = min(math.floor(ordered[pair + 1]) + x, width - 1) + 1
            for column in range(start, stop):
                labels[y + row, column] = value
