"""Connected components of a volume of any size: pieces of blocks, joined by an exact union over shared faces.

As `chorus.pipeline.instances.components` in 3D: a piece is named by its first voxel, ``(z * height + y) * width + x +
1`` in the volume, and an object by the least name of its pieces, which is its own first voxel. Components are
26-connected. Sums over voxels are exact, so that no number depends on the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.instances.components import listed, pairs_of, united
from chorus.pipeline.instances.measures import exact_parts, rounded_once

_TOUCHING = np.ones((3, 3, 3), bool)
_ADDED = ("volume", "sum_z", "sum_y", "sum_x")
_FIRST, _LAST = ("z0", "y0", "x0"), ("z1", "y1", "x1")

Faces = Mapping[str, NDArray[np.uint64]]
"""Names along the faces of a block, 0 for background, by axis and end: ``z0`` (y, x), ..., ``x1`` (z, y)."""


@dataclass(frozen=True)
class BlockPieces:
    """The pieces of components within a block.

    Attributes
    ----------
    names : (z, y, x) uint64, name of each voxel's piece, 0 for background
    whole : sums of the pieces that touch no face to another block: they are whole objects
    cut : sums of the other pieces, which may or may not continue in other blocks
    """

    names: NDArray[np.uint64]
    whole: pd.DataFrame
    cut: pd.DataFrame

    @property
    def faces(self) -> dict[str, NDArray[np.uint64]]:
        """Names along the faces of the block."""
        ends = product(range(3), (0, 1))
        return {f"{'zyx'[axis]}{end}": np.moveaxis(self.names, axis, 0)[-end] for axis, end in ends}


def label_pieces(
    foreground: NDArray[np.bool_],
    block: Window,
    volume: Sequence[int],
    maps: Callable[[], Sequence[NDArray[np.number]]],
    minimum_size: int,
) -> BlockPieces:
    """Label the pieces of a block; whole objects of fewer than `minimum_size` voxels are removed.

    Parameters
    ----------
    foreground : (z, y, x) bool of the block
    block : its voxels, at most 2**26, so that sums of parts of floats are exact
    volume : planes, rows and columns of the volume
    maps : returns the maps whose means are measured, (z, y, x) of the block each; not called if there are no pieces
    minimum_size : in voxels
    """
    numbers, count = ndimage.label(foreground, structure=_TOUCHING)
    open_to = np.zeros(count + 1, bool)
    for axis, (span, length) in enumerate(zip(block.spans, volume, strict=True)):
        for end, beyond in ((0, span.start > 0), (-1, span.stop < length)):
            open_to[numbers.take(end, axis)] |= beyond
    kept = open_to | (np.bincount(numbers.ravel(), minlength=count + 1) >= minimum_size)
    kept[0] = False
    numbers = np.where(kept, np.cumsum(kept), 0)[numbers].astype(np.int32)
    voxels = np.flatnonzero(numbers)
    first = np.zeros(int(kept.sum()) + 1, np.int64)
    first[numbers.ravel()[voxels][::-1]] = voxels[::-1]  # the last to be written is the first voxel
    z, y, x = (at + span.start for at, span in zip(np.unravel_index(first, block.shape), block.spans, strict=True))
    names = ((z * volume[1] + y) * volume[2] + x + 1).astype(np.uint64)
    names[0] = 0
    sums, is_open = voxel_sums(numbers, voxels, names[1:], block, maps() if len(voxels) else ()), open_to[kept]
    return BlockPieces(names[numbers], sums[~is_open], sums[is_open])


def voxel_sums(
    numbers: NDArray[np.int32],
    voxels: NDArray[np.int64],
    names: NDArray[np.uint64],
    block: Window,
    maps: Sequence[NDArray[np.number]],
) -> pd.DataFrame:
    """Sum over the voxels of each piece: coordinates in the volume as int64, maps as lists of exact parts.

    Parameters
    ----------
    numbers : (z, y, x) int32 pieces of a block 1, 2, ..., 0 for background
    voxels : (n,) flat indices of the voxels of pieces
    names : (pieces,) uint64
    block : its voxels in the volume
    maps : (z, y, x) each
    """
    count, number = len(names), numbers.ravel()[voxels]
    frame = pd.DataFrame({"name": names, "volume": np.bincount(number, minlength=count + 1)[1:]})
    boxes = ndimage.find_objects(numbers, count)
    for axis, at in enumerate(np.unravel_index(voxels, block.shape)):
        letter, start = "zyx"[axis], block.spans[axis].start
        within = np.bincount(number, at, minlength=count + 1)[1:].astype(np.int64)  # below 2**53
        frame[f"sum_{letter}"] = within + start * frame["volume"]
        frame[f"{letter}0"] = np.array([box[axis].start for box in boxes], np.int64) + start
        frame[f"{letter}1"] = np.array([box[axis].stop for box in boxes], np.int64) + start
    for index, values in enumerate(maps):
        parts = exact_parts(np.asarray(values).ravel()[voxels], number, count)
        frame[f"map:{index}"] = pd.Series(list(parts), dtype=object)
    return frame


def join_pieces(grid: RegionGrid, faces: Callable[[int], Faces]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Find the pieces that belong to one object.

    Parameters
    ----------
    grid : the blocks of the volume
    faces : returns the faces of a block by its index; called up to six times per block, and the names of two sections
        through the volume are held

    Returns
    -------
    names : (n,) uint64, sorted names of the pieces that touch another piece
    objects : (n,) uint64, the name of the object of each
    """
    return united(_touching(grid, faces))


def _touching(grid: RegionGrid, faces: Callable[[int], Faces]) -> Iterator[NDArray[np.uint64]]:
    """Yield (n, 2) names of pieces that touch across a face, an edge or a corner.

    Voxels of two blocks that touch are on both sides of a section between blocks along at least one axis.
    """
    for axis in range(3):
        for layer in range(grid.counts[axis] - 1):
            before, after = (_section(grid, faces, axis, layer + end, 1 - end) for end in (0, 1))
            wide, (height, width) = np.pad(after, 1), before.shape
            for y, x in product(range(3), repeat=2):
                yield pairs_of(before, wide[y : y + height, x : x + width])


def _section(grid: RegionGrid, faces: Callable[[int], Faces], axis: int, layer: int, end: int) -> NDArray[np.uint64]:
    """Return the names along one side of a layer of blocks across an axis."""
    others = [other for other in range(3) if other != axis]
    section = np.zeros([grid.shape[other] for other in others], np.uint64)
    places = np.arange(grid.count).reshape(grid.counts).take(layer, axis)
    for index in places.ravel().tolist():
        spans = grid.window(index).spans
        section[tuple(spans[other].slice for other in others)] = faces(index)[f"{'zyx'[axis]}{end}"]
    return section


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
    how: dict[str, Any] = dict.fromkeys(_ADDED, "sum") | dict.fromkeys(_FIRST, "min") | dict.fromkeys(_LAST, "max")
    how |= {name: listed for name in pieces.columns if name.startswith("map:")}
    return pieces.assign(name=objects).groupby("name", as_index=False).agg(how)


def measured_volumes(sums: pd.DataFrame, volume: Sequence[int], maps: Sequence[str]) -> pd.DataFrame:
    """Measure objects from the sums over their voxels.

    Parameters
    ----------
    sums : a row per object
    volume : planes, rows and columns of the volume
    maps : names of the summed maps

    Returns
    -------
    pandas.DataFrame
        As of `chorus.pipeline.instances.volumes.table.volume_rows`, without shapes; sorted by name.
    """
    rows = sums[["name", "volume", *_FIRST, *_LAST]].copy()
    for letter in "zyx":  # whole numbers without a limit: rounded once
        totals = zip(sums[f"sum_{letter}"].tolist(), sums["volume"].tolist(), strict=True)
        rows[letter] = np.array([total / count for total, count in totals], np.float64)
    ends = zip(_FIRST, _LAST, volume, strict=True)
    rows["touches_border"] = np.any([(sums[a] == 0) | (sums[b] == length) for a, b, length in ends], axis=0)
    rows["flow_error"] = math.nan
    for index, name in enumerate(maps):
        totals_of_map = [rounded_once(parts) for parts in sums.get(f"map:{index}", [])]
        rows[name] = np.array(totals_of_map, np.float64) / sums["volume"].to_numpy()
    return rows.sort_values("name", ignore_index=True)
