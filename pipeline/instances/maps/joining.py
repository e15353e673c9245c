"""Objects of blocks, united where neighbouring blocks see the same object.

Each block labels the objects of all that it sees, and keeps those with a voxel of its own: its pieces. Around a face
two blocks have labelled the same voxels, and a piece of one and a piece of the other are parts of one object

- if they overlap by more than half of their union, so that each has one such partner at most;
- or if both grew from the same seed there, where objects grow from seeds: so the seeds of blocks become those of the
  whole volume, however far they extend.

What is united depends on the pixels of the two blocks alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from chorus.pipeline.instances.maps.blocks import Face, SeenBlocks
from chorus.pipeline.instances.maps.seeded import BoxLabels

# Intersection over union above which two pieces are parts of one object.
_SAME = 0.5


@dataclass(frozen=True)
class Zone:
    """What a block says of the voxels around one of its faces.

    Attributes
    ----------
    names : (z, y, x) uint64, 0 for background and for objects without a voxel in the block
    seeds : (z, y, x) bool, the voxels that objects grew from; none where they did not grow from seeds
    """

    names: NDArray[np.uint64]
    seeds: NDArray[np.bool_]


@dataclass(frozen=True)
class BlockPieces:
    """The pieces of objects within a block.

    Attributes
    ----------
    names : (z, y, x) uint64 of the block, 0 for background: 1 + the index of the piece's first voxel in the volume
    zones : of each face
    """

    names: NDArray[np.uint64]
    zones: Mapping[Face, Zone]


def block_pieces(objects: BoxLabels, blocks: SeenBlocks, index: int) -> BlockPieces:
    """Name the pieces of a block.

    Parameters
    ----------
    objects : of all that the block sees
    blocks : of the volume
    index : of the block
    """
    labels, outer, box, shape = objects.labels, blocks.outer(index), blocks.grid.box(index), blocks.grid.shape
    own = np.ascontiguousarray(labels[box.within(outer)])
    pixels = np.flatnonzero(own)[::-1]
    first = np.full(int(labels.max(initial=0)) + 1, -1, np.int64)
    first[own.ravel()[pixels]] = pixels  # the last to be written is the first voxel
    z, y, x = np.unravel_index(np.maximum(first, 0), box.shape)
    places = ((z + box.z.start) * shape[1] + y + box.y.start) * shape[2] + x + box.x.start
    names = np.where(first < 0, 0, places + 1).astype(np.uint64)
    zones, seeds = {}, np.zeros(outer.shape, bool) if objects.seeds is None else objects.seeds
    for face in blocks.faces(index):
        at = blocks.zone(face).within(outer)
        zones[face] = Zone(names[labels[at]], seeds[at])
    return BlockPieces(names[own], zones)


def same_objects(first: Zone, second: Zone) -> NDArray[np.uint64]:
    """Return which pieces of two blocks are parts of one object.

    Parameters
    ----------
    first, second : the zone of a face, by the blocks before and behind it

    Returns
    -------
    NDArray[np.uint64]
        (n, 2) names of the pieces of both, in ascending order.
    """
    both = (first.names > 0) & (second.names > 0)
    pairs, index, overlaps = np.unique(
        np.stack([first.names[both], second.names[both]]), axis=1, return_inverse=True, return_counts=True
    )
    same = np.bincount(index.ravel(), (first.seeds & second.seeds)[both], pairs.shape[1]) > 0
    (names_a, sizes_a), (names_b, sizes_b) = (np.unique(one.names, return_counts=True) for one in (first, second))
    of_a, of_b = sizes_a[np.searchsorted(names_a, pairs[0])], sizes_b[np.searchsorted(names_b, pairs[1])]
    same |= overlaps > _SAME * (of_a + of_b - overlaps)
    return pairs[:, same].T


def united_names(pairs: Iterable[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Find the objects of pieces that belong together.

    Parameters
    ----------
    pairs : (n, 2) uint64 each, names of two pieces of one object

    Returns
    -------
    names : (n,) uint64, sorted names of the pieces that belong to another one
    objects : (n,) uint64, the name of the object of each: the least of its pieces
    """
    together = np.concatenate([np.zeros((0, 2), np.uint64), *pairs])
    names, index = np.unique(together, return_inverse=True)
    a, b = index.reshape(-1, 2).T
    count, component = connected_components(
        coo_array((np.ones(len(a), bool), (a, b)), shape=(len(names), len(names))), directed=False
    )
    least = np.full(count, np.iinfo(np.uint64).max)
    np.minimum.at(least, component, names)
    return names, least[component]
