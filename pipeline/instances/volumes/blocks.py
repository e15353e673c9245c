"""Boxes of a volume, and its partition into blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chorus.pipeline.core.geometry import Span, Window


@dataclass(frozen=True, slots=True)
class Box:
    """Part of a volume in voxels, half-open on all axes; in a plane it is `chorus.pipeline.core.geometry.Window`."""

    z: Span
    y: Span
    x: Span

    @classmethod
    def of(cls, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> Box:
        """Return the box ``[z0, z1) x [y0, y1) x [x0, x1)``."""
        return cls(Span(z0, z1), Span(y0, y1), Span(x0, x1))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Planes, rows and columns."""
        return len(self.z), len(self.y), len(self.x)

    @property
    def window(self) -> Window:
        """Its window in each plane."""
        return Window(self.y, self.x)

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    def within(self, outer: Box) -> tuple[slice, slice, slice]:
        """Return its slices in an array (z, y, x) of `outer`.

        Raises
        ------
        ValueError
            If `outer` does not contain all of it.
        """
        if self.z.start < outer.z.start or self.z.stop > outer.z.stop:
            raise ValueError(f"{self} is not within {outer}")
        y, x = self.window.within(outer.window)
        return slice(self.z.start - outer.z.start, self.z.stop - outer.z.start), y, x


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """Partition of a volume into blocks of `size` voxels, in the order z, y, x; the last ones are smaller."""

    shape: tuple[int, int, int]
    size: tuple[int, int, int]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Number of blocks on each axis."""
        z, y, x = (-(-length // size) for length, size in zip(self.shape, self.size, strict=True))
        return z, y, x

    @property
    def count(self) -> int:
        """Number of blocks."""
        return math.prod(self.counts)

    def box(self, index: int) -> Box:
        """Return the voxels of block `index`.

        Raises
        ------
        IndexError
            If there is no such block.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"block {index} of {self.count}")
        _, rows, columns = self.counts
        position = index // (rows * columns), index // columns % rows, index % columns
        starts = [at * size for at, size in zip(position, self.size, strict=True)]
        spans = [Span(a, min(a + size, length)) for a, size, length in zip(starts, self.size, self.shape, strict=True)]
        return Box(*spans)
