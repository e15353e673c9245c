"""The objects of a block, as they are in the whole volume, from a crop around it.

As `chorus.pipeline.instances.regions` in 3D. An object is named by its anchor, ``(z * height + y) * width + x + 1`` in
the volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Span
from chorus.pipeline.instances.flows.dynamics import steps_for
from chorus.pipeline.instances.flows.seeds import REACH, Neighbourhoods, find_seeds
from chorus.pipeline.instances.regions import ObjectSettings, ends_of, fill_holes, names_of, owned, remove, unsettled
from chorus.pipeline.instances.volumes.blocks import Box
from chorus.pipeline.instances.volumes.dynamics import VolumeCrop, VolumeField

# Voxels that a crop needs beyond paths and seeds: the outermost cells.
_RIM = 6


@dataclass(frozen=True)
class VolumeSettings:
    """All settings that define the objects of a volume.

    Attributes
    ----------
    diameter : of a typical object, in pixels of a plane; sets the length of paths, and the first halo
    minimum_size : objects of fewer voxels are removed
    anisotropy : distance of planes, in pixels
    """

    diameter: float = 30.0
    minimum_size: int = 15
    anisotropy: float = 1.0

    @classmethod
    def of(cls, settings: ObjectSettings, anisotropy: float) -> VolumeSettings:
        """Return the settings of a volume from those of a plane."""
        return cls(settings.diameter, settings.minimum_size, anisotropy)

    @property
    def steps(self) -> int:
        """Number of Euler steps of a path: as in a plane, more if planes are closer than pixels.

        A step is one pixel long, or the distance of two planes if that is shorter.
        """
        return math.ceil(steps_for(self.diameter) / min(1.0, self.anisotropy))

    @property
    def largest_hole(self) -> tuple[int, int, int]:
        """Holes within an object are filled up to this number of planes, rows and columns."""
        edge = max(1, round(self.diameter))
        return max(1, round(self.diameter / self.anisotropy)), edge, edge

    @property
    def seeds(self) -> Neighbourhoods:
        """Search distances of seeds along z."""
        return Neighbourhoods.of(self.anisotropy)

    @property
    def reach(self) -> tuple[int, int, int]:
        """Reach of seeds, in planes, rows and columns."""
        return self.seeds.reach, REACH, REACH

    @property
    def first_halo(self) -> tuple[int, int, int]:
        """Planes, rows and columns around a block that are read first: two diameters, and the reach of seeds."""
        edge = 2 * round(self.diameter)
        return self._beyond(math.ceil(edge / self.anisotropy), edge)

    @property
    def widest_halo(self) -> tuple[int, int, int]:
        """Planes, rows and columns around a block beyond which nothing matters.

        An object is within two paths of the block, and objects that touch a hole in it within two more.
        """
        planes = math.ceil(4 * self.steps * min(1.0, 1 / self.anisotropy))
        depth, height, _ = self.largest_hole
        return self._beyond(planes + 2 * depth, 4 * self.steps + 2 * height)

    def _beyond(self, planes: int, pixels: int) -> tuple[int, int, int]:
        z, y, x = self.reach
        return planes + z + _RIM, pixels + y + _RIM, pixels + x + _RIM


@dataclass(frozen=True)
class BlockObjects:
    """Objects of a block.

    Attributes
    ----------
    names : (z, y, x) uint64 of the block, 0 for background
    crop : the box that was needed
    around : (z, y, x) int32 objects of the crop, 0 for background; correct for objects with a voxel in the block
    anchors : (objects + 1,) uint64, the names of 0 (background) and of 1, 2, ...
    """

    names: NDArray[np.uint64]
    crop: Box
    around: NDArray[np.int32]
    anchors: NDArray[np.uint64]


def label_block(
    read: Callable[[Box], VolumeCrop], block: Box, volume: tuple[int, int, int], settings: VolumeSettings
) -> BlockObjects:
    """Label the objects of a block of a volume.

    Parameters
    ----------
    read : returns foreground and flows of a box of the volume
    block : box of the block
    volume : shape of the volume
    settings : of the objects
    """
    halo, widest = settings.first_halo, settings.widest_halo
    while True:
        enough = all(one >= most for one, most in zip(halo, widest, strict=True))
        labelled = _label(read(_around(block, volume, halo)), block, settings, enough=enough)
        if labelled is not None:
            return labelled
        z, y, x = (min(2 * one, most) for one, most in zip(halo, widest, strict=True))
        halo = z, y, x


def _around(block: Box, volume: tuple[int, int, int], halo: tuple[int, int, int]) -> Box:
    spans = zip((block.z, block.y, block.x), volume, halo, strict=True)
    return Box(*(Span(max(0, span.start - more), min(length, span.stop + more)) for span, length, more in spans))


def _label(crop: VolumeCrop, block: Box, settings: VolumeSettings, *, enough: bool) -> BlockObjects | None:
    """Return the objects of a block, or None if the crop is not sufficient; with `enough` it is known to be."""
    inner, shape = block.within(crop.box), crop.foreground.shape
    if not crop.foreground.any():
        return BlockObjects(
            np.zeros(block.shape, np.uint64), crop.box, np.zeros(shape, np.int32), np.zeros(1, np.uint64)
        )
    field = VolumeField(crop)
    paths = field.follow(settings.steps)
    seeds = find_seeds(ends_of(paths, shape), settings.seeds)
    uncertain = field.near_outside(settings.reach) if any(crop.open_sides) else None
    del field  # the largest array in memory
    objects, unknown = owned(paths, seeds, uncertain)
    anchors = names_of(seeds, (crop.box.z.start, crop.box.y.start, crop.box.x.start), crop.volume)
    if enough:  # what is unknown is too far away to matter
        unknown[:] = False
    if unknown[inner].any():
        return None
    remove(objects, unsettled(objects, unknown, len(anchors), settings.minimum_size))
    certain = fill_holes(objects, unknown, crop.open_sides, inner, settings.largest_hole)
    if not certain and not enough:
        return None
    return BlockObjects(anchors[objects[inner]], crop.box, objects, anchors)
