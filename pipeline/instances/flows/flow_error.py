"""Flow error: distance of the flows from those of the object that they lead to, Cellpose's measure of object quality.

An object's own flows are the gradient of heat that diffuses within it from its centre. They are computed object by
object within its bounding box, so that neither its neighbours nor a crop that contains all of it changes a bit.

References
----------
Stringer et al., Nature Methods 2021 (Cellpose); ``cellpose.dynamics.flow_error``. Two differences: heat diffuses for as
many steps as the object's own size requires, in Cellpose as many as the largest object of the image; and heat of
neighbours is excluded, which in Cellpose bends the flows at the border between touching objects.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.instances.flows.compiled import compiled


def flow_errors(objects: NDArray[np.int32], count: int, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean squared distance between `vectors` and each object's own unit flows.

    Parameters
    ----------
    objects : (y, x) int32, numbers 0 to `count`, 0 for background
    count : largest number
    vectors : (2, y, x) float32, directions of the flows, of length 1 or 0, or flows with their lengths, of at most 1

    Returns
    -------
    NDArray[np.float64]
        (count + 1,) by number, 0 to 4; NaN for the background and for numbers without pixels.
    """
    return _errors(objects, _boxes(objects, count), vectors)


@compiled
def _boxes(objects: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Return the first row, the row beyond the last, and the same for columns, of each number: (count + 1, 4)."""
    height, width = objects.shape
    boxes = np.zeros((count + 1, 4), np.int64)
    for y in range(height):
        for x in range(width):
            i = objects[y, x]
            if i == 0:
                continue
            if boxes[i, 1] == 0:
                boxes[i, 0], boxes[i, 2] = y, x
            boxes[i, 1] = y + 1
            boxes[i, 2], boxes[i, 3] = min(boxes[i, 2], x), max(boxes[i, 3], x + 1)
    return boxes


@compiled
def _errors(objects: NDArray[np.int32], boxes: NDArray[np.int64], vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    errors = np.full(len(boxes), np.nan)
    for i in range(1, len(boxes)):
        top, bottom, left, right = boxes[i]
        if bottom == 0:
            continue
        heat = _heat(objects[top:bottom, left:right] == i)
        total, pixels = 0.0, 0
        for y in range(top, bottom):
            for x in range(left, right):
                if objects[y, x] != i:
                    continue
                a, b = y - top + 1, x - left + 1
                dy, dx = heat[a + 1, b] - heat[a - 1, b], heat[a, b + 1] - heat[a, b - 1]
                length = 1e-60 + np.sqrt(dy * dy + dx * dx)
                dy, dx = dy / length - vectors[0, y, x], dx / length - vectors[1, y, x]
                total += dy * dy + dx * dx
                pixels += 1
        errors[i] = total / pixels
    return errors


@compiled
def _heat(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the heat of a mask, (y + 2, x + 2) with a border of zeros.

    Each step adds one unit at the centre, then takes the mean of 3 x 3 pixels.
    """
    height, width = mask.shape
    centre_y, centre_x = _centre(mask)
    share = np.zeros((height + 2, width + 2))
    for y in range(height):
        for x in range(width):
            share[y + 1, x + 1] = 1 / 9 if mask[y, x] else 0.0
    heat, rows = np.zeros_like(share), np.zeros_like(share)
    for _ in range(2 * (height + width + 2)):
        heat[centre_y + 1, centre_x + 1] += 1
        for y in range(1, height + 1):
            for x in range(1, width + 1):
                rows[y, x] = heat[y, x - 1] + heat[y, x] + heat[y, x + 1]
        for y in range(1, height + 1):
            for x in range(1, width + 1):
                heat[y, x] = (rows[y - 1, x] + rows[y, x] + rows[y + 1, x]) * share[y, x]
    return heat


@compiled
def _centre(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the pixel of a mask that is nearest to its rounded mean position; the first one if there are several."""
    height, width = mask.shape
    sum_y, sum_x, pixels = 0, 0, 0
    for y in range(height):
        for x in range(width):
            if mask[y, x]:
                sum_y, sum_x, pixels = sum_y + y, sum_x + x, pixels + 1
    mean_y, mean_x = int(np.rint(sum_y / pixels)), int(np.rint(sum_x / pixels))
    nearest, found_y, found_x = height * height + width * width, 0, 0
    for y in range(height):
        for x in range(width):
            distance = (y - mean_y) ** 2 + (x - mean_x) ** 2
            if mask[y, x] and distance < nearest:
                nearest, found_y, found_x = distance, y, x
    return found_y, found_x
