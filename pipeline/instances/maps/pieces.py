"""The pieces of the objects of maps in a block, measured so that their sums add up to those of objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.components import RegionPieces
from chorus.pipeline.instances.maps.joining import BlockPieces
from chorus.pipeline.instances.measures import corners, pixel_sums
from chorus.pipeline.instances.volumes import components as volumes


def plane_pieces(
    pieces: BlockPieces, window: Window, maps: Callable[[], Sequence[NDArray[np.number]]], minimum_size: int
) -> RegionPieces:
    """Measure the pieces of a block of a plane; whole objects of fewer than `minimum_size` pixels are removed.

    A piece in the zone of a face may be part of an object of the block beyond it; the others are whole objects. The
    perimeter of a piece is not that of its object.

    Parameters
    ----------
    pieces : of the block, of depth 1
    window : of the block in the plane
    maps : returns the maps whose means are measured, (y, x) of the block each; not called if there are no pieces
    minimum_size : in pixels
    """
    kept = _kept(pieces, minimum_size)
    numbers = kept.numbers[0]
    pixels = np.flatnonzero(numbers)
    sums = pixel_sums(numbers, pixels, kept.names[1:], window, corners(numbers), maps() if len(pixels) else ())
    return RegionPieces(kept.names[numbers], sums[~kept.is_cut], sums[kept.is_cut])


def volume_pieces(
    pieces: BlockPieces, window: Window, maps: Callable[[], Sequence[NDArray[np.number]]], minimum_size: int
) -> volumes.BlockPieces:
    """Measure the pieces of a block of a volume; see `plane_pieces`.

    Parameters
    ----------
    pieces : of the block
    window : of the block in the volume
    maps : returns the maps whose means are measured, (z, y, x) of the block each; not called if there are no pieces
    minimum_size : in voxels
    """
    kept = _kept(pieces, minimum_size)
    voxels = np.flatnonzero(kept.numbers)
    sums = volumes.voxel_sums(kept.numbers, voxels, kept.names[1:], window, maps() if len(voxels) else ())
    return volumes.BlockPieces(kept.names[kept.numbers], sums[~kept.is_cut], sums[kept.is_cut])


@dataclass(frozen=True)
class _Kept:
    """Pieces that are kept: (z, y, x) int32 numbers, 0 for background; the name of each; whether it may go on."""

    numbers: NDArray[np.int32]
    names: NDArray[np.uint64]
    is_cut: NDArray[np.bool_]


def _kept(pieces: BlockPieces, minimum_size: int) -> _Kept:
    known, index, sizes = np.unique(pieces.names, return_inverse=True, return_counts=True)
    near = [np.zeros(0, np.uint64), *(np.unique(zone.names) for zone in pieces.zones.values())]
    is_cut = np.isin(known, np.concatenate(near))
    kept = (known > 0) & (is_cut | (sizes >= minimum_size))
    numbers = np.where(kept, np.cumsum(kept), 0)[index].astype(np.int32).reshape(pieces.names.shape)
    return _Kept(numbers, np.concatenate([np.zeros(1, np.uint64), known[kept]]), is_cut[kept])
