"""Positions of tiles, and the pixels that a region must read: frozen, pure, and a function of the image's shape alone.

On each axis the first tile begins at the image's first pixel, and there are as many tiles as it takes to cover it::

    image of `length` pixels
    |=====================================|
    [  tile 0  ]
          [  tile 1  ]                            step = round(tile * (1 - overlap))
                 ...        [  tile n-1  ]

Labels near the edge of an image are as accurate as those of a grid that begins before the image, which needs up to four
times as many tiles (docs/overlap.md). If regions are multiples of the step, as few tiles as possible touch two of them.
Pixels beyond the image are mirrored without repeating the edge, as often as needed if the image is smaller than a tile.
A region (an output shard) is computed from every tile that touches it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Span, Window, of_each


@dataclass(frozen=True, slots=True)
class TileAxis:
    """Tiles on one axis of an image.

    Attributes
    ----------
    length : pixels of the image on this axis, at least 1
    tile : pixels that a network answers for on this axis
    step : pixels from one tile's start to the next
    margin : pixels that a network sees before these, and after them
    """

    length: int
    tile: int
    step: int
    margin: int = 0

    @classmethod
    def make(cls, length: int, tile: int, overlap: float, margin: int = 0, align: int = 1) -> TileAxis:
        """Return the grid of tiles over one axis.

        Parameters
        ----------
        length : of the axis in pixels, at least 1
        tile : pixels per tile, at least 1
        overlap : fraction of a tile, 0 <= overlap < 1
        margin : see `TileAxis`
        align : tiles begin at multiples of it

        Raises
        ------
        ValueError
            If one of them is out of range.
        """
        if length < 1 or tile < 1 or not 0 <= overlap < 1:
            raise ValueError(f"no tile grid for length {length}, tile {tile}, overlap {overlap}")
        return cls(length, tile, max(1, round(tile * (1 - overlap) / align)) * align, margin)

    @property
    def count(self) -> int:
        """Number of tiles on this axis: as many as it takes to cover it."""
        return 1 + max(0, -(-(self.length - self.tile) // self.step))

    def span(self, index: int) -> Span:
        """Return the pixels of tile `index`, possibly beyond the image."""
        return Span(index * self.step, index * self.step + self.tile)

    def centre(self, index: int) -> int:
        """Return the middle pixel of tile `index`, or the image's last pixel if the middle is beyond it.

        The tile contains this pixel in both cases.
        """
        return min(self.span(index).start + self.tile // 2, self.length - 1)

    def touching(self, target: Span) -> range:
        """Return the indices of the tiles that share a pixel with `target`."""
        first = -(-(target.start - self.tile + 1) // self.step)
        last = (target.stop - 1) // self.step
        return range(max(0, first), min(self.count - 1, last) + 1)

    def reach(self, target: Span) -> Span:
        """Return what networks see of the tiles that touch `target`, possibly beyond the image."""
        tiles = self.touching(target)
        return Span(self.span(tiles[0]).start - self.margin, self.span(tiles[-1]).stop + self.margin)

    def needed(self, target: Span) -> Span:
        """Return the pixels *inside* the image that the tiles touching `target` are made of, mirroring included."""
        reach = self.reach(target)
        if reach.start >= 0 and reach.stop <= self.length:
            return reach
        sources = mirror(np.arange(reach.start, reach.stop), self.length)
        return Span(int(sources.min()), int(sources.max()) + 1)


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of a grid: its index on each axis and the pixels of its answer (possibly outside the image)."""

    index: tuple[int, ...]
    window: Window


@dataclass(frozen=True, slots=True, init=False)
class Grid:
    """The tiles of a plane or a volume, in row-major order: ``Grid(y, x)`` or ``Grid(z, y, x)``.

    Attributes
    ----------
    axes : tiles on each axis
    """

    axes: tuple[TileAxis, ...]

    def __init__(self, *axes: TileAxis) -> None:
        object.__setattr__(self, "axes", axes)

    @classmethod
    def make(
        cls,
        shape: Sequence[int],
        tile: int | Sequence[int],
        overlap: float | Sequence[float],
        *,
        margin: int | Sequence[int] = 0,
        align: int | Sequence[int] = 1,
    ) -> Grid:
        """Return the grid of tiles over a plane or volume of this shape; see `TileAxis.make`.

        Parameters
        ----------
        shape : (y, x) or (z, y, x)
        tile, overlap, margin, align : of all axes, or of each
        """
        tiles, overlaps = of_each(tile, len(shape)), of_each(overlap, len(shape))
        margins, aligned = of_each(margin, len(shape)), of_each(align, len(shape))
        axes = zip(shape, tiles, overlaps, margins, aligned, strict=True)
        return cls(*(TileAxis.make(*axis) for axis in axes))

    @property
    def y(self) -> TileAxis:
        """Tiles along the rows' axis."""
        return self.axes[-2]

    @property
    def x(self) -> TileAxis:
        """Tiles along the columns' axis."""
        return self.axes[-1]

    @property
    def count(self) -> int:
        """Number of tiles."""
        return math.prod(axis.count for axis in self.axes)

    def tiles(self, target: Window) -> Iterator[Tile]:
        """Yield every tile that touches `target`, in row-major order of the whole grid."""
        for index in itertools.product(*self._touching(target)):
            yield Tile(index, Window(*(axis.span(at) for axis, at in zip(self.axes, index, strict=True))))

    def centre(self, tile: Tile) -> tuple[int, ...]:
        """Return the middle pixel of a tile in the plane or volume, see `TileAxis.centre`."""
        return tuple(axis.centre(at) for axis, at in zip(self.axes, tile.index, strict=True))

    def seen(self, tile: Tile) -> Window:
        """Return the pixels that a network sees of a tile, possibly beyond the image."""
        spans = zip(tile.window.spans, self.axes, strict=True)
        return Window(*(Span(span.start - axis.margin, span.stop + axis.margin) for span, axis in spans))

    def tile_count(self, target: Window) -> int:
        """Return the number of tiles that touch `target`."""
        return math.prod(map(len, self._touching(target)))

    def reach(self, target: Window) -> Window:
        """Return what networks see of the tiles that touch `target`, possibly beyond the image."""
        return Window(*(axis.reach(span) for axis, span in zip(self.axes, target.spans, strict=True)))

    def needed(self, target: Window) -> Window:
        """Return the window of the image that must be read to make every tile that touches `target`."""
        return Window(*(axis.needed(span) for axis, span in zip(self.axes, target.spans, strict=True)))

    def _touching(self, target: Window) -> list[range]:
        return [axis.touching(span) for axis, span in zip(self.axes, target.spans, strict=True)]


def mirror(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Fold indices outside ``[0, length)`` back by mirroring at the edges without repeating them.

    ``mirror([-2, -1, 0, 1, 2, 3, 4], 3)`` is ``[2, 1, 0, 1, 2, 1, 0]``; indices are mirrored as often as needed.

    Parameters
    ----------
    index : any shape, int64
    length : of the axis, at least 1

    Returns
    -------
    NDArray[np.int64]
        Same shape, 0 to ``length - 1``.
    """
    if length == 1:
        return np.zeros_like(index)
    period = 2 * (length - 1)
    folded: NDArray[np.int64] = np.mod(index, period)
    return np.where(folded < length, folded, period - folded)
