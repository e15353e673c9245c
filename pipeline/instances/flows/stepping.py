"""The loops of `chorus.pipeline.instances.flows.dynamics`: positions that move through a field of steps, cell by cell.

Positions are moved in lanes, `_LANES` at a time, so that a processor's vector instructions move several at once. A lane
whose path is finished takes the next position. A path is finished early if a position equals that of `_PERIOD` steps
before: it is at rest, or moves in a cycle of 1, 2, 3, 4, 6 or 12 steps, and stays in it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.instances.flows.compiled import compiled

_LANES = 32
_PERIOD = 12
# Offsets in the flat arrays of the lanes, and the lengths of these: one array each for integers and floats, since the
# compiler vectorises a loop only if it can prove that arrays do not overlap.
_CELL_Y, _CELL_X, _LEFT, _INTEGERS = 0, _LANES, 2 * _LANES, 3 * _LANES
_PART_Y, _PART_X, _CORNERS, _NUMBERS = 0, _LANES, 2 * _LANES, 10 * _LANES


@compiled
def step_vectors(
    flows: NDArray[np.float32],
    inside: NDArray[np.bool_],
    flow_length: np.float32,
    shortest: np.float32,
    divisor: np.float32,
) -> NDArray[np.float32]:
    """Divide flows by `flow_length`, then by the length that is left, or by `divisor` where that is larger.

    Parameters
    ----------
    flows : (2, pixels) float32
    inside : (pixels,) bool
    flow_length : length of a full flow
    shortest : shares of `flow_length` below which a flow counts as zero
    divisor : the least one: 0 makes vectors of length 1, 1 shortens those that are longer than 1

    Returns
    -------
    NDArray[np.float32]
        (2, pixels), of length 1 at most; zero where a flow is too short, not finite, or not `inside`.
    """
    vectors = np.zeros_like(flows)
    for i in range(flows.shape[1]):
        dy, dx = flows[0, i], flows[1, i]
        if inside[i] and np.isfinite(dy) and np.isfinite(dx):
            dy, dx = dy / flow_length, dx / flow_length
            length = np.sqrt(dy * dy + dx * dx)
            if length >= shortest:
                divided_by = max(length, divisor)
                vectors[0, i], vectors[1, i] = dy / divided_by, dx / divided_by
    return vectors


@compiled
def _move(
    dy: NDArray[np.float32],
    dx: NDArray[np.float32],
    width: int,
    integers: NDArray[np.int32],
    numbers: NDArray[np.float32],
    count: int,
    last: NDArray[np.int32],
    last_part: NDArray[np.float32],
    open_cells: NDArray[np.int32],
) -> None:
    """Move all lanes `count` steps, bilinear between the corners of their cells."""
    zero, one, first = np.float32(0), np.float32(1), np.int32(0)
    last_y, last_x = last[0], last[1]
    end_y, end_x = last_part[0], last_part[1]
    top, bottom, left, right = open_cells[0], open_cells[1], open_cells[2], open_cells[3]
    for _ in range(count):
        for k in range(_LANES):
            i = np.int64(integers[_CELL_Y + k]) * width + integers[_CELL_X + k]
            j = i + width
            numbers[_CORNERS + k] = dy[i]
            numbers[_CORNERS + _LANES + k] = dy[i + 1]
            numbers[_CORNERS + 2 * _LANES + k] = dy[j]
            numbers[_CORNERS + 3 * _LANES + k] = dy[j + 1]
            numbers[_CORNERS + 4 * _LANES + k] = dx[i]
            numbers[_CORNERS + 5 * _LANES + k] = dx[i + 1]
            numbers[_CORNERS + 6 * _LANES + k] = dx[j]
            numbers[_CORNERS + 7 * _LANES + k] = dx[j + 1]
        for k in range(_LANES):
            y, x = numbers[_PART_Y + k], numbers[_PART_X + k]
            rest_y, rest_x = one - y, one - x
            above = numbers[_CORNERS + k] * rest_x + numbers[_CORNERS + _LANES + k] * x
            below = numbers[_CORNERS + 2 * _LANES + k] * rest_x + numbers[_CORNERS + 3 * _LANES + k] * x
            step_y = above * rest_y + below * y
            above = numbers[_CORNERS + 4 * _LANES + k] * rest_x + numbers[_CORNERS + 5 * _LANES + k] * x
            below = numbers[_CORNERS + 6 * _LANES + k] * rest_x + numbers[_CORNERS + 7 * _LANES + k] * x
            step_x = above * rest_y + below * y
            # Split into cell and fraction again, clamped into the crop.
            y, x = y + step_y, x + step_x
            whole_y, whole_x = np.floor(y), np.floor(x)
            a = np.int32(integers[_CELL_Y + k] + np.int32(whole_y))
            b = np.int32(integers[_CELL_X + k] + np.int32(whole_x))
            y, x = y - whole_y, x - whole_x
            y = zero if a < first else (end_y if (a > last_y) | ((a == last_y) & (y > end_y)) else y)
            x = zero if b < first else (end_x if (b > last_x) | ((b == last_x) & (x > end_x)) else x)
            a = first if a < first else (last_y if a > last_y else a)
            b = first if b < first else (last_x if b > last_x else b)
            # The outermost cells count as having left the crop: paths from outside are searched from there.
            integers[_LEFT + k] |= np.int32((a == top) | (a == bottom) | (b == left) | (b == right))
            integers[_CELL_Y + k], integers[_CELL_X + k] = a, b
            numbers[_PART_Y + k], numbers[_PART_X + k] = y, x


@compiled
def _pixel(integers: NDArray[np.int32], numbers: NDArray[np.float32], k: int, across: int, onwards: np.float32) -> int:
    """Return the pixel that lane `k` is in."""
    y = np.int64(integers[_CELL_Y + k]) + (numbers[_PART_Y + k] >= onwards)
    x = np.int64(integers[_CELL_X + k]) + (numbers[_PART_X + k] >= onwards)
    pixel: int = y * across + x
    return pixel


@compiled
def follow(
    vectors: NDArray[np.float32],
    pixels: NDArray[np.int64],
    across: int,
    steps: int,
    onwards: np.float32,
    last: NDArray[np.int32],
    last_part: NDArray[np.float32],
    open_cells: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Move positions by `steps` steps.

    Parameters
    ----------
    vectors : (2, y, x) float32, steps of at most about one pixel; at least two rows and two columns
    pixels : (n,) int64, where positions begin, as ``y * across + x``
    across : number of columns that flat indices count
    steps : number of Euler steps
    onwards : fraction within a cell from which a position is in the next pixel, 0.5 to 1
    last, last_part : (2,) int32 and float32 of y and x, the last position as a cell and the fraction within it
    open_cells : (4,) int32, rows and columns of cells at the open top, bottom, left and right; -1 if a side is not open

    Returns
    -------
    ends : (n,) int64, where positions end, as ``y * across + x``
    known : (n,) bool, False for positions that were in an open cell
    """
    width = vectors.shape[2]
    dy, dx = vectors[0].ravel(), vectors[1].ravel()
    n = len(pixels)
    ends, known = np.empty(n, np.int64), np.empty(n, np.bool_)
    integers, numbers = np.zeros(_INTEGERS, np.int32), np.zeros(_NUMBERS, np.float32)
    # First the steps that do not fill a period, so that the last position is one that is compared.
    cells, parts = np.empty((3, n), np.int32), np.empty((2, n), np.float32)
    for start in range(0, n, _LANES):
        filled = min(_LANES, n - start)
        for k in range(filled):
            y, x = np.int32(pixels[start + k] // across), np.int32(pixels[start + k] % across)
            a, b = min(y, last[0]), min(x, last[1])
            integers[_CELL_Y + k], integers[_CELL_X + k] = a, b
            numbers[_PART_Y + k], numbers[_PART_X + k] = np.float32(y - a), np.float32(x - b)
            at_side = (a == open_cells[0]) | (a == open_cells[1]) | (b == open_cells[2]) | (b == open_cells[3])
            integers[_LEFT + k] = np.int32(at_side)
        _move(dy, dx, width, integers, numbers, steps % _PERIOD, last, last_part, open_cells)
        for k in range(filled):
            for part in range(3):
                cells[part, start + k] = integers[part * _LANES + k]
            for part in range(2):
                parts[part, start + k] = numbers[part * _LANES + k]
            ends[start + k] = _pixel(integers, numbers, k, across, onwards)
            known[start + k] = integers[_LEFT + k] == 0
    if steps < _PERIOD:
        return ends, known
    # Then period by period; `lane` is the index of the position in a lane, `n` if the lane is empty.
    lane, periods = np.full(_LANES, n, np.int64), np.zeros(_LANES, np.int64)
    before_cell, before_part = np.empty(_INTEGERS, np.int32), np.empty(_CORNERS, np.float32)
    following, running = 0, 0
    while following < n or running:
        for k in range(_LANES):
            if lane[k] == n and following < n:
                for part in range(3):
                    integers[part * _LANES + k] = cells[part, following]
                for part in range(2):
                    numbers[part * _LANES + k] = parts[part, following]
                lane[k], periods[k] = following, steps // _PERIOD
                following += 1
                running += 1
        before_cell[:] = integers
        before_part[:] = numbers[:_CORNERS]
        _move(dy, dx, width, integers, numbers, _PERIOD, last, last_part, open_cells)
        for k in range(_LANES):
            a, b, y, x = integers[_CELL_Y + k], integers[_CELL_X + k], numbers[_PART_Y + k], numbers[_PART_X + k]
            periods[k] -= 1
            same = (a == before_cell[_CELL_Y + k]) & (b == before_cell[_CELL_X + k])
            same &= (y == before_part[_PART_Y + k]) & (x == before_part[_PART_X + k])
            if lane[k] < n and (same or periods[k] == 0):
                ends[lane[k]] = _pixel(integers, numbers, k, across, onwards)
                known[lane[k]] = integers[_LEFT + k] == 0
                lane[k] = n
                running -= 1
    return ends, known


@compiled
def flood(vectors: NDArray[np.float32], open_cells: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return the cells that a path may reach from the open ones.

    To leave a cell by its top a path needs a vector that points up at one of the two upper corners, and so on for the
    other sides.

    Parameters
    ----------
    vectors : (2, y, x) float32
    open_cells : (4,) int32, see `follow`

    Returns
    -------
    NDArray[np.bool_]
        (y - 1, x - 1).
    """
    height, width = vectors.shape[1] - 1, vectors.shape[2] - 1
    reached = np.zeros((height, width), np.bool_)
    front = np.empty(height * width, np.int64)  # a cell is in it once at most
    count = 0
    for y in range(height):
        for x in range(width):
            if y == open_cells[0] or y == open_cells[1] or x == open_cells[2] or x == open_cells[3]:
                reached[y, x] = True
                front[count] = y * width + x
                count += 1
    while count:
        count -= 1
        y, x = front[count] // width, front[count] % width
        up = vectors[0, y, x] < 0 or vectors[0, y, x + 1] < 0
        down = vectors[0, y + 1, x] > 0 or vectors[0, y + 1, x + 1] > 0
        left = vectors[1, y, x] < 0 or vectors[1, y + 1, x] < 0
        right = vectors[1, y, x + 1] > 0 or vectors[1, y + 1, x + 1] > 0
        for a in range(-1, 2):
            for b in range(-1, 2):
                if (a < 0 and not up) or (a > 0 and not down) or (b < 0 and not left) or (b > 0 and not right):
                    continue
                if 0 <= y + a < height and 0 <= x + b < width and not reached[y + a, x + b]:
                    reached[y + a, x + b] = True
                    front[count] = (y + a) * width + x + b
                    count += 1
    return reached


@compiled
def spread(reached: NDArray[np.bool_], before: int, after: int) -> NDArray[np.bool_]:
    """Dilate a mask by a rectangle.

    Parameters
    ----------
    reached : (y, x) bool
    before, after : pixels; a pixel is set if one of `reached` lies from `before` before it to `after` after it, on both
        axes

    Returns
    -------
    NDArray[np.bool_]
        (y, x).
    """
    height, width = reached.shape
    rows, near = np.zeros_like(reached), np.zeros_like(reached)
    for y in range(height):
        nearest = -before - 1
        for x in range(width):
            nearest = x if reached[y, x] else nearest
            rows[y, x] = x - nearest <= before
        nearest = width + after
        for x in range(width - 1, -1, -1):
            nearest = x if reached[y, x] else nearest
            rows[y, x] |= nearest - x <= after
    last = np.full(width, -before - 1, np.int64)
    for y in range(height):
        for x in range(width):
            last[x] = y if rows[y, x] else last[x]
            near[y, x] = y - last[x] <= before
    last[:] = height + after
    for y in range(height - 1, -1, -1):
        for x in range(width):
            last[x] = y if rows[y, x] else last[x]
            near[y, x] |= last[x] - y <= after
    return near
