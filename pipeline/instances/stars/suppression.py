"""Non-maximum suppression: of the candidates that claim one object, the most probable is kept.

Candidates are taken by rank. One that is kept suppresses every later one whose polygon shares more than a threshold of
the smaller one's area with its own. Whether a candidate is kept depends on those of a better rank that touch it, and
through them on others; where not all candidates are known, some stay undecided::

    kept         no known candidate that is kept suppresses it, and none that is unknown or undecided can
    suppressed   by one that is kept
    undecided    an unknown candidate could touch it, or an undecided one would suppress it if it were kept

so that what is kept or suppressed stays so, whatever the unknown ones are.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.instances.flows.compiled import compiled
from chorus.pipeline.instances.stars.polygons import areas_of, shared_area

SUPPRESSED, KEPT, UNDECIDED = 0, 1, 2
_CELL = 32  # pixels
_LEAST_AREA = 1e-10  # that is divided by, as in StarDist


def suppress(
    points: NDArray[np.int64], vertices: NDArray[np.int32], exposed: NDArray[np.bool_], threshold: float
) -> NDArray[np.uint8]:
    """Decide which candidates are kept.

    Parameters
    ----------
    points : (candidates, 2) y and x in pixels of the plane, the best rank first
    vertices : (candidates, rays, 2) whole vertices relative to the points
    exposed : (candidates,) bool, whether an unknown candidate could touch it
    threshold : share of the smaller area from which the better of two suppresses the other, exclusive

    Returns
    -------
    NDArray[np.uint8]
        (candidates,) `SUPPRESSED`, `KEPT` or `UNDECIDED`.
    """
    if not len(points):
        return np.zeros(0, np.uint8)
    low, high = vertices.min(axis=1).astype(np.int64) + points, vertices.max(axis=1).astype(np.int64) + points
    reach = np.maximum(points - low, high - points).max(axis=1)
    cells = (points - points.min(axis=0)) // _CELL
    rows, columns = (cells.max(axis=0) + 1).tolist()
    cell = cells[:, 0] * columns + cells[:, 1]
    members = np.argsort(cell, kind="stable")
    starts = np.searchsorted(cell[members], np.arange(rows * columns + 1))
    longest = np.zeros(rows * columns, np.int64)
    np.maximum.at(longest, cell, reach)
    boxes = np.concatenate([low, high], axis=1)
    arrays = points, vertices, boxes, areas_of(vertices), reach, cells, members, starts, longest
    result: NDArray[np.uint8] = _suppress(*arrays, exposed, threshold, columns)
    return result


@compiled
def _suppress(
    points: NDArray[np.int64],
    vertices: NDArray[np.int32],
    boxes: NDArray[np.int64],
    areas: NDArray[np.float64],
    reach: NDArray[np.int64],
    cells: NDArray[np.int64],
    members: NDArray[np.int64],
    starts: NDArray[np.int64],
    longest: NDArray[np.int64],
    exposed: NDArray[np.bool_],
    threshold: float,
    columns: int,
) -> NDArray[np.uint8]:
    """See `suppress`; candidates are sorted into cells, each with the longest reach of its own."""
    count, rows, furthest = len(points), len(longest) // columns, longest.max()
    state = np.full(count, KEPT, np.uint8)
    for i in range(count):
        if state[i] == SUPPRESSED:
            continue
        if exposed[i]:
            state[i] = UNDECIDED
        around = math.ceil((reach[i] + furthest) / _CELL)
        for row in range(max(0, cells[i, 0] - around), min(rows, cells[i, 0] + around + 1)):
            for column in range(max(0, cells[i, 1] - around), min(columns, cells[i, 1] + around + 1)):
                index = row * columns + column
                apart = max(abs(row - cells[i, 0]), abs(column - cells[i, 1])) - 1
                if apart * _CELL > reach[i] + longest[index]:
                    continue
                for at in range(starts[index], starts[index + 1]):
                    j = members[at]
                    if j <= i or state[j] == SUPPRESSED or (state[j] == UNDECIDED and state[i] == UNDECIDED):
                        continue
                    if (
                        boxes[i, 0] >= boxes[j, 2]
                        or boxes[j, 0] >= boxes[i, 2]
                        or boxes[i, 1] >= boxes[j, 3]
                        or boxes[j, 1] >= boxes[i, 3]
                    ):
                        continue
                    dy, dx = points[j, 0] - points[i, 0], points[j, 1] - points[i, 1]
                    smaller = min(areas[i], areas[j]) + _LEAST_AREA
                    if shared_area(vertices[i], vertices[j], dy, dx) / smaller > threshold:
                        state[j] = state[i] if state[i] == UNDECIDED else SUPPRESSED
    return state
