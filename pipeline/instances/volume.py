"""Where a block lies in a volume, and how a volume is cut into blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chorus.pipeline.core.geometry import Span, Window


@dataclass(frozen=True, slots=True)
class Box:
    """Part of a volume in voxels, half-open on all axes: what `chorus.pipeline.core.geometry.Window` is of a plane."""

    z: Span
    y: Span
    x: Span

    @classmethod
    def of(cls, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> Box:
        return cls(Span(z0, z1), Span(y0, y1), Span(x0, x1))

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.z), len(self.y), len(self.x)

    @property
    def window(self) -> Window:
        """What it covers of each plane."""
        return Window(self.y, self.x)

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    def within(self, outer: Box) -> tuple[slice, slice, slice]:
        """Where it lies in an array (z, y, x) of `outer`, which holds all of it."""
        if self.z.start < outer.z.start or self.z.stop > outer.z.stop:
            raise ValueError(f"{self} is not within {outer}")
        return slice(self.z.start - outer.z.start, self.z.stop - outer.z.start), *self.window.within(outer.window)


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """How a volume is cut into blocks of `size` voxels, in the order z, y, x; the last ones are smaller."""

    shape: tuple[int, int, int]
    size: tuple[int, int, int]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Blocks on each axis."""
        z, y, x = (-(-length // size) for length, size in zip(self.shape, self.size, strict=True))
        return z, y, x

    @property
    def count(self) -> int:
        return math.prod(self.counts)

    def box(self, index: int) -> Box:
        """Voxels of block `index`; raises IndexError outside the volume."""
        if not 0 <= index < self.count:
            raise IndexError(f"block {index} of {self.count}")
        _, rows, columns = self.counts
        place = index // (rows * columns), index // columns % rows, index % columns
        starts = [at * size for at, size in zip(place, self.size, strict=True)]
        spans = [Span(a, min(a + size, length)) for a, size, length in zip(starts, self.size, self.shape, strict=True)]
        return Box(*spans)
