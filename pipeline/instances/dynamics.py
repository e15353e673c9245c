"""Pixels follow the flows to where their object gathers them: the same bits in every crop of a plane.

A position is a cell (the pixel at its top left, an integer) and a fraction within it, so that no absolute coordinate
enters a calculation. What happens in a crop is what happens in the plane as long as a path stays inside; `follow` says
of which pixels that is known, and `near_outside` where pixels may have arrived that the crop does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances import stepping
from chorus.pipeline.members.contract import FLOW_LENGTH

# Flows shorter than this share of the unit vector say nothing of a direction.
SHORTEST = np.float32(1e-3)
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
    pixels : (n,) int64, places in the flat crop
    ends : (n,) int64, the pixel that each ends in, the same way
    known : (n,) bool, False where a path came to the side of the crop beyond which the plane goes on
    """

    pixels: NDArray[np.int64]
    ends: NDArray[np.int64]
    known: NDArray[np.bool_]


class FlowField:
    """The flows of a crop as steps of one pixel, ready to be followed.

    Attributes
    ----------
    vectors : (2, y, x) float32, unit vectors; zero in the background and where there is no direction
    """

    def __init__(self, crop: Crop) -> None:
        self._foreground = crop.foreground
        self.vectors = directions(crop.flows, crop.foreground)
        # A plane of one row has cells all the same: the second row, without flow, is never entered.
        below, right = (int(n < 2) for n in crop.foreground.shape)
        self._steps = np.pad(self.vectors, ((0, 0), (0, below), (0, right))) if below or right else self.vectors
        last_y, last_x = self._steps.shape[1] - 2, self._steps.shape[2] - 2
        self._last = np.array([last_y, last_x], np.int32), np.array([not below, not right], np.float32)
        ends = (0, last_y, 0, last_x)
        self._open_cells = np.array(
            [end if is_open else -1 for end, is_open in zip(ends, crop.open_sides, strict=True)], np.int32
        )

    def follow(self, steps: int) -> Paths:
        """Move every foreground pixel `steps` times by the flow where it is (bilinear between pixels)."""
        pixels = np.flatnonzero(self._foreground)
        across = self._foreground.shape[1]
        ends, known = stepping.follow(self._steps, pixels, across, steps, *self._last, self._open_cells)
        return Paths(pixels, ends, known)

    def near_outside(self, reach: int) -> NDArray[np.bool_]:
        """Pixels of the crop at most `reach` (on each axis) from one in which a path that begins outside may end.

        (y, x) bool; none is left out, some are too many. From the outermost cells, every cell into which some position
        of a reached cell can be moved.
        """
        reached = stepping.flood(self._steps, self._open_cells)
        cells = np.zeros(self._foreground.shape, bool)
        cells[: reached.shape[0], : reached.shape[1]] = reached
        return stepping.spread(cells, reach + 1, reach)  # a position in a cell ends in one of its corners


def directions(flows: NDArray[np.floating], inside: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Flows of any length, (2, ...), as unit vectors; zero where there is none, and where it is not `inside`.

    An ensemble's mean flow is shorter the more its members disagree, which says nothing of how far the centre is: with
    mean flows as they are, pixels between disagreeing members do not arrive.
    """
    flat = np.ascontiguousarray(flows, np.float32).reshape(2, -1)
    among = np.ones(flat.shape[1], bool) if inside is None else np.ascontiguousarray(inside, bool).reshape(-1)
    return stepping.unit_vectors(flat, among, np.float32(FLOW_LENGTH), SHORTEST).reshape(flows.shape)
