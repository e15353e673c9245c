"""Spans, windows and regions of an image on two axes (y, x) or three (z, y, x), all treated alike: frozen and pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

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
