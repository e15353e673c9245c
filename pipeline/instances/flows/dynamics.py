"""Pixels follow the flows to the centre of their object: the same bits in every crop of a plane.

A position is a cell (the pixel at its top left, an integer) and a fraction within it, so that no absolute coordinate
enters a calculation. A path has the same bits in a crop as in the plane as long as it stays inside; `follow` returns
for which pixels that holds, and `near_outside` where pixels from outside of the crop may end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.flows import stepping
from chorus.pipeline.members.contract import FLOW_LENGTH

# Flows shorter than this share of the unit vector have no direction.
SHORTEST = np.float32(1e-3)
_STEPS_AT_30_PIXELS = 200


def steps_for(diameter: float) -> int:
    """Return the number of Euler steps for objects of `diameter` pixels: 200 for 30, as in Cellpose, at least 200."""
    return max(_STEPS_AT_30_PIXELS, round(_STEPS_AT_30_PIXELS * diameter / 30))


@dataclass(frozen=True)
class Crop:
    """Foreground and flows of a window of a plane.

    Attributes
    ----------
    foreground : (y, x) bool
    flows : (2, y, x) float, dy and dx, NaN counts as no flow
    window : its position in the plane
    plane : height and width of the plane
    """

    foreground: NDArray[np.bool_]
    flows: NDArray[np.floating]
    window: Window
    plane: tuple[int, int]

    @property
    def open_sides(self) -> tuple[bool, bool, bool, bool]:
        """Whether the plane continues beyond the top, bottom, left and right side."""
        y, x = self.window.y, self.window.x
        return y.start > 0, y.stop < self.plane[0], x.start > 0, x.stop < self.plane[1]


@dataclass(frozen=True)
class Paths:
    """End points of the foreground pixels of a crop, in row-major order of the pixels.

    Attributes
    ----------
    pixels : (n,) int64, flat indices in the crop
    ends : (n,) int64, flat index of the pixel that each path ends in
    known : (n,) bool, False if a path reached a side of the crop beyond which the plane continues
    """

    pixels: NDArray[np.int64]
    ends: NDArray[np.int64]
    known: NDArray[np.bool_]


class FlowField:
    """The flows of a crop as steps of one pixel, ready to be followed.

    Attributes
    ----------
    vectors : (2, y, x) float32, of length 1, or with `lengths` of at most 1; zero in the background and where there is
        no direction
    """

    def __init__(self, crop: Crop, *, lengths: bool = False) -> None:
        """Prepare the flows of a crop.

        Parameters
        ----------
        crop : foreground and flows
        lengths : whether short flows make short steps and an end is truncated to its pixel, as in Cellpose; otherwise
            directions alone count, and an end is in the nearest pixel
        """
        self._foreground = crop.foreground
        self._onwards = np.float32(1 if lengths else 0.5)
        self.vectors = (limited if lengths else directions)(crop.flows, crop.foreground)
        # A plane of one row is padded to form cells: the second row, without flow, is never entered.
        below, right = (int(n < 2) for n in crop.foreground.shape)
        self._steps = np.pad(self.vectors, ((0, 0), (0, below), (0, right))) if below or right else self.vectors
        last_y, last_x = self._steps.shape[1] - 2, self._steps.shape[2] - 2
        self._last = np.array([last_y, last_x], np.int32), np.array([not below, not right], np.float32)
        ends = (0, last_y, 0, last_x)
        self._open_cells = np.array(
            [end if is_open else -1 for end, is_open in zip(ends, crop.open_sides, strict=True)], np.int32
        )

    def follow(self, steps: int) -> Paths:
        """Move every foreground pixel `steps` times by the flow at its position (bilinear between pixels)."""
        pixels = np.flatnonzero(self._foreground)
        across = self._foreground.shape[1]
        ends, known = stepping.follow(self._steps, pixels, across, steps, self._onwards, *self._last, self._open_cells)
        return Paths(pixels, ends, known)

    def near_outside(self, reach: int) -> NDArray[np.bool_]:
        """Return the pixels of the crop near which a path that begins outside may end.

        A superset: it starts from the outermost cells and adds every cell into which some position of a reached cell
        can be moved.

        Parameters
        ----------
        reach : distance in pixels, on each axis, from the end of such a path

        Returns
        -------
        NDArray[np.bool_]
            (y, x), True within `reach` of a pixel in which such a path may end.
        """
        reached = stepping.flood(self._steps, self._open_cells)
        cells = np.zeros(self._foreground.shape, bool)
        cells[: reached.shape[0], : reached.shape[1]] = reached
        return stepping.spread(cells, reach + 1, reach)  # a position in a cell ends in one of its corners


def directions(flows: NDArray[np.floating], inside: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Normalise flows to unit vectors.

    An ensemble's mean flow is shorter the more its members disagree, which does not depend on the distance to the
    centre: with mean flows of their own length, pixels between disagreeing members would not arrive.

    Parameters
    ----------
    flows : (2, ...) of any floating dtype
    inside : (...) bool, where vectors are wanted; everywhere by default

    Returns
    -------
    NDArray[np.float32]
        Same shape; zero where there is no direction, and outside of `inside`.
    """
    return _step_vectors(flows, inside, SHORTEST, divisor=np.float32(0))


def limited(flows: NDArray[np.floating], inside: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Divide flows by the length of a full flow, and shorten what is longer than 1.

    So steps are Cellpose's, `flows` / 5, but for those of more than a pixel: none may leap over a cell, or paths from
    outside of a crop would not be foreseen.

    Parameters
    ----------
    flows : (2, ...) of any floating dtype
    inside : (...) bool, where vectors are wanted; everywhere by default

    Returns
    -------
    NDArray[np.float32]
        Same shape; zero where a flow is not finite, and outside of `inside`.

    References
    ----------
    ``cellpose.dynamics.compute_masks`` (3.1).
    """
    return _step_vectors(flows, inside, np.float32(0), divisor=np.float32(1))


def _step_vectors(
    flows: NDArray[np.floating], inside: NDArray[np.bool_] | None, shortest: np.float32, divisor: np.float32
) -> NDArray[np.float32]:
    flat = np.ascontiguousarray(flows, np.float32).reshape(2, -1)
    among = np.ones(flat.shape[1], bool) if inside is None else np.ascontiguousarray(inside, bool).reshape(-1)
    return stepping.step_vectors(flat, among, np.float32(FLOW_LENGTH), shortest, divisor).reshape(flows.shape)
