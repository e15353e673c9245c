"""The pieces of the objects of maps in a block of a plane, measured so that their sums add up to those of objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.components import RegionPieces
from chorus.pipeline.instances.maps.joining import BlockPieces
from chorus.pipeline.instances.measures import corners, pixel_sums


def plane_pieces(
    pieces: BlockPieces, window: Window, maps: Callable[[], Sequence[NDArray[np.number]]], minimum_size: int
) -> RegionPieces:
    """Measure the pieces of a block; whole objects of fewer than `minimum_size` pixels are removed.

    A piece in the zone of a face may be part of an object of the block beyond it; the others are whole objects. The
    perimeter of a piece is not that of its object.

    Parameters
    ----------
    pieces : of the block, of depth 1
    window : of the block in the plane
    maps : returns the maps whose means are measured, (y, x) of the block each; not called if there are no pieces
    minimum_size : in pixels
    """
    known, index, sizes = np.unique(pieces.names[0], return_inverse=True, return_counts=True)
    near = [np.zeros(0, np.uint64), *(np.unique(zone.names) for zone in pieces.zones.values())]
    is_cut = np.isin(known, np.concatenate(near))
    kept = (known > 0) & (is_cut | (sizes >= minimum_size))
    numbers = np.where(kept, np.cumsum(kept), 0)[index].astype(np.int32).reshape(window.shape)
    pixels = np.flatnonzero(numbers)
    sums = pixel_sums(numbers, pixels, known[kept], window, corners(numbers), maps() if len(pixels) else ())
    names = np.concatenate([np.zeros(1, np.uint64), known[kept]])
    return RegionPieces(names[numbers], sums[~is_cut[kept]], sums[is_cut[kept]])
