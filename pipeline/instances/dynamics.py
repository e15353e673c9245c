"""Pixels follow the flows to where their object gathers them: the same bits in every crop of a plane.

A position is a cell (the pixel at its top left, an integer) and a fraction within it, so that no absolute coordinate
enters a calculation. What happens in a crop is what happens in the plane as long as a path stays inside; `follow` says
of which pixels that is known, and `reached_from_outside` where pixels may have arrived that the crop does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Window
from pipeline.members.contract import FLOW_LENGTH

# Flows shorter than this share of the unit vector say nothing of a direction.
_SHORTEST = np.float32(1e-3)
# Points that are moved at a time: their numbers stay in a core's cache for all steps.
_BLOCK = 1 << 15
_STEPS_AT_30_PIXELS = 200


def steps_for(diameter: float) -> int:
    """Euler steps for objects of `diameter` pixels: 200 for 30, as in Cellpose, and no fewer."""
    return max(_STEPS_AT_30_PIXELS, round(_STEPS_AT_30_PIXELS * diameter / 30))


@dataclass(frozen=True)
class Crop:
    """What is known of a window of a plane.

    Attributes
    ----------
    foreground : (y, x) bool
    flows : (2, y, x) float, dy and dx; only their direction counts, and NaN is none
    window : where it lies in the plane
    plane : height and width of the plane
    """

    foreground: NDArray[np.bool_]
    flows: NDArray[np.floating]
    window: Window
    plane: tuple[int, int]

    @property
    def open_sides(self) -> tuple[bool, bool, bool, bool]:
        """Whether the plane goes on beyond the top, bottom, left and right side."""
        y, x = self.window.y, self.window.x
        return y.start > 0, y.stop < self.plane[0], x.start > 0, x.stop < self.plane[1]


@dataclass(frozen=True)
class Paths:
    """Where the foreground pixels of a crop end, in row-major order of the pixels.

    Attributes
    ----------
    y, x : (n,) int64, pixels of the crop
    end_y, end_x : (n,) int64, the pixel that each ends in
    known : (n,) bool, False where a path came to the side of the crop beyond which the plane goes on
    """

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    end_y: NDArray[np.int64]
    end_x: NDArray[np.int64]
    known: NDArray[np.bool_]


class FlowField:
    """The flows of a crop as steps of one pixel, ready to be followed."""

    def __init__(self, crop: Crop) -> None:
        self._foreground = crop.foreground
        self._open = crop.open_sides
        # A plane of one row has cells all the same: the second row, without flow, is never entered.
        below, right = (int(n < 2) for n in crop.foreground.shape)
        steps = np.where(crop.foreground, directions(crop.flows), np.float32(0))
        vectors = np.pad(steps, ((0, 0), (0, below), (0, right)))
        self._cells = vectors.shape[1] - 1, vectors.shape[2] - 1
        self._last = _last(self._cells[0], below), _last(self._cells[1], right)
        corners = [vectors[:, a : a + self._cells[0], b : b + self._cells[1]] for a in (0, 1) for b in (0, 1)]
        self._corners = np.stack(corners)  # (top left, top right, bottom left, bottom right; dy, dx; y, x)
        # One row a cell, so that a step fetches one piece of memory: top row dy dx dy dx, bottom row the same.
        self._table = np.ascontiguousarray(self._corners.transpose(2, 3, 0, 1)).reshape(-1, 8)

    def follow(self, steps: int) -> Paths:
        """Move every foreground pixel `steps` times by the flow where it is (bilinear between pixels)."""
        y, x = (found.astype(np.int64) for found in np.nonzero(self._foreground))
        end_y, end_x, known = np.empty_like(y), np.empty_like(x), np.empty(len(y), bool)
        for start in range(0, len(y), _BLOCK):
            part = slice(start, start + _BLOCK)
            end_y[part], end_x[part], known[part] = self._move(y[part], x[part], steps)
        return Paths(y, x, end_y, end_x, known)

    def _move(
        self, y: NDArray[np.int64], x: NDArray[np.int64], steps: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        cell_y, cell_x = np.minimum(y, self._last[0][0]), np.minimum(x, self._last[1][0])
        part_y, part_x = (y - cell_y).astype(np.float32), (x - cell_x).astype(np.float32)
        top, bottom, left, right = self._open
        known = ~self._outermost(cell_y, cell_x)
        width = self._cells[1]
        for _ in range(steps):
            rows = self._table.take(cell_y * width + cell_x, axis=0).reshape(-1, 2, 2, 2)
            above = rows[:, 0, 0] * (1 - part_x)[:, None] + rows[:, 0, 1] * part_x[:, None]
            below = rows[:, 1, 0] * (1 - part_x)[:, None] + rows[:, 1, 1] * part_x[:, None]
            step = above * (1 - part_y)[:, None] + below * part_y[:, None]
            cell_y, part_y, out_y = _advance(cell_y, part_y + step[:, 0], self._last[0], top, bottom)
            cell_x, part_x, out_x = _advance(cell_x, part_x + step[:, 1], self._last[1], left, right)
            known &= ~(out_y | out_x)
        return cell_y + (part_y >= 0.5), cell_x + (part_x >= 0.5), known

    def _outermost(self, cell_y: NDArray[np.int64], cell_x: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Cells at a side beyond which the plane goes on."""
        top, bottom, left, right = self._open
        return np.asarray(
            (top & (cell_y == 0))
            | (bottom & (cell_y == self._cells[0] - 1))
            | (left & (cell_x == 0))
            | (right & (cell_x == self._cells[1] - 1))
        )

    def reached_from_outside(self) -> NDArray[np.bool_]:
        """Pixels of the crop in which a path that begins outside may end, (y, x) bool; none is left out, some too many.

        From the outermost cells, every cell into which some position of a reached cell can be moved. To leave a cell
        by its top a path needs a vector that points up at one of the two upper corners, and so on for the other sides.
        """
        ups, lefts = (self._corners[:, axis] for axis in (0, 1))
        moves = {
            (-1, 0): (ups[:2] < 0).any(axis=0),
            (1, 0): (ups[2:] > 0).any(axis=0),
            (0, -1): (lefts[::2] < 0).any(axis=0),
            (0, 1): (lefts[1::2] > 0).any(axis=0),
        }
        for a in (-1, 1):
            for b in (-1, 1):
                moves[a, b] = moves[a, 0] & moves[0, b]
        reached = np.zeros(self._cells, bool)
        rows, columns = np.indices(self._cells, sparse=True)
        reached |= self._outermost(rows, columns)
        front = np.nonzero(reached)
        while len(front[0]):
            found = []
            for (a, b), possible in moves.items():
                going = np.asarray(possible)[front]
                y, x = front[0][going] + a, front[1][going] + b
                inside = (y >= 0) & (y < self._cells[0]) & (x >= 0) & (x < self._cells[1])
                found.append((y[inside], x[inside]))
            y, x = (np.concatenate([one[axis] for one in found]) for axis in (0, 1))
            new = np.unique(y[~reached[y, x]] * self._cells[1] + x[~reached[y, x]])
            front = np.divmod(new, self._cells[1])
            reached[front] = True
        pixels = np.zeros(self._foreground.shape, bool)
        for a in (0, 1):  # a position in a cell ends in one of its corners
            for b in (0, 1):
                view = pixels[a : a + self._cells[0], b : b + self._cells[1]]
                view |= reached[: view.shape[0], : view.shape[1]]
        return pixels


def directions(flows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Flows of any length, (2, ...), as unit vectors; zero where there is none.

    An ensemble's mean flow is shorter the more its members disagree, which says nothing of how far the centre is: with
    mean flows as they are, pixels between disagreeing members do not arrive.
    """
    vectors = np.where(np.isfinite(flows).all(axis=0), flows, 0).astype(np.float32) / np.float32(FLOW_LENGTH)
    length = np.sqrt(vectors[0] * vectors[0] + vectors[1] * vectors[1])
    return np.where(length >= _SHORTEST, vectors / np.maximum(length, _SHORTEST), np.float32(0))


def _last(cells: int, padded: int) -> tuple[int, float]:
    """The last position on an axis, as a cell and the part of it."""
    return cells - 1, 0.0 if padded else 1.0


def _advance(
    cell: NDArray[np.int64], part: NDArray[np.float32], last: tuple[int, float], lower: bool, upper: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """Positions as cell and part again, kept inside; and which of them left by a side that is open."""
    whole = np.floor(part)
    cell, part = cell + whole.astype(np.int64), part - whole
    before = cell < 0
    beyond = (cell > last[0]) | ((cell == last[0]) & (part > last[1]))
    cell = np.clip(cell, 0, last[0])
    part = np.where(before, np.float32(0), np.where(beyond, np.float32(last[1]), part))
    # The outermost cells count as left: from there on a path from outside is looked for.
    return cell, part, np.asarray((lower & (cell == 0)) | (upper & (cell == last[0])))
