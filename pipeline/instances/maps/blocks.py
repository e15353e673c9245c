"""The fixed grid of blocks on which objects of maps are made, and the part of a block that its neighbours judge it by.

::

        outer box of block 0
    +-------------------------+
    |                    +----+--------------------+
    |    block 0         | zone    |  block 1       |    a block sees `halo` pixels beyond itself; a zone is what both
    |                    |    |    |                |    neighbours see around the face between them: on the axis of
    |                    +----+----+                |    the face `margin` pixels on each side, else the block
    +-------------------------+                     |
                         +--------------------------+

The grid depends on the shape of the image and on the settings alone, never on regions or workers. A plane is a volume
of depth 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chorus.pipeline.core.geometry import Span
from chorus.pipeline.instances.volumes.blocks import BlockGrid, Box

Sizes = tuple[int, int, int]
"""Planes, rows and columns."""


@dataclass(frozen=True, slots=True)
class Face:
    """The face between two neighbouring blocks.

    Attributes
    ----------
    axis : 0, 1 or 2, for z, y and x
    first, second : indices of the blocks before and behind it
    """

    axis: int
    first: int
    second: int


@dataclass(frozen=True, slots=True)
class SeenBlocks:
    """The blocks of a volume, each with what it sees beyond itself.

    Attributes
    ----------
    grid : of the blocks
    halo : planes, rows and columns that a block sees beyond itself
    margin : planes, rows and columns of a zone on each side of a face; at most `halo`
    """

    grid: BlockGrid
    halo: Sizes
    margin: Sizes

    def outer(self, index: int) -> Box:
        """Return the voxels that block `index` sees."""
        box = self.grid.box(index)
        spans = zip((box.z, box.y, box.x), self.grid.shape, self.halo, strict=True)
        return Box(*(_wider(span, more, length) for span, length, more in spans))

    def faces(self, index: int) -> Iterator[Face]:
        """Yield the faces of block `index`, those before it on each axis first."""
        counts = self.grid.counts
        strides = counts[1] * counts[2], counts[2], 1
        for axis, (count, stride) in enumerate(zip(counts, strides, strict=True)):
            position = index // stride % count
            if position > 0:
                yield Face(axis, index - stride, index)
            if position < count - 1:
                yield Face(axis, index, index + stride)

    def zone(self, face: Face) -> Box:
        """Return the voxels around a face that both of its blocks see."""
        box = self.grid.box(face.first)
        spans = [box.z, box.y, box.x]
        edge = Span(spans[face.axis].stop, spans[face.axis].stop)
        spans[face.axis] = _wider(edge, self.margin[face.axis], self.grid.shape[face.axis])
        return Box(*spans)


def _wider(span: Span, more: int, length: int) -> Span:
    return Span(max(0, span.start - more), min(length, span.stop + more))
