"""Connected components of a plane of any size: pieces of regions, joined by an exact union over shared borders.

::

    region 0        region 1           each region labels its own pixels and names a piece by its first pixel
    | .  5  5  5  | 9  9  .  |         (y * width + x + 1 in the plane); pieces at a shared border are cut pieces;
    | .  .  5  .  | .  9  .  |         those that touch there, by sides or corners, are one object: its name is the
                                       least of theirs, which is its own first pixel

Every measurement is made of exact sums over pixels (integers, and floats that are added up without rounding), so that
a piece adds to its object what it holds, and no number depends on the cut. Components are joined by sides or corners,
as in scikit-image, ImageJ and CellProfiler: so every neighbour of a pixel is of its own object, and what is measured
of 3 x 3 pixels (the perimeter) is known of a region that sees `RIM` pixels beyond itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.geometry import RegionGrid, Span, Window

RIM = 2
_TOUCHING = np.ones((3, 3), bool)
# Foreground pixels that are summed at once: few enough for sums of products of coordinates, and of halves of
# mantissas, to be exact in float64.
_AT_ONCE = 1 << 20
_MOMENTS = ("sum_y", "sum_x", "sum_yy", "sum_xx", "sum_yx")
_CORNERS = ("straight", "diagonal", "mixed")
# How border pixels count towards the perimeter, by the weighted sum of those around them (Benkrid and Crookes 2000,
# ``skimage.measure.perimeter``): 1, the root of 2, and the mean of both.
_AROUND = np.array([[10, 2, 10], [2, 1, 2], [10, 2, 10]])
_KINDS = ((5, 7, 15, 17, 25, 27), (21, 33), (13, 23))
_LENGTHS = (1.0, math.sqrt(2), (1 + math.sqrt(2)) / 2)


@dataclass(frozen=True)
class Edges:
    """Names along the sides of a region, 0 for background: (x,) uint64 `top` and `bottom`, (y,) `left` and `right`."""

    top: NDArray[np.uint64]
    bottom: NDArray[np.uint64]
    left: NDArray[np.uint64]
    right: NDArray[np.uint64]


@dataclass(frozen=True)
class RegionPieces:
    """What a region has of the components.

    Attributes
    ----------
    names : (y, x) uint64 of each pixel's piece, 0 for background
    whole : sums of pieces that reach no border beyond which the plane goes on: they are objects
    cut : sums of the others; of an object that spans regions, or not
    """

    names: NDArray[np.uint64]
    whole: pd.DataFrame
    cut: pd.DataFrame

    @property
    def edges(self) -> Edges:
        return Edges(self.names[0], self.names[-1], self.names[:, 0], self.names[:, -1])


def around(region: Window, plane: tuple[int, int]) -> Window:
    """What is looked at for a region: `RIM` pixels more on each side, as far as the plane goes."""
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
    """The pieces of a region; those that are objects of fewer than `minimum_size` pixels are removed.

    Parameters
    ----------
    foreground : (y, x) of the window `around` the region
    maps : gives the maps of which objects get the mean, (y, x) of the region each; not called where there are no pieces
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
    sums = _sums(numbers, pixels, plane_names[1:], region, _corners(foreground)[inner], maps() if len(pixels) else ())
    is_open = open_to[kept]
    return RegionPieces(plane_names[numbers], sums[~is_open], sums[is_open])


def _corners(foreground: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """What each pixel adds to its object's perimeter, (y, x): 0 nothing, 1, 2 and 3 one of `_LENGTHS`."""
    border = foreground & ~ndimage.binary_erosion(foreground)
    patterns = ndimage.convolve(border.astype(np.uint8), _AROUND, mode="constant")
    kind = np.zeros(256, np.uint8)
    for index, found in enumerate(_KINDS, 1):
        kind[list(found)] = index
    result: NDArray[np.uint8] = kind[patterns]
    return result


def _sums(
    numbers: NDArray[np.int32],
    pixels: NDArray[np.int64],
    names: NDArray[np.uint64],
    region: Window,
    corners: NDArray[np.uint8],
    maps: Sequence[NDArray[np.number]],
) -> pd.DataFrame:
    """A row for each of the pieces 1, 2, ...: sums over its pixels, coordinates counted from its bounding box.

    Moments are int64; ``map:<i>`` are lists of floats whose exact sum is that of the map.
    """
    count, width = len(names), region.shape[1]
    totals = {name: np.zeros(count + 1, np.int64) for name in ("area", *_MOMENTS, *_CORNERS)}
    for start in range(0, len(pixels), _AT_ONCE):
        part = pixels[start : start + _AT_ONCE]
        number, (y, x) = numbers.ravel()[part], np.divmod(part, width)
        weights = [None, y, x, y * y, x * x, y * x, *(corners.ravel()[part] == kind for kind in (1, 2, 3))]
        for total, weight in zip(totals.values(), weights, strict=True):
            total += np.bincount(number, weight, minlength=count + 1).astype(np.int64)
    boxes = ndimage.find_objects(numbers, count)
    sides = np.array([(b[0].start, b[0].stop, b[1].start, b[1].stop) for b in boxes], np.int64).reshape(-1, 4)
    frame = pd.DataFrame({"name": names} | {name: total[1:] for name, total in totals.items()})
    origin = region.y.start, region.x.start
    frame["y0"], frame["x0"] = sides[:, 0] + origin[0], sides[:, 2] + origin[1]
    frame["y1"], frame["x1"] = sides[:, 1] + origin[0], sides[:, 3] + origin[1]
    _shift(frame, pd.Series(-sides[:, 0]), pd.Series(-sides[:, 2]))
    for index, values in enumerate(maps):
        parts = _exact_parts(np.asarray(values).ravel()[pixels], numbers.ravel()[pixels], count)
        frame[f"map:{index}"] = pd.Series(list(parts), dtype=object)
    return frame


def _shift(sums: pd.DataFrame, y: pd.Series[Any], x: pd.Series[Any]) -> None:
    """Count the coordinates of `sums` from another origin, at which the old one has the coordinates `y` and `x`."""
    area, of_y, of_x = sums["area"], sums["sum_y"], sums["sum_x"]
    sums["sum_yy"] += 2 * y * of_y + y * y * area
    sums["sum_xx"] += 2 * x * of_x + x * x * area
    sums["sum_yx"] += y * of_x + x * of_y + y * x * area
    sums["sum_y"], sums["sum_x"] = of_y + y * area, of_x + x * area


def _exact_parts(values: NDArray[np.number], numbers: NDArray[np.int32], count: int) -> NDArray[np.float64]:
    """(count, parts) floats whose sum over parts, taken without rounding, is that of the values of each number."""
    if values.dtype.kind in "bu" and values.dtype.itemsize <= 2:
        return np.bincount(numbers, values.astype(np.float64), minlength=count + 1)[1:, None].astype(np.float64)
    exact = values.astype(np.float64)
    finite = np.isfinite(exact)
    mantissa, exponent = np.frexp(np.where(finite, exact, 0))
    places, place = np.unique(exponent, return_inverse=True)
    upper = np.floor(mantissa * 2.0**26)
    halves = ((upper, -26), ((mantissa * 2.0**26 - upper) * 2.0**27, -53))
    cell = numbers.astype(np.int64) * len(places) + place
    parts = [
        np.ldexp(np.bincount(cell, half, minlength=(count + 1) * len(places)).reshape(count + 1, -1), places + low)
        for half, low in halves
        if half.any()
    ]
    if not finite.all():
        parts.append(np.bincount(numbers, np.where(finite, 0, exact), minlength=count + 1)[:, None])
    return np.concatenate([np.zeros((count + 1, 1)), *parts], axis=1)[1:]


def join_pieces(grid: RegionGrid, edges: Callable[[int], Edges]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Which pieces are of one object: names of those that touch another one, sorted, and the names of their objects.

    Parameters
    ----------
    grid : the regions of the plane
    edges : gives the edges of a region by its index; each is asked for once, and two rows of regions are remembered
    """
    pairs = np.concatenate([np.zeros((0, 2), np.uint64), *_touching(grid, edges)])
    names, index = np.unique(pairs, return_inverse=True)
    a, b = index.reshape(-1, 2).T
    count, component = connected_components(
        coo_array((np.ones(len(a), bool), (a, b)), shape=(len(names), len(names))), directed=False
    )
    least = np.full(count, np.iinfo(np.uint64).max)
    np.minimum.at(least, component, names)
    return names, least[component]


def _touching(grid: RegionGrid, edges: Callable[[int], Edges]) -> Iterator[NDArray[np.uint64]]:
    """(n, 2) names of pieces that touch across a border."""
    above = np.zeros(grid.width + 2, np.uint64)  # the row of pixels over the regions, with background at both ends
    for row in range(grid.rows):
        below, left = np.zeros_like(above), None
        for column in range(grid.columns):
            index = row * grid.columns + column
            window, one = grid.window(index), edges(index)
            yield from (_both(one.top, above[window.x.start + k : window.x.stop + k]) for k in range(3))
            if left is not None:
                yield from (_both(one.left, left[k : k + len(one.left)]) for k in range(3))
            below[window.x.start + 1 : window.x.stop + 1] = one.bottom
            left = np.pad(one.right, 1)
        above = below


def _both(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    touching = (a > 0) & (b > 0)
    return np.unique(np.stack([a[touching], b[touching]], axis=1), axis=0)


def joined_sums(pieces: pd.DataFrame, objects: NDArray[np.uint64]) -> pd.DataFrame:
    """Sums of the objects that cut pieces are of, sorted by name; `objects` gives the name for each row of `pieces`."""
    big = pieces.assign(name=objects)
    for name in ("area", *_MOMENTS):  # integers without a limit: an object may fill a plane of any size
        big[name] = big[name].astype(object)
    corner = big.groupby("name")[["y0", "x0"]].transform("min")
    _shift(big, (big["y0"] - corner["y0"]).astype(object), (big["x0"] - corner["x0"]).astype(object))
    how: dict[str, Any] = dict.fromkeys(("area", *_MOMENTS, *_CORNERS), "sum") | {
        "y0": "min",
        "x0": "min",
        "y1": "max",
        "x1": "max",
    }
    how |= {name: _listed for name in pieces.columns if name.startswith("map:")}
    return big.groupby("name", as_index=False).agg(how)


def _listed(parts: pd.Series[Any]) -> list[float]:
    return [value for part in parts for value in part]


def component_rows(sums: pd.DataFrame, plane: tuple[int, int], maps: Sequence[str]) -> pd.DataFrame:
    """Rows of objects, as `pipeline.instances.table.object_rows` has them, from the sums over their pixels."""
    rows = pd.DataFrame({"name": sums["name"].astype(np.uint64), "area": sums["area"].astype(np.int64)})
    for name in ("y0", "x0", "y1", "x1"):
        rows[name] = sums[name].astype(np.int64)
    shapes = [_shape(*one) for one in sums[["area", *_MOMENTS]].itertuples(index=False)]
    columns = ("y", "x", "eccentricity", "major_axis", "minor_axis", "orientation")
    rows[list(columns)] = np.array(shapes, np.float64).reshape(-1, len(columns))
    rows["y"], rows["x"] = rows["y"] + rows["y0"], rows["x"] + rows["x0"]
    rows["perimeter"] = sum(length * sums[name] for length, name in zip(_LENGTHS, _CORNERS, strict=True))
    rows["perimeter"] = rows["perimeter"].astype(np.float64)
    rows["touches_border"] = (rows["y0"] == 0) | (rows["x0"] == 0) | (rows["y1"] == plane[0]) | (rows["x1"] == plane[1])
    rows["flow_error"] = np.nan  # there are no flows to be wrong
    for index, name in enumerate(maps):
        totals = [_total(parts) for parts in sums.get(f"map:{index}", [])]
        rows[f"mean:{name}"] = np.array(totals, np.float64) / rows["area"]
    return rows.sort_values("name", ignore_index=True)


def _shape(area: int, sum_y: int, sum_x: int, sum_yy: int, sum_xx: int, sum_yx: int) -> tuple[float, ...]:
    """Centroid from the bounding box, and eccentricity, axes and orientation of the ellipse of equal second moments.

    The products are exact integers, so that a number is rounded once, whatever the pieces were. The formulas are those
    of ``skimage.measure.regionprops``.
    """
    n, y, x, yy, xx, yx = (int(value) for value in (area, sum_y, sum_x, sum_yy, sum_xx, sum_yx))
    of_y, of_x, of_both = n * yy - y * y, n * xx - x * x, n * yx - y * x
    major = ((of_y + of_x) / n**2 + math.hypot((of_y - of_x) / n**2, 2 * of_both / n**2)) / 2
    minor = (of_y * of_x - of_both**2) / n**4 / major if major else 0.0
    eccentricity = math.sqrt(max(0.0, 1 - minor / major)) if major else 0.0
    if of_y == of_x:
        orientation = math.pi / 4 if of_both > 0 else -math.pi / 4
    else:
        orientation = 0.5 * math.atan2(2 * of_both / n**2, (of_y - of_x) / n**2)
    return y / n, x / n, eccentricity, 4 * math.sqrt(major), 4 * math.sqrt(minor), orientation


def _total(parts: Sequence[float]) -> float:
    """Their sum, rounded once; NaN where there is none."""
    try:
        return math.fsum(parts)
    except (ValueError, OverflowError):  # infinities of both signs; more than a float holds
        return math.nan
