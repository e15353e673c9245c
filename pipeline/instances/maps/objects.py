"""The objects of maps of a whole volume or plane in memory, by the same blocks as of stored ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.instances.maps.blocks import Face, SeenBlocks
from chorus.pipeline.instances.maps.joining import Zone, block_pieces, same_objects, united_names
from chorus.pipeline.instances.maps.rules import Maps, MapSettings, label_box


def map_objects(maps: Maps, blocks: SeenBlocks, settings: MapSettings) -> NDArray[np.uint64]:
    """Label the objects of maps block by block.

    Parameters
    ----------
    maps : of the volume
    blocks : `MapSettings.blocks` of its shape, or others: the result depends on them where a block does not see enough
    settings : of the objects

    Returns
    -------
    NDArray[np.uint64]
        (z, y, x), 0 for background: 1 + the index of the object's first voxel in the volume.
    """
    names, pairs = np.zeros(blocks.grid.shape, np.uint64), []
    zones: dict[Face, Zone] = {}
    for index in range(blocks.grid.count):
        pieces = block_pieces(label_box(maps, blocks.outer(index), settings), blocks, index)
        box = blocks.grid.box(index)
        names[box.z.slice, box.y.slice, box.x.slice] = pieces.names
        for face, zone in pieces.zones.items():
            if face.second == index:  # the block before it has been labelled
                pairs.append(same_objects(zones.pop(face), zone))
            else:
                zones[face] = zone
    names = replaced(names, *united_names(pairs))
    known, index_of, sizes = np.unique(names, return_inverse=True, return_counts=True)
    known[sizes < settings.minimum_size] = 0
    result: NDArray[np.uint64] = known[index_of].reshape(names.shape)
    return result


def replaced(names: NDArray[np.uint64], old: NDArray[np.uint64], new: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Replace in `names` each of `old` by the `new` one at the same index.

    Parameters
    ----------
    names : any shape
    old : (n,) sorted
    new : (n,)

    Returns
    -------
    NDArray[np.uint64]
        Of the shape of `names`.
    """
    if not len(old):
        return names.copy()
    positions = np.minimum(np.searchsorted(old, names), len(old) - 1)
    return np.where(old[positions] == names, new[positions], names)
