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
        """The same interval as a slice."""
        return slice(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class Window:
    """Rectangle of a plane in pixels, half-open on both axes."""

    y: Span
    x: Span

    @classmethod
    def of(cls, y0: int, y1: int, x0: int, x1: int) -> Window:
        """Return the window ``[y0, y1) x [x0, x1)``."""
        return cls(Span(y0, y1), Span(x0, x1))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return len(self.y), len(self.x)

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return len(self.y) * len(self.x)

    def within(self, outer: Window) -> tuple[slice, slice]:
        """Return its slices in an array (y, x) of `outer`.

        Raises
        ------
        ValueError
            If `outer` does not contain all of it.
        """
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
        """Return the grid of tiles over one axis.

        Parameters
        ----------
        length : of the axis in pixels, at least 1
        tile : pixels per tile, at least 1
        overlap : fraction of a tile, 0 <= overlap < 1

        Raises
        ------
        ValueError
            If one of them is out of range.
        """
        if length < 1 or tile < 1 or not 0 <= overlap < 1:
            raise ValueError(f"no tile grid for length {length}, tile {tile}, overlap {overlap}")
        return cls(length, tile, max(1, round(tile * (1 - overlap))))

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
        """Return the pixels of the tiles that touch `target`, possibly beyond the image."""
        tiles = self.touching(target)
        return Span(self.span(tiles[0]).start, self.span(tiles[-1]).stop)

    def needed(self, target: Span) -> Span:
        """Return the pixels *inside* the image that the tiles touching `target` are made of, mirroring included."""
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
        """Return the grid of square tiles over a plane of this shape (height, width); see `TileAxis.make`."""
        return cls(TileAxis.make(shape[0], tile, overlap), TileAxis.make(shape[1], tile, overlap))

    @property
    def count(self) -> int:
        """Number of tiles."""
        return self.y.count * self.x.count

    def tiles(self, target: Window) -> Iterator[Tile]:
        """Yield every tile that touches `target`, in row-major order of the whole grid."""
        for row in self.y.touching(target.y):
            for column in self.x.touching(target.x):
                yield Tile(row, column, Window(self.y.span(row), self.x.span(column)))

    def centre(self, tile: Tile) -> tuple[int, int]:
        """Return the middle pixel (y, x) of a tile in the plane, see `TileAxis.centre`."""
        return self.y.centre(tile.row), self.x.centre(tile.column)

    def tile_count(self, target: Window) -> int:
        """Return the number of tiles that touch `target`."""
        return len(self.y.touching(target.y)) * len(self.x.touching(target.x))

    def reach(self, target: Window) -> Window:
        """Return the pixels of the tiles that touch `target`, possibly beyond the plane."""
        return Window(self.y.reach(target.y), self.x.reach(target.x))

    def needed(self, target: Window) -> Window:
        """Return the window of the plane that must be read to make every tile that touches `target`."""
        return Window(self.y.needed(target.y), self.x.needed(target.x))


@dataclass(frozen=True, slots=True)
class RegionGrid:
    """Partition of a plane into regions: squares of `size` pixels in row-major order; the last ones are smaller."""

    height: int
    width: int
    size: int

    @property
    def rows(self) -> int:
        """Number of rows of regions."""
        return -(-self.height // self.size)

    @property
    def columns(self) -> int:
        """Number of columns of regions."""
        return -(-self.width // self.size)

    @property
    def count(self) -> int:
        """Number of regions."""
        return self.rows * self.columns

    def window(self, index: int) -> Window:
        """Return the pixels of region `index`.

        Raises
        ------
        IndexError
            If there is no such region.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"region {index} of {self.count}")
        row, column = divmod(index, self.columns)
        y, x = row * self.size, column * self.size
        return Window.of(y, min(y + self.size, self.height), x, min(x + self.size, self.width))


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
