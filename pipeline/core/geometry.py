"""Where tiles lie and what a region must read: frozen, pure, and a function of the image's shape alone.

On each axis tiles begin with the image, and there are as many as it takes to cover it::

    image of `length` pixels
    |=====================================|
    [  tile 0  ]
          [  tile 1  ]                            step = round(tile * (1 - overlap))
                 ...        [  tile n-1  ]

The labels at the rim of an image are as right as those of a grid that begins before it, of which up to four times as
many tiles are needed (docs/overlap.md). Where regions are multiples of the step, as few tiles as can be touch two of
them. Pixels beyond the image are mirrored without repeating the edge, bouncing where it is smaller than a tile. A
region (an output shard) is computed from every tile that touches it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open interval ``[start, stop)`` of pixels on one axis; may reach outside the image."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class Window:
    """Rectangle of a plane in pixels, half-open on both axes."""

    y: Span
    x: Span

    @classmethod
    def of(cls, y0: int, y1: int, x0: int, x1: int) -> Window:
        return cls(Span(y0, y1), Span(x0, x1))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.y), len(self.x)

    @property
    def pixels(self) -> int:
        return len(self.y) * len(self.x)

    def within(self, outer: Window) -> tuple[slice, slice]:
        """Where it lies in an array (y, x) of `outer`, which holds all of it."""
        pairs = ((self.y, outer.y), (self.x, outer.x))
        if any(own.start < all_.start or own.stop > all_.stop for own, all_ in pairs):
            raise ValueError(f"{self} is not within {outer}")
        y, x = (slice(own.start - all_.start, own.stop - all_.start) for own, all_ in pairs)
        return y, x


@dataclass(frozen=True, slots=True)
class TileAxis:
    """Tiles on one axis of a plane.

    Attributes
    ----------
    length : pixels of the image on this axis, at least 1
    tile : pixels that a network sees on this axis
    step : pixels from one tile's start to the next
    """

    length: int
    tile: int
    step: int

    @classmethod
    def make(cls, length: int, tile: int, overlap: float) -> TileAxis:
        """The grid of `tile` pixels with `overlap` (fraction of a tile, 0 <= overlap < 1) over `length` pixels."""
        if length < 1 or tile < 1 or not 0 <= overlap < 1:
            raise ValueError(f"no tile grid for length {length}, tile {tile}, overlap {overlap}")
        return cls(length, tile, max(1, round(tile * (1 - overlap))))

    @property
    def count(self) -> int:
        """Tiles on this axis: as many as it takes to cover it."""
        return 1 + max(0, -(-(self.length - self.tile) // self.step))

    def span(self, index: int) -> Span:
        """Pixels of tile `index`, possibly beyond the image."""
        return Span(index * self.step, index * self.step + self.tile)

    def centre(self, index: int) -> int:
        """The pixel in the middle of tile `index`, the image's last one where that is beyond; the tile has it."""
        return min(self.span(index).start + self.tile // 2, self.length - 1)

    def touching(self, target: Span) -> range:
        """Indices of the tiles that share a pixel with `target`."""
        first = -(-(target.start - self.tile + 1) // self.step)
        last = (target.stop - 1) // self.step
        return range(max(0, first), min(self.count - 1, last) + 1)

    def reach(self, target: Span) -> Span:
        """Pixels of the tiles that touch `target`, possibly beyond the image."""
        tiles = self.touching(target)
        return Span(self.span(tiles[0]).start, self.span(tiles[-1]).stop)

    def needed(self, target: Span) -> Span:
        """Pixels *inside* the image that the tiles touching `target` are made of, mirroring included."""
        reach = self.reach(target)
        if reach.stop <= self.length:
            return reach
        sources = mirror(np.arange(reach.start, reach.stop), self.length)
        return Span(int(sources.min()), int(sources.max()) + 1)


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of a grid: its indices and the pixels that it covers (possibly outside the image)."""

    row: int
    column: int
    window: Window


@dataclass(frozen=True, slots=True)
class Grid:
    """The tiles of a plane, in row-major order."""

    y: TileAxis
    x: TileAxis

    @classmethod
    def make(cls, shape: tuple[int, int], tile: int, overlap: float) -> Grid:
        return cls(TileAxis.make(shape[0], tile, overlap), TileAxis.make(shape[1], tile, overlap))

    @property
    def count(self) -> int:
        return self.y.count * self.x.count

    def tiles(self, target: Window) -> Iterator[Tile]:
        """Every tile that touches `target`, in row-major order of the whole grid."""
        for row in self.y.touching(target.y):
            for column in self.x.touching(target.x):
                yield Tile(row, column, Window(self.y.span(row), self.x.span(column)))

    def centre(self, tile: Tile) -> tuple[int, int]:
        """The pixel (y, x) of the plane in the middle of `tile`, see `TileAxis.centre`."""
        return self.y.centre(tile.row), self.x.centre(tile.column)

    def tile_count(self, target: Window) -> int:
        return len(self.y.touching(target.y)) * len(self.x.touching(target.x))

    def reach(self, target: Window) -> Window:
        """Pixels of the tiles that touch `target`, possibly beyond the plane."""
        return Window(self.y.reach(target.y), self.x.reach(target.x))

    def needed(self, target: Window) -> Window:
        """What must be read of the plane so that every tile touching `target` can be made."""
        return Window(self.y.needed(target.y), self.x.needed(target.x))


@dataclass(frozen=True, slots=True)
class RegionGrid:
    """How a plane is cut into regions: squares of `size` pixels, row by row; the last ones are smaller."""

    height: int
    width: int
    size: int

    @property
    def rows(self) -> int:
        return -(-self.height // self.size)

    @property
    def columns(self) -> int:
        return -(-self.width // self.size)

    @property
    def count(self) -> int:
        return self.rows * self.columns

    def window(self, index: int) -> Window:
        """Pixels of region `index`; raises IndexError outside the plane."""
        if not 0 <= index < self.count:
            raise IndexError(f"region {index} of {self.count}")
        row, column = divmod(index, self.columns)
        y, x = row * self.size, column * self.size
        return Window.of(y, min(y + self.size, self.height), x, min(x + self.size, self.width))


def mirror(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Fold indices outside ``[0, length)`` back by mirroring at the edges without repeating them.

    ``mirror([-2, -1, 0, 1, 2, 3, 4], 3)`` is ``[2, 1, 0, 1, 2, 1, 0]``; it bounces as often as needed.
    """
    if length == 1:
        return np.zeros_like(index)
    period = 2 * (length - 1)
    folded: NDArray[np.int64] = np.mod(index, period)
    return np.where(folded < length, folded, period - folded)
