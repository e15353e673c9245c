"""Voxels follow flows in three dimensions: the same bits in every crop of a volume.

As in `chorus.pipeline.instances.flows.dynamics`, a position is a cell and a fraction within it. Flows are directions in
space; if planes are farther apart than pixels, a step of one pixel's length is less than a plane along z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from chorus.pipeline.instances.flows.dynamics import SHORTEST, Paths
from chorus.pipeline.instances.volumes import stepping as volume_stepping
from chorus.pipeline.instances.volumes.blocks import Box
from chorus.pipeline.members.contract import FLOW_LENGTH


@dataclass(frozen=True)
class VolumeCrop:
    """Foreground and flows of a part of a volume.

    Attributes
    ----------
    foreground : (z, y, x) bool
    flows : (3, z, y, x) float, dz, dy and dx in equal units of length; only their direction counts, NaN counts as no
        flow
    box : its position in the volume
    volume : shape of the volume
    anisotropy : distance of planes, in pixels
    """

    foreground: NDArray[np.bool_]
    flows: NDArray[np.floating]
    box: Box
    volume: tuple[int, int, int]
    anisotropy: float

    @property
    def open_sides(self) -> tuple[bool, ...]:
        """Whether the volume continues beyond the first and the last plane, row and column."""
        spans = self.box.z, self.box.y, self.box.x
        return tuple(
            is_open
            for span, length in zip(spans, self.volume, strict=True)
            for is_open in (span.start > 0, span.stop < length)
        )


def step_of(anisotropy: float) -> NDArray[np.float32]:
    """Return the length of one step in planes, rows and columns.

    Parameters
    ----------
    anisotropy : distance of planes, in pixels

    Returns
    -------
    NDArray[np.float32]
        (3,), at most 1.
    """
    shortest = min(1.0, anisotropy)
    return np.array([shortest / anisotropy, shortest, shortest], np.float32)


class VolumeField:
    """The flows of a crop as steps of one pixel, ready to be followed."""

    def __init__(self, crop: VolumeCrop) -> None:
        self._foreground, shape = crop.foreground, crop.foreground.shape
        flows = np.ascontiguousarray(crop.flows, np.float32).reshape(3, -1)
        inside = np.ascontiguousarray(crop.foreground).reshape(-1)
        step = step_of(crop.anisotropy)
        vectors = volume_stepping.unit_vectors(flows, inside, np.float32(FLOW_LENGTH), SHORTEST, step)
        # A volume of one plane is padded to form cells: the second plane, without flow, is never entered.
        missing = [int(n < 2) for n in shape]
        padding = [*((0, more) for more in missing), (0, 0)]
        self._steps = np.pad(vectors.reshape(*shape, 3), padding) if any(missing) else vectors.reshape(*shape, 3)
        last = [n - 2 for n in self._steps.shape[:3]]
        self._last = np.array(last, np.int32), np.array([not more for more in missing], np.float32)
        ends = [end for far in last for end in (0, far)]
        self._open_cells = np.array(
            [end if is_open else -1 for end, is_open in zip(ends, crop.open_sides, strict=True)], np.int32
        )

    def follow(self, steps: int) -> Paths:
        """Move every foreground voxel `steps` times by the flow at its position (trilinear between voxels)."""
        voxels = np.flatnonzero(self._foreground)
        flat, (_, height, width) = self._steps.reshape(-1, 3), self._steps.shape[:3]
        shape = self._foreground.shape
        ends, known = volume_stepping.follow(flat, (height, width), voxels, shape, steps, *self._last, self._open_cells)
        return Paths(voxels, ends, known)

    def near_outside(self, reach: tuple[int, int, int]) -> NDArray[np.bool_]:
        """Return the voxels of the crop near which a path that begins outside may end.

        A superset: it starts from the outermost cells and adds every cell into which some position of a reached cell
        can be moved.

        Parameters
        ----------
        reach : distance in planes, rows and columns from the end of such a path

        Returns
        -------
        NDArray[np.bool_]
            (z, y, x), True within `reach` of a voxel in which such a path may end.
        """
        reached = volume_stepping.flood(self._steps, self._open_cells)
        near = np.zeros(self._foreground.shape, np.uint8)
        depth, height, width = reached.shape
        near[:depth, :height, :width] = reached
        if near.any():
            for axis, far in enumerate(reach):  # a position in a cell ends in one of its corners
                ndimage.maximum_filter1d(near, 2 * far + 2, axis=axis, output=near, mode="constant")
        return near.view(bool)
