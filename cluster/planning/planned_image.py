"""One image of a run, with everything that a worker needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass

from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.io.models import Ngff


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image with everything that a worker needs to know of it.

    Attributes
    ----------
    name : path of its results below ``OUT/images``, unique
    root, path, kind, ngff : where it is, see `chorus.pipeline.io.models.SourceImage`
    axes, shape, dtype : of the chosen level, axes in the source's order
    level_path : array below the image's group
    output_axes, output_shape, scale, translation, units : without channels, in the order t, z, y, x
    channels : indices on the c axis that are handed to the members
    model_height, model_width : size of a plane at the ensemble's pixel size, where the tiles lie
    region : edge of a region in pixels of the chosen level, on y and x
    model_depth, region_depth : the same of the z axis, where members take volumes; 0 where they take planes
    note : a remark on its planning for the user, such as an unknown pixel size; usually empty
    """

    name: str
    root: str
    path: str
    kind: str
    ngff: Ngff
    axes: str
    shape: tuple[int, ...]
    dtype: str
    level_path: str
    output_axes: str
    output_shape: tuple[int, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    units: tuple[str | None, ...]
    channels: tuple[int, ...]
    model_height: int
    model_width: int
    region: int
    note: str = ""
    model_depth: int = 0
    region_depth: int = 0

    @property
    def url(self) -> str:
        """Return the URL of the image."""
        return f"{self.root}/{self.path}" if self.path else self.root

    @property
    def height(self) -> int:
        """Return the height of a plane of the output, in pixels."""
        return self.output_shape[-2]

    @property
    def width(self) -> int:
        """Return the width of a plane of the output, in pixels."""
        return self.output_shape[-1]

    @property
    def planes(self) -> tuple[int, int]:
        """Return the number of time points and of z planes."""
        sizes = dict(zip(self.output_axes, self.output_shape, strict=True))
        return sizes.get("t", 1), sizes.get("z", 1)

    @property
    def layers(self) -> tuple[int, int]:
        """Return the number of time points and of what each has of planes, or 1 where it is one volume."""
        times, depths = self.planes
        return times, 1 if self.model_depth else depths

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Return the pixels on each axis of a plane, (y, x), or of a volume, (z, y, x)."""
        return self.output_shape[-3 if self.model_depth else -2 :]

    @property
    def model_shape(self) -> tuple[int, ...]:
        """Return the same at the ensemble's pixel size."""
        plane = (self.model_height, self.model_width)
        return (self.model_depth, *plane) if self.model_depth else plane

    @property
    def grid(self) -> RegionGrid:
        """Return the grid of regions of one plane, or of one volume."""
        depth = (self.region_depth,) if self.model_depth else ()
        return RegionGrid(self.layer_shape, (*depth, self.region, self.region))

    @property
    def pixels(self) -> int:
        """Return the number of pixels in all planes."""
        times, depths = self.planes
        return times * depths * self.height * self.width

    @property
    def regions(self) -> int:
        """Return the number of regions over all time points and depths."""
        times, depths = self.layers
        return times * depths * self.grid.count

    def locate(self, index: int) -> RegionPlace:
        """Locate region `index` of this image: time points in order, then z planes, then row by row within a plane.

        Of volumes: time points in order, then the blocks of a volume, those of the first planes first.
        """
        layer, position = divmod(index, self.grid.count)
        t, z = divmod(layer, self.layers[1])
        return RegionPlace(t, z, self.grid.window(position))


@dataclass(frozen=True, slots=True)
class RegionPlace:
    """Where a region lies in its image; `z` is 0 where the window has a z axis of its own."""

    t: int
    z: int
    window: Window
