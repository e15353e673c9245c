"""What turns the maps of a box into labels: one rule per method, with its settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.instances.maps.blocks import SeenBlocks, Sizes
from chorus.pipeline.instances.maps.mutex import MutexSettings, mutex_objects
from chorus.pipeline.instances.maps.seeded import (
    BoxLabels,
    DistanceSettings,
    SeedSettings,
    watershed_on_boundaries,
    watershed_on_distances,
)
from chorus.pipeline.instances.maps.superpixels import SuperpixelSettings, boundary_objects
from chorus.pipeline.instances.methods import MapMethod
from chorus.pipeline.instances.volumes.blocks import BlockGrid, Box

# Edges of a block, and bounds of what it sees beyond itself, in pixels.
_PLANE_EDGE, _VOLUME_SIZE = 1024, (64, 128, 128)
_LEAST_HALO, _WIDEST_HALO = 16, 64
# Pixels on each side of a face in which neighbours compare their objects: from 2 to 11 the objects are the same.
_MARGIN = 4


class Maps(Protocol):
    """The maps of an image; each is read where a rule asks for it."""

    def mask(self, box: Box) -> NDArray[np.bool_]:
        """Return where objects may be in a box.

        Returns
        -------
        NDArray[np.bool_]
            (z, y, x).
        """
        ...

    def foreground(self, box: Box) -> NDArray[np.floating]:
        """Return the probability of foreground in a box.

        Returns
        -------
        NDArray
            (z, y, x), any floating dtype.
        """
        ...

    def distances(self, box: Box, to: Literal["centre", "boundary"]) -> NDArray[np.floating] | None:
        """Return the distance to the centre, or the inverted one to the boundary, in a box; None if there is none.

        Returns
        -------
        NDArray or None
            (z, y, x), any floating dtype; see `watershed_on_distances`.
        """
        ...

    def boundaries(self, box: Box) -> NDArray[np.floating]:
        """Return the probability of a boundary in a box.

        Returns
        -------
        NDArray
            (z, y, x), any floating dtype.
        """
        ...

    def affinities(self, box: Box) -> NDArray[np.floating]:
        """Return the affinities of a box.

        Returns
        -------
        NDArray
            (offsets, z, y, x), any floating dtype, 0 (different objects) to 1 (same object).
        """
        ...


@dataclass(frozen=True)
class MapSettings:
    """All settings that define the objects of maps, but for the maps themselves.

    Attributes
    ----------
    method : see `MapMethod`
    diameter : of a typical object, in pixels of a plane; sets how far a block sees
    minimum_size : objects of fewer pixels are removed
    anisotropy : distance of planes, in pixels
    distances, seeds, superpixels, mutex : of the methods
    """

    method: MapMethod
    diameter: float = 30.0
    minimum_size: int = 15
    anisotropy: float = 1.0
    distances: DistanceSettings = field(default_factory=DistanceSettings)
    seeds: SeedSettings = field(default_factory=SeedSettings)
    superpixels: SuperpixelSettings = field(default_factory=SuperpixelSettings)
    mutex: MutexSettings = field(default_factory=MutexSettings)

    @property
    def by_seeds(self) -> bool:
        """Whether objects grow from seeds."""
        return self.method in ("distances", "boundaries")

    def blocks(self, shape: Sizes) -> SeenBlocks:
        """Return the blocks of a volume, or of a plane as a volume of depth 1.

        A block sees a diameter beyond itself, but 16 pixels at least and 64 at most. Neighbours compare their objects
        next to their face alone, where the seeds that they see are those of the whole volume.
        """
        reach = self.distances.reach if self.method == "distances" else 0
        halo = max(round(min(max(self.diameter, _LEAST_HALO), _WIDEST_HALO)), reach + _MARGIN)
        planes = max(math.ceil(halo / max(1.0, self.anisotropy)), reach + _MARGIN)
        if shape[0] == 1:
            return SeenBlocks(BlockGrid(shape, (1, _PLANE_EDGE, _PLANE_EDGE)), (0, halo, halo), (0, _MARGIN, _MARGIN))
        return SeenBlocks(BlockGrid(shape, _VOLUME_SIZE), (planes, halo, halo), (_MARGIN,) * 3)


def label_box(maps: Maps, box: Box, settings: MapSettings) -> BoxLabels:
    """Label the objects of a box by its maps alone.

    Parameters
    ----------
    maps : of the image
    box : of the image
    settings : of the objects
    """
    mask = maps.mask(box)
    if not mask.any():
        return BoxLabels(np.zeros(box.shape, np.int32), mask if settings.by_seeds else None)
    if settings.method == "distances":
        centres, boundaries = maps.distances(box, "centre"), maps.distances(box, "boundary")
        return watershed_on_distances(mask, centres, boundaries, settings.distances)
    if settings.method == "boundaries":
        return watershed_on_boundaries(mask, maps.foreground(box), maps.boundaries(box), settings.seeds)
    if settings.method == "agglomeration":
        labels = boundary_objects(maps.boundaries(box), mask, settings.superpixels, settings.anisotropy)
        return BoxLabels(labels)
    return BoxLabels(mutex_objects(maps.affinities(box), mask, settings.mutex, box))
