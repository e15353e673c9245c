"""The loops of `chorus.pipeline.instances.volumes.dynamics`: those of `stepping`, between 8 corners.

Positions are moved in lanes, `_LANES` at a time. A batch stops early if each of its positions equals that of `_PERIOD`
steps before: every further period then ends at the same positions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.instances.flows.compiled import compiled

_LANES = 32
_PERIOD = 12
# Offsets in the flat arrays of the lanes: one array each for integers and floats, so that the compiler can prove that
# arrays do not overlap. Cells or fractions on z, y and x come first.
_LEFT, _INTEGERS = 3 * _LANES, 4 * _LANES
_STEPS, _CORNERS, _NUMBERS = 3 * _LANES, 6 * _LANES, 30 * _LANES


@compiled
def unit_vectors(
    flows: NDArray[np.floating],
    inside: NDArray[np.bool_],
    flow_length: np.float32,
    shortest: np.float32,
    step: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Divide flows by their length, and multiply them by `step`.

    Parameters
    ----------
    flows : (3, voxels) of any floating dtype
    inside : (voxels,) bool
    flow_length : length of a full flow
    shortest : share of `flow_length` below which a flow counts as zero
    step : (3,) float32, length of one step in planes, rows and columns

    Returns
    -------
    NDArray[np.float32]
        (voxels, 3); zero where a flow is too short, not finite, or not `inside`.
    """
    vectors = np.zeros((flows.shape[1], 3), np.float32)
    for i in range(flows.shape[1]):
        if inside[i]:
            dz, dy, dx = np.float32(flows[0, i]), np.float32(flows[1, i]), np.float32(flows[2, i])
            if np.isfinite(dz) and np.isfinite(dy) and np.isfinite(dx):
                dz, dy, dx = dz / flow_length, dy / flow_length, dx / flow_length
                length = np.sqrt(dz * dz + dy * dy + dx * dx)
                if length >= shortest:
                    vectors[i, 0] = dz / length * step[0]
                    vectors[i, 1] = dy / length * step[1]
                    vectors[i, 2] = dx / length * step[2]
    return vectors


@compiled
def _move(
    vectors: NDArray[np.float32],
    height: int,
    width: int,
    integers: NDArray[np.int32],
    numbers: NDArray[np.float32],
    count: int,
    last: NDArray[np.int32],
    last_part: NDArray[np.float32],
    open_cells: NDArray[np.int32],
) -> None:
    """Move all lanes `count` steps, trilinear between the corners of their cells; `vectors` are (voxels, 3)."""
    zero, one, first = np.float32(0), np.float32(1), np.int32(0)
    for _ in range(count):
        for k in range(_LANES):
            i = (np.int64(integers[k]) * height + integers[_LANES + k]) * width + integers[2 * _LANES + k]
            for z in range(2):
                for y in range(2):
                    j = i + (z * height + y) * width
                    for x in range(2):
                        for axis in range(3):
                            at = _CORNERS + (8 * axis + 4 * z + 2 * y + x) * _LANES
                            numbers[at + k] = vectors[j + x, axis]
        for axis in range(3):
            c = _CORNERS + 8 * axis * _LANES
            for k in range(_LANES):
                z_part, y_part, x_part = numbers[k], numbers[_LANES + k], numbers[2 * _LANES + k]
                rest = one - x_part
                upper_above = numbers[c + k] * rest + numbers[c + _LANES + k] * x_part
                upper_below = numbers[c + 2 * _LANES + k] * rest + numbers[c + 3 * _LANES + k] * x_part
                lower_above = numbers[c + 4 * _LANES + k] * rest + numbers[c + 5 * _LANES + k] * x_part
                lower_below = numbers[c + 6 * _LANES + k] * rest + numbers[c + 7 * _LANES + k] * x_part
                rest = one - y_part
                upper = upper_above * rest + upper_below * y_part
                lower = lower_above * rest + lower_below * y_part
                numbers[_STEPS + axis * _LANES + k] = upper * (one - z_part) + lower * z_part
        for axis in range(3):
            at, end, end_part = axis * _LANES, last[axis], last_part[axis]
            near, far = open_cells[2 * axis], open_cells[2 * axis + 1]
            for k in range(_LANES):
                # Split into cell and fraction again, clamped into the crop.
                part = numbers[at + k] + numbers[_STEPS + at + k]
                whole = np.floor(part)
                cell = np.int32(integers[at + k] + np.int32(whole))
                part = part - whole
                part = (
                    zero if cell < first else (end_part if (cell > end) | ((cell == end) & (part > end_part)) else part)
                )
                cell = first if cell < first else (end if cell > end else cell)
                # The outermost cells count as having left the crop: paths from outside are searched from there.
                integers[_LEFT + k] |= np.int32((cell == near) | (cell == far))
                integers[at + k] = cell
                numbers[at + k] = part


@compiled
def follow(
    vectors: NDArray[np.float32],
    stored: tuple[int, int],
    pixels: NDArray[np.int64],
    shape: tuple[int, int, int],
    steps: int,
    last: NDArray[np.int32],
    last_part: NDArray[np.float32],
    open_cells: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Move positions by `steps` steps.

    Parameters
    ----------
    vectors : (voxels, 3) float32, steps of at most about one voxel on each axis; at least two planes, rows and columns
    stored : rows and columns of `vectors`
    pixels : (n,) int64, where positions begin, flat indices in a volume of `shape`
    shape : of the volume
    steps : number of Euler steps
    last, last_part : (3,) int32 and float32 of z, y and x, the last position as a cell and the fraction within it
    open_cells : (6,) int32, the first and the last cell on z, y and x if the volume continues beyond it, else -1

    Returns
    -------
    ends : (n,) int64, where positions end, flat indices in a volume of `shape`
    known : (n,) bool, False for positions that were in an open cell
    """
    n = len(pixels)
    ends, known = np.empty(n, np.int64), np.empty(n, np.bool_)
    integers, numbers = np.zeros(_INTEGERS, np.int32), np.zeros(_NUMBERS, np.float32)
    before_cell, before_part = np.empty(_LEFT, np.int32), np.empty(_STEPS, np.float32)
    height, width = stored
    for start in range(0, n, _LANES):
        filled = min(_LANES, n - start)
        for k in range(filled):
            remainder = pixels[start + k]
            integers[_LEFT + k] = 0
            for axis in range(2, -1, -1):
                at = np.int32(remainder % shape[axis])
                remainder //= shape[axis]
                cell = min(at, last[axis])
                integers[axis * _LANES + k] = cell
                numbers[axis * _LANES + k] = np.float32(at - cell)
                if cell == open_cells[2 * axis] or cell == open_cells[2 * axis + 1]:
                    integers[_LEFT + k] = 1
        # First the steps that do not fill a period, so that the last position is one that is compared.
        _move(vectors, height, width, integers, numbers, steps % _PERIOD, last, last_part, open_cells)
        for _ in range(steps // _PERIOD):
            before_cell[:] = integers[:_LEFT]
            before_part[:] = numbers[:_STEPS]
            _move(vectors, height, width, integers, numbers, _PERIOD, last, last_part, open_cells)
            if np.array_equal(before_cell, integers[:_LEFT]) and np.array_equal(before_part, numbers[:_STEPS]):
                break
        half = np.float32(0.5)
        for k in range(filled):
            end = np.int64(0)
            for axis in range(3):
                nearest = np.int64(integers[axis * _LANES + k]) + (numbers[axis * _LANES + k] >= half)
                end = end * shape[axis] + nearest
            ends[start + k], known[start + k] = end, integers[_LEFT + k] == 0
    return ends, known


@compiled
def flood(vectors: NDArray[np.float32], open_cells: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return the cells that a path may reach from the open ones.

    To leave a cell by a side a path needs a vector that points outwards at one of the four corners of that side.

    Parameters
    ----------
    vectors : (z, y, x, 3) float32
    open_cells : (6,) int32, see `follow`

    Returns
    -------
    NDArray[np.bool_]
        (z - 1, y - 1, x - 1).
    """
    depth, height, width = vectors.shape[0] - 1, vectors.shape[1] - 1, vectors.shape[2] - 1
    reached = np.zeros((depth, height, width), np.bool_)
    front = [np.int64(0)]
    front.pop()
    for z in range(depth):
        for y in range(height):
            in_side = z == open_cells[0] or z == open_cells[1] or y == open_cells[2] or y == open_cells[3]
            for x in range(width):
                if in_side or x == open_cells[4] or x == open_cells[5]:
                    reached[z, y, x] = True
                    front.append((np.int64(z) * height + y) * width + x)
    leaves = np.empty((3, 3), np.bool_)
    leaves[:, 1] = True
    while len(front):
        voxel = front.pop()
        x, y, z = voxel % width, voxel // width % height, voxel // width // height
        leaves[:, 0] = False
        leaves[:, 2] = False
        for a in range(2):
            for b in range(2):
                for c in range(2):
                    corner = vectors[z + a, y + b, x + c]
                    if a == 0:
                        leaves[0, 0] |= corner[0] < 0
                    else:
                        leaves[0, 2] |= corner[0] > 0
                    if b == 0:
                        leaves[1, 0] |= corner[1] < 0
                    else:
                        leaves[1, 2] |= corner[1] > 0
                    if c == 0:
                        leaves[2, 0] |= corner[2] < 0
                    else:
                        leaves[2, 2] |= corner[2] > 0
        for a in range(max(z - 1, 0), min(z + 2, depth)):
            for b in range(max(y - 1, 0), min(y + 2, height)):
                for c in range(max(x - 1, 0), min(x + 2, width)):
                    to = leaves[0, a - z + 1] and leaves[1, b - y + 1] and leaves[2, c - x + 1]
                    if to and not reached[a, b, c]:
                        reached[a, b, c] = True
                        front.append((np.int64(a) * height + b) * width + c)
    return reached
