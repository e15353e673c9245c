"""Positions of tiles, and the pixels that a region must read: frozen, pure, and a function of the image's shape alone.

Windows and grids have two axes (y, x) or three (z, y, x); all axes are treated alike.

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
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Axes = Literal["yx", "zyx"]
"""Axes of what members see at once: planes, or volumes."""
AXES = "zyx"
Padding = Literal["mirror", "zero"]
"""What tiles see beyond the image's edges: its mirrored pixels, or 0 after preparation."""
TileSize = int | tuple[int, ...]
"""Edge of a square tile of a plane, or pixels on each axis (z, y, x)."""
Number = TypeVar("Number", int, float)


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


@dataclass(frozen=True, slots=True, init=False)
class Window:
    """Part of a plane (y, x) or of a volume (z, y, x) in pixels, half-open on all axes.

    ``Window(y, x)`` and ``Window(z, y, x)``: the axes are the last ones of ``zyx``.

    Attributes
    ----------
    spans : one per axis, in the order of `axes`
    """

    spans: tuple[Span, ...]

    def __init__(self, *spans: Span) -> None:
        if len(spans) not in (2, 3):
            raise ValueError(f"a window has 2 or 3 axes, not {len(spans)}")
        object.__setattr__(self, "spans", spans)

    @classmethod
    def of(cls, *edges: int) -> Window:
        """Return the window ``[y0, y1) x [x0, x1)``, or that of three axes, of the first and last edge of each axis."""
        return cls(*(Span(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)))

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Window:
        """Return all of a plane or volume of this shape."""
        return cls(*(Span(0, length) for length in shape))

    @property
    def axes(self) -> str:
        """A letter per axis: ``yx`` or ``zyx``."""
        return AXES[-len(self.spans) :]

    @property
    def y(self) -> Span:
        """Rows."""
        return self.spans[-2]

    @property
    def x(self) -> Span:
        """Columns."""
        return self.spans[-1]

    @property
    def plane(self) -> Window:
        """Its window in each plane."""
        return self if len(self.spans) == 2 else Window(self.y, self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels on each axis."""
        return tuple(map(len, self.spans))

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Its slices in an array of the whole plane or volume."""
        return tuple(span.slice for span in self.spans)

    @property
    def by_axis(self) -> dict[str, Span]:
        """Its spans by the letters of the axes."""
        return dict(zip(self.axes, self.spans, strict=True))

    def within(self, outer: Window) -> tuple[slice, ...]:
        """Return its slices in an array of `outer`.

        Raises
        ------
        ValueError
            If `outer` does not contain all of it.
        """
        pairs = list(zip(self.spans, outer.spans, strict=True))
        if any(own.start < all_.start or own.stop > all_.stop for own, all_ in pairs):
            raise ValueError(f"{self} is not within {outer}")
        return tuple(slice(own.start - all_.start, own.stop - all_.start) for own, all_ in pairs)


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


@dataclass(frozen=True, slots=True)
class RegionGrid:
    """Partition of a plane or a volume into regions, in row-major order; the last ones of an axis are smaller.

    Attributes
    ----------
    shape : (y, x) or (z, y, x) in pixels
    sizes : pixels of a region on each axis
    """

    shape: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def make(cls, shape: Sequence[int], size: int | Sequence[int]) -> RegionGrid:
        """Return the partition of `shape` into regions of `size` on all axes, or on each."""
        return cls(tuple(shape), of_each(size, len(shape)))

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of regions on each axis."""
        return tuple(-(-length // size) for length, size in zip(self.shape, self.sizes, strict=True))

    @property
    def rows(self) -> int:
        """Number of rows of regions."""
        return self.counts[-2]

    @property
    def columns(self) -> int:
        """Number of columns of regions."""
        return self.counts[-1]

    @property
    def count(self) -> int:
        """Number of regions."""
        return math.prod(self.counts)

    def window(self, index: int) -> Window:
        """Return the pixels of region `index`.

        Raises
        ------
        IndexError
            If there is no such region.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"region {index} of {self.count}")
        spans = []
        for length, size, count in reversed(list(zip(self.shape, self.sizes, self.counts, strict=True))):
            index, position = divmod(index, count)
            spans.append(Span(position * size, min((position + 1) * size, length)))
        return Window(*reversed(spans))

    def index(self, window: Window) -> int:
        """Return which region `window` is; raise ValueError if it is none."""
        index = 0
        for span, size, count in zip(window.spans, self.sizes, self.counts, strict=True):
            index = index * count + span.start // size
        if not 0 <= index < self.count or self.window(index) != window:
            raise ValueError(f"{window} is no region of {self}")
        return index


def tile_shape(size: TileSize) -> tuple[int, ...]:
    """Return the pixels of a tile on each axis."""
    return (size, size) if isinstance(size, int) else tuple(size)


def axes_of(shape: Sequence[int]) -> Axes:
    """Return the axes of a plane or a volume of this shape."""
    return "yx" if len(shape) == 2 else "zyx"


def shown_size(size: float | Sequence[float]) -> str:
    """Return one number, or one for each axis, for people: ``256``, or ``16 x 48 x 48``."""
    return " x ".join(f"{one:g}" for one in (size if isinstance(size, Sequence) else (size,)))


def of_each(value: Number | Sequence[Number], axes: int) -> tuple[Number, ...]:
    """Return a value per axis, given one for all axes or one for each.

    Raises
    ------
    ValueError
        If there are more or fewer values than axes.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes:
        raise ValueError(f"{len(values)} values for {axes} axes")
    return values


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
