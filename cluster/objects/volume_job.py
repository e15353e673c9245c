"""The job of making the objects of a volume, and its division into blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chorus.cluster.objects.job import ObjectJob
from chorus.cluster.planning.volume_views import anisotropy, spacing_of
from chorus.cluster.runs.volume_merging import slab_grid
from chorus.pipeline.instances.shapes import Spacing
from chorus.pipeline.instances.volumes.blocks import BlockGrid, Box
from chorus.pipeline.instances.volumes.regions import VolumeSettings
from chorus.pipeline.io import storage
from chorus.pipeline.io.outputs.arrays import ArrayPlan

# Maximum of voxels of a block with its halo, unless even the smallest has more: some 40 bytes of memory each.
_CROP_VOXELS = 1 << 26
_EDGES = (1024, 768, 512, 384, 256, 192, 128)


@dataclass(frozen=True)
class VolumeJob(ObjectJob):
    """An `ObjectJob` of an image of which every time point is one volume."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Depth, height and width in voxels."""
        return self.image.planes[1], self.image.height, self.image.width

    @property
    def spacing(self) -> Spacing:
        """Spacing of the voxels."""
        return spacing_of(self.image, "zyx")

    @property
    def dynamics(self) -> VolumeSettings:
        """Settings of the search for objects."""
        return VolumeSettings.of(self.settings, anisotropy(self.image))

    @property
    def blocks(self) -> BlockGrid:
        """Blocks of one time point in which objects are found."""
        return block_grid(self.shape, self.dynamics)

    @property
    def slabs(self) -> BlockGrid:
        """Slabs of one time point in which label images are written."""
        return slab_grid(self.image)

    def block(self, index: int) -> tuple[int, Box]:
        """Return time point and voxels of a block."""
        t, place = divmod(index, self.blocks.count)
        return t, self.blocks.box(place)

    def slab(self, index: int) -> tuple[int, Box]:
        """Return time point and voxels of a slab."""
        t, place = divmod(index, self.slabs.count)
        return t, self.slabs.box(place)

    def names_plan(self, class_name: str, t: int) -> ArrayPlan:
        """Return the array of object names below `scratch`: a block is a shard, and its planes are chunks."""
        path = storage.join("labels", class_name, str(t))
        size = self.blocks.size
        return ArrayPlan(path, "zyx", self.shape, (1, *size[1:]), size, "uint64")

    def tasks(self, stage: str) -> int:
        """Return the number of tasks of a stage."""
        grids = {"regions": self.blocks, "labels": self.slabs}
        return self.image.planes[0] * grids[stage].count if stage in grids else 1

    def pixels(self, stage: str, place: int) -> int:
        """Return the number of voxels of a task of a stage."""
        if stage == "all":
            return self.image.pixels
        return self.block(place)[1].voxels if stage == "regions" else 0


def block_grid(shape: tuple[int, int, int], settings: VolumeSettings) -> BlockGrid:
    """Return the largest blocks that fit in memory with their halo; the objects do not depend on their size."""

    def size(edge: int) -> tuple[int, int, int]:
        depth, height, width = (min(edge, length) for length in shape)
        return depth, height, width

    def voxels(edge: int) -> int:
        halo = settings.first_halo
        return math.prod(min(length, own + 2 * more) for length, own, more in zip(shape, size(edge), halo, strict=True))

    edge = next((edge for edge in _EDGES if voxels(edge) <= _CROP_VOXELS), _EDGES[-1])
    return BlockGrid(shape, size(edge))
