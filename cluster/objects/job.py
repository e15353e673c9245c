"""The job of making the objects of an image, of planes or of volumes, as a worker receives it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from chorus.cluster.planning.planned_image import PlannedImage, RegionPlace
from chorus.cluster.planning.volume_views import anisotropy, spacing_of
from chorus.cluster.runs.volume_merging import slab_grid
from chorus.pipeline.core.fields import OF_OBJECTS
from chorus.pipeline.core.geometry import RegionGrid
from chorus.pipeline.core.outputs import FLOWS
from chorus.pipeline.instances.maps.blocks import SeenBlocks
from chorus.pipeline.instances.maps.rules import MapSettings
from chorus.pipeline.instances.maps.stored import MapSources
from chorus.pipeline.instances.methods import MapMethod, Method
from chorus.pipeline.instances.regions import ObjectSettings
from chorus.pipeline.instances.shapes import Spacing
from chorus.pipeline.instances.volumes.blocks import BlockGrid, Box
from chorus.pipeline.instances.volumes.regions import VolumeSettings
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.outputs.arrays import ArrayPlan
from chorus.pipeline.io.sources.ngff import open_image

# Maximum of voxels of a block with its halo, unless even the smallest has more: some 40 bytes of memory each.
_CROP_VOXELS = 1 << 26
_EDGES = (1024, 768, 512, 384, 256, 192, 128)
# Edge of a chunk of the names of the objects of maps, in pixels.
_NAMES_CHUNK = 256


@dataclass(frozen=True)
class ObjectJob:
    """The job of making the objects of an image.

    Attributes
    ----------
    layout : of the image's results
    work : URL of the image's work folder, see `chorus.cluster.objects.tasks.stages`
    record : URL of the record of the image's finished objects
    scratch : URL of the folder of temporary files; `work`, unless one task does all of the image
    classes : value and name of each class that has objects
    method : how foreground becomes objects
    least, flows : see `chorus.pipeline.instances.stored.StoredPlane`
    strict : a missing chunk of the source is an error
    """

    image: PlannedImage
    layout: ImageLayout
    work: str
    record: str
    scratch: str
    classes: tuple[tuple[int, str], ...]
    method: Method | MapMethod
    least: float | None
    settings: ObjectSettings
    strict: bool
    flows: tuple[ImageLayout, ...] = ()

    @property
    def plane(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.height, self.image.width

    @property
    def spacing(self) -> Spacing:
        """Spacing of the pixels of a plane."""
        return spacing_of(self.image, "yx")

    @property
    def uncertainties(self) -> tuple[str, ...]:
        """Names of the uncertainty columns of objects."""
        return uncertainties_of(self.layout.channels, second_flows=bool(self.flows))

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the columns of objects that are of this method alone; between uncertainties and mean intensities."""
        return ()

    @property
    def channels(self) -> range:
        """All channels of the source, including those that the ensemble does not see."""
        return range(self.image.shape[self.image.axes.index("c")] if "c" in self.image.axes else 1)

    @property
    def grid(self) -> RegionGrid:
        """Regions of a plane in which objects are found."""
        return self.image.grid

    @property
    def of_pieces(self) -> bool:
        """Whether a region finds pieces of objects, which are joined after all regions."""
        return self.method == "components"

    def locate(self, index: int) -> RegionPlace:
        """Locate a region in which objects are found: plane by plane, then in the order of `grid`."""
        plane, position = divmod(index, self.grid.count)
        t, z = divmod(plane, self.image.planes[1])
        return RegionPlace(t, z, self.grid.window(position))

    @property
    def names_layout(self) -> ImageLayout:
        """Where the names of objects are stored until they are numbered."""
        return replace(self.layout, url=self.scratch, labels_url=self.scratch, labels_ngff="0.5")

    def rows_url(self, region: int) -> str:
        """Return the URL of the rows of a region."""
        return storage.join(self.scratch, "rows", f"{region:08d}.parquet")

    def pieces_url(self, region: int) -> str:
        """Return the URL of the sums of the component pieces at a region's borders."""
        return storage.join(self.scratch, "pieces", f"{region:08d}.parquet")

    def edges_url(self, region: int) -> str:
        """Return the URL of the names of components along a region's borders."""
        return storage.join(self.scratch, "pieces", f"{region:08d}.npz")

    def joined_url(self, class_name: str, t: int, z: int) -> str:
        """Return the URL of the mapping from a plane's pieces to their objects."""
        return storage.join(self.scratch, "known", f"joined-{class_name}-{t}-{z}")

    def known_url(self, class_name: str, t: int, z: int) -> str:
        """Return the URL of the sorted names of all objects of a class in a plane."""
        return storage.join(self.scratch, "known", f"{class_name}-{t}-{z}")

    @property
    def table_url(self) -> str:
        """URL of the image's object table."""
        return storage.join(self.work, "objects.parquet")

    def tasks(self, stage: str) -> int:
        """Return the number of tasks of a stage, see `chorus.cluster.objects.run`."""
        if stage == "regions":
            return math.prod(self.image.planes) * self.grid.count
        return self.image.regions if stage == "labels" else 1

    def pixels(self, stage: str, index: int) -> int:
        """Return the number of pixels of a task of a stage."""
        whole = {"all": self.image.pixels}
        return self.locate(index).window.pixels if stage == "regions" else whole.get(stage, 0)


@dataclass(frozen=True, kw_only=True)
class MapJob(ObjectJob):
    """An `ObjectJob` whose objects are made of maps, in planes, on the fixed grid of blocks of their settings.

    Attributes
    ----------
    maps : settings of the objects
    sources : the maps that they are made of
    """

    maps: MapSettings
    sources: MapSources

    @property
    def blocks(self) -> SeenBlocks:
        """Blocks of a plane."""
        return self.maps.blocks((1, *self.plane))

    @property
    def grid(self) -> RegionGrid:
        """Blocks of a plane."""
        return RegionGrid(self.plane, self.blocks.grid.size[1:])

    @property
    def of_pieces(self) -> bool:
        """A block finds pieces of objects."""
        return True

    @property
    def names_layout(self) -> ImageLayout:
        """Where the names of objects are stored until they are numbered: a block is a shard."""
        edge = self.blocks.grid.size[1]
        return replace(super().names_layout, region=edge, chunk=math.gcd(edge, _NAMES_CHUNK))


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
        t, position = divmod(index, self.blocks.count)
        return t, self.blocks.box(position)

    def slab(self, index: int) -> tuple[int, Box]:
        """Return time point and voxels of a slab."""
        t, position = divmod(index, self.slabs.count)
        return t, self.slabs.box(position)

    def names_plan(self, class_name: str, t: int) -> ArrayPlan:
        """Return the array of object names below `scratch`: a block is a shard, and its planes are chunks."""
        path = storage.join("labels", class_name, str(t))
        size = self.blocks.size
        return ArrayPlan(path, "zyx", self.shape, (1, *size[1:]), size, "uint64")

    def tasks(self, stage: str) -> int:
        """Return the number of tasks of a stage."""
        grids = {"regions": self.blocks, "labels": self.slabs}
        return self.image.planes[0] * grids[stage].count if stage in grids else 1

    def pixels(self, stage: str, index: int) -> int:
        """Return the number of voxels of a task of a stage."""
        if stage == "all":
            return self.image.pixels
        return self.block(index)[1].voxels if stage == "regions" else 0


@dataclass(frozen=True)
class VolumePiecesJob(ObjectJob):
    """An `ObjectJob` of connected components of volumes; the blocks are the regions of members that take volumes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Depth, height and width in voxels."""
        return self.image.layer_shape

    @property
    def spacing(self) -> Spacing:
        """Spacing of the voxels."""
        return spacing_of(self.image, "zyx")

    def locate(self, index: int) -> RegionPlace:
        """Locate a block."""
        return self.image.locate(index)

    def tasks(self, stage: str) -> int:
        """Return the number of tasks of a stage."""
        return self.image.regions if stage in ("regions", "labels") else 1


@dataclass(frozen=True, kw_only=True)
class VolumeMapJob(VolumePiecesJob):
    """A `VolumePiecesJob` whose objects are made of maps, on the fixed grid of blocks of their settings.

    Attributes
    ----------
    maps, sources : see `MapJob`
    """

    maps: MapSettings
    sources: MapSources

    @property
    def blocks(self) -> SeenBlocks:
        """Blocks of a volume."""
        depth, height, width = self.shape
        return self.maps.blocks((depth, height, width))

    @property
    def grid(self) -> RegionGrid:
        """Blocks of a volume."""
        return RegionGrid(self.shape, self.blocks.grid.size)

    @property
    def of_pieces(self) -> bool:
        """A block finds pieces of objects."""
        return True

    @property
    def names_layout(self) -> ImageLayout:
        """Where the names of objects are stored until they are numbered: a block is a shard."""
        depth, edge, _ = self.blocks.grid.size
        return replace(super().names_layout, region=edge, chunk=edge, region_depth=depth, chunk_depth=depth)

    def locate(self, index: int) -> RegionPlace:
        """Locate a block: time point by time point, then in the order of `grid`."""
        t, position = divmod(index, self.grid.count)
        return RegionPlace(t, 0, self.grid.window(position))

    def tasks(self, stage: str) -> int:
        """Return the number of tasks of a stage."""
        return self.image.layers[0] * self.grid.count if stage == "regions" else super().tasks(stage)


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


def uncertainties_of(saved: Collection[str], *, second_flows: bool) -> tuple[str, ...]:
    """Return the uncertainties of objects of a run that saved these maps; a second ensemble adds that of its flows."""
    return tuple(field.name for field in OF_OBJECTS if field.name in saved or (second_flows and field.role is FLOWS))


def channel_names(job: ObjectJob) -> list[str]:
    """Return the names of the source's channels; with their number if two have the same."""
    image = job.image
    return distinct(open_image(image.root, image.kind, image.path, image.name).channels)  # type: ignore[arg-type]


def distinct(names: Sequence[str]) -> list[str]:
    """Names of channels, with their number where two have the same."""
    return [name if names.count(name) == 1 else f"{name}:{index}" for index, name in enumerate(names)]
