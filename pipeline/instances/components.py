"""Connected components of a plane of any size: pieces of regions, joined by an exact union over shared borders.

::

    region 0        region 1           each region labels its own pixels and names a piece by its first pixel
    | .  5  5  5  | 9  9  .  |         (y * width + x + 1 in the plane); pieces at a shared border are cut pieces;
    | .  .  5  .  | .  9  .  |         those that touch there, by sides or corners, are one object: its name is the
                                       minimum of theirs, which is its own first pixel

Every measurement consists of exact sums over pixels (integers, and floats that are added up without rounding), so that
the sums of pieces add up to those of their object, and no number depends on the partition. Components are
8-connected, as in scikit-image, ImageJ and CellProfiler: every neighbour of a foreground pixel that is foreground
belongs to the same object, so a measurement on 3 x 3 pixels (the perimeter) is exact in a region that sees `RIM`
pixels beyond itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from chorus.pipeline.core.geometry import RegionGrid, Span, Window
from chorus.pipeline.instances.measures import CORNERS, MOMENTS, corners, pixel_sums, shift

RIM = 2
_TOUCHING = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Edges:
    """Names along the sides of a region, 0 for background: (x,) uint64 `top` and `bottom`, (y,) `left` and `right`."""

    top: NDArray[np.uint64]
    bottom: NDArray[np.uint64]
    left: NDArray[np.uint64]
    right: NDArray[np.uint64]


@dataclass(frozen=True)
class RegionPieces:
    """The pieces of components within a region.

    Attributes
    ----------
    names : (y, x) uint64, name of each pixel's piece, 0 for background
    whole : sums of the pieces that touch no border to another region: they are whole objects
    cut : sums of the other pieces, which may or may not continue in other regions
    """

    names: NDArray[np.uint64]
    whole: pd.DataFrame
    cut: pd.DataFrame

    @property
    def edges(self) -> Edges:
        """Names along the sides of the region."""
        return Edges(self.names[0], self.names[-1], self.names[:, 0], self.names[:, -1])


def around(region: Window, plane: tuple[int, int]) -> Window:
    """Return the window to read for a region: `RIM` pixels more on each side, within the plane."""
    return Window(
        Span(max(0, region.y.start - RIM), min(plane[0], region.y.stop + RIM)),
        Span(max(0, region.x.start - RIM), min(plane[1], region.x.stop + RIM)),
    )


def label_pieces(
    foreground: NDArray[np.bool_],
    region: Window,
    plane: tuple[int, int],
    maps: Callable[[], Sequence[NDArray[np.number]]],
    minimum_size: int,
) -> RegionPieces:
    """Label the pieces of a region; whole objects of fewer than `minimum_size` pixels are removed.

    Parameters
    ----------
    foreground : (y, x) bool, of the window `around` the region
    region : window of the region
    plane : height and width of the plane
    maps : returns the maps whose means are measured, (y, x) of the region each; not called if there are no pieces
    minimum_size : in pixels
    """
    wide = around(region, plane)
    inner = tuple(
        slice(own.start - outer.start, own.stop - outer.start)
        for own, outer in ((region.y, wide.y), (region.x, wide.x))
    )
    numbers, count = ndimage.label(foreground[inner], structure=_TOUCHING)
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    open_to = np.zeros(count + 1, bool)
    for side, beyond in (
        (numbers[0], region.y.start > 0),
        (numbers[-1], region.y.stop < plane[0]),
        (numbers[:, 0], region.x.start > 0),
        (numbers[:, -1], region.x.stop < plane[1]),
    ):
        open_to[side] |= beyond
    kept = open_to | (sizes >= minimum_size)
    kept[0] = False
    numbers = np.where(kept, np.cumsum(kept), 0)[numbers].astype(np.int32)
    pixels = np.flatnonzero(numbers)
    first = np.full(int(kept.sum()) + 1, -1, np.int64)
    first[numbers.ravel()[pixels][::-1]] = pixels[::-1]  # the last to be written is the first pixel
    y, x = np.divmod(first, region.shape[1])
    plane_names = ((y + region.y.start) * plane[1] + x + region.x.start + 1).astype(np.uint64)
    plane_names[0] = 0
    sums = pixel_sums(
        numbers, pixels, plane_names[1:], region, corners(foreground)[inner], maps() if len(pixels) else ()
    )
    is_open = open_to[kept]
    return RegionPieces(plane_names[numbers], sums[~is_open], sums[is_open])


def join_pieces(grid: RegionGrid, edges: Callable[[int], Edges]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Find the pieces that belong to one object.

    Parameters
    ----------
    grid : the regions of the plane
    edges : returns the edges of a region by its index; called once per region, and two rows of regions are held

    Returns
    -------
    names : (n,) uint64, sorted names of the pieces that touch another piece
    objects : (n,) uint64, the name of the object of each
    """
    return united(_touching(grid, edges))


def united(touching: Iterable[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Join pieces, given as (n, 2) names of those that touch; return what `join_pieces` does."""
    pairs = np.concatenate([np.zeros((0, 2), np.uint64), *touching])
    names, index = np.unique(pairs, return_inverse=True)
    a, b = index.reshape(-1, 2).T
    count, component = connected_components(
        coo_array((np.ones(len(a), bool), (a, b)), shape=(len(names), len(names))), directed=False
    )
    least = np.full(count, np.iinfo(np.uint64).max)
    np.minimum.at(least, component, names)
    return names, least[component]


def _touching(grid: RegionGrid, edges: Callable[[int], Edges]) -> Iterator[NDArray[np.uint64]]:
    """Yield (n, 2) names of pieces that touch across a border."""
    above = np.zeros(grid.shape[-1] + 2, np.uint64)  # the row of pixels above the regions, with background at both ends
    for row in range(grid.rows):
        below, left = np.zeros_like(above), None
        for column in range(grid.columns):
            index = row * grid.columns + column
            window, one = grid.window(index), edges(index)
            yield from (pairs_of(one.top, above[window.x.start + k : window.x.stop + k]) for k in range(3))
            if left is not None:
                yield from (pairs_of(one.left, left[k : k + len(one.left)]) for k in range(3))
            below[window.x.start + 1 : window.x.stop + 1] = one.bottom
            left = np.pad(one.right, 1)
        above = below


def pairs_of(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the (n, 2) pairs of names at the same place of two arrays of names, each once; without background."""
    touching = (a > 0) & (b > 0)
    return np.unique(np.stack([a[touching], b[touching]], axis=1), axis=0)


def joined_sums(pieces: pd.DataFrame, objects: NDArray[np.uint64]) -> pd.DataFrame:
    """Sum cut pieces by object.

    Parameters
    ----------
    pieces : a row per cut piece
    objects : (pieces,) uint64, the name of the object of each row

    Returns
    -------
    pandas.DataFrame
        A row per object, sorted by name.
    """
    big = pieces.assign(name=objects)
    for name in ("area", *MOMENTS):  # Python integers, without a limit: an object may fill a plane of any size
        big[name] = big[name].astype(object)
    corner = big.groupby("name")[["y0", "x0"]].transform("min")
    shift(big, (big["y0"] - corner["y0"]).astype(object), (big["x0"] - corner["x0"]).astype(object))
    how: dict[str, Any] = dict.fromkeys(("area", *MOMENTS, *CORNERS), "sum") | {
        "y0": "min",
        "x0": "min",
        "y1": "max",
        "x1": "max",
    }
    how |= {name: listed for name in pieces.columns if name.startswith("map:")}
    return big.groupby("name", as_index=False).agg(how)


def listed(parts: pd.Series[Any]) -> list[float]:
    """Return the floats of all lists, in their order."""
    return [value for part in parts for value in part]
