"""The mutex watershed: an image is partitioned by edges that attract and edges that repel.

Edges are processed by descending weight. An attractive edge unites two clusters unless they exclude each other; a
repulsive one makes them exclude each other unless they are one already. Equal weights, which are frequent in maps of
16 bits, are processed in the order of channels and then of pixels, so that the order of the edges of a crop is that of
the whole image: neighbouring blocks decide alike wherever they see the same.

References
----------
Wolf et al., The Mutex Watershed and its Objective: Efficient, Parameter-Free Image Partitioning, PAMI 2020,
Algorithm 1 (arXiv:1904.12654).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.instances.flows.compiled import compiled
from chorus.pipeline.instances.maps.seeded import flooded
from chorus.pipeline.instances.volumes.blocks import Box

Offset = tuple[int, int, int]
"""Planes, rows and columns from a pixel to the other end of its edge."""

_FIRST_EXCLUSIONS = 1 << 12


@dataclass(frozen=True)
class MutexSettings:
    """Settings of objects by affinities; names and defaults are those of torch-em, but for `strides`.

    Attributes
    ----------
    offsets : of each affinity
    strides : see `mutex_watershed`. torch-em takes two pixels per axis, and draws at random which of the edges repel;
        here all do
    fragment_size : smaller clusters are given to their neighbours, pixels
    """

    offsets: tuple[Offset, ...] = ()
    strides: tuple[int, int, int] = (1, 1, 1)
    fragment_size: int = 50


def mutex_objects(
    affinities: NDArray[np.floating], mask: NDArray[np.bool_], settings: MutexSettings, box: Box
) -> NDArray[np.int32]:
    """Label objects by affinities: a mutex watershed, whose smallest clusters are then given to their neighbours.

    Parameters
    ----------
    affinities : (offsets, z, y, x), 0 (different objects) to 1 (same object)
    mask : (z, y, x) bool, foreground
    settings : of the objects
    box : position in the image

    Returns
    -------
    NDArray[np.int32]
        (z, y, x), objects 1 to n, 0 outside the mask.

    References
    ----------
    ``torch_em.util.segmentation.mutex_watershed_segmentation``.
    """
    disaffinities = 1 - affinities.astype(np.float32)
    origin = box.z.start, box.y.start, box.x.start
    labels = mutex_watershed(disaffinities, settings.offsets, mask, settings.strides, origin)
    small = np.bincount(labels.ravel()) < settings.fragment_size
    small[0] = False
    if not small.any() or small[1:].all():
        return labels
    near = [channel for channel, offset in zip(disaffinities, settings.offsets, strict=True) if is_attractive(offset)]
    heights = np.nan_to_num(np.max(near, axis=0), nan=1.0)
    kept = np.where(small, 0, np.arange(len(small), dtype=np.int32))[labels]
    return flooded(heights, kept, mask)


def mutex_watershed(
    disaffinities: NDArray[np.floating],
    offsets: Sequence[Offset],
    mask: NDArray[np.bool_],
    strides: tuple[int, int, int] = (1, 1, 1),
    origin: tuple[int, int, int] = (0, 0, 0),
) -> NDArray[np.int32]:
    """Partition a box by the affinities of its pixels.

    Edges to direct neighbours attract, with weight 1 - disaffinity; longer ones repel, with weight disaffinity.

    Parameters
    ----------
    disaffinities : (offsets, z, y, x), 0 (same object) to 1 (different objects), of the edge from a pixel p to p +
        offset; edges that leave the box, and values that are not finite, are ignored
    offsets : of each channel
    mask : (z, y, x) bool, the pixels to partition
    strides : of the pixels whose edges repel, counted from the first pixel of the image, per axis
    origin : position of the box in the image

    Returns
    -------
    NDArray[np.int32]
        (z, y, x), clusters 1 to n in the order of their first pixels, 0 outside the mask.
    """
    sources, targets, weights, attractive = _edges(disaffinities, offsets, mask, strides, origin)
    order = np.argsort(-weights, kind="stable")
    roots = _cluster(sources[order], targets[order], attractive[order], mask.size)
    inside = np.flatnonzero(mask)
    labels = np.zeros(mask.size, np.int32)
    _, first, clusters = np.unique(roots[inside], return_index=True, return_inverse=True)
    ranks = np.empty(len(first), np.int32)
    ranks[np.argsort(first)] = np.arange(1, len(first) + 1)
    labels[inside] = ranks[clusters]
    return labels.reshape(mask.shape)


def _edges(
    disaffinities: NDArray[np.floating],
    offsets: Sequence[Offset],
    mask: NDArray[np.bool_],
    strides: tuple[int, int, int],
    origin: tuple[int, int, int],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.bool_]]:
    """Return both ends, the weight and the kind of all edges, in the order of channels and pixels."""
    pixels = np.arange(mask.size, dtype=np.int32).reshape(mask.shape)
    thinned = np.zeros(mask.shape, bool)
    thinned[tuple(slice(-start % stride, None, stride) for start, stride in zip(origin, strides, strict=True))] = True
    parts = []
    for channel, offset in zip(disaffinities, offsets, strict=True):
        here, there = zip(
            *(_overlap(step, length) for step, length in zip(offset, mask.shape, strict=True)), strict=True
        )
        values = channel[here].astype(np.float32)
        chosen = mask[here] & mask[there] & np.isfinite(values)
        attracts = is_attractive(offset)
        if not attracts:
            chosen &= thinned[here]
        weights = 1 - values[chosen] if attracts else values[chosen]
        parts.append((pixels[here][chosen], pixels[there][chosen], weights, np.full(weights.shape, attracts)))
    sources, targets, weights, attractive = (np.concatenate(part) for part in zip(*parts, strict=True))
    return sources, targets, weights, attractive


def is_attractive(offset: Offset) -> bool:
    """Return whether an edge of this offset attracts: whether it leads to a direct neighbour."""
    return sum(map(abs, offset)) == 1


def _overlap(step: int, length: int) -> tuple[slice, slice]:
    """Return the pixels on an axis whose edge stays within it, and the other ends of these edges."""
    here = slice(min(max(0, -step), length), max(0, length - max(0, step)))
    return here, slice(here.start + step, max(here.start, here.stop) + step)


@compiled
def _root(parents: NDArray[np.int32], pixel: int) -> int:
    root = pixel
    while parents[root] != root:
        root = parents[root]
    while parents[pixel] != root:
        parents[pixel], pixel = root, parents[pixel]
    return root


@compiled
def _slot(keys: NDArray[np.uint64], a: int | np.int64, b: int | np.int64) -> np.uint64:
    """Return the slot of the pair of two clusters in the table of exclusions, or the free one where it belongs."""
    low, high = np.uint64(min(a, b)), np.uint64(max(a, b))
    key = (low << np.uint64(32)) | high
    size = np.uint64(len(keys) - 1)
    slot = (key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20) & size
    while keys[slot] != 0 and keys[slot] != key:  # 0 is no pair: a cluster does not exclude itself
        slot = (slot + np.uint64(1)) & size
    return slot


@compiled
def _grown(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    wider = np.zeros(2 * len(keys), np.uint64)
    for key in keys:
        if key != 0:
            wider[_slot(wider, np.int64(key >> np.uint64(32)), np.int64(key & np.uint64(0xFFFFFFFF)))] = key
    return wider


@compiled
def _cluster(
    sources: NDArray[np.int32], targets: NDArray[np.int32], attractive: NDArray[np.bool_], pixels: int
) -> NDArray[np.int32]:
    """Process the edges in their order.

    Every cluster lists those that it excludes, as a chain of entries. When two unite, the shorter chain is entered for
    the other's root and appended to its chain.

    Returns
    -------
    NDArray[np.int32]
        (pixels,) one pixel of the cluster of each.
    """
    parents = np.arange(pixels).astype(np.int32)
    sizes = np.ones(pixels, np.int32)
    first, last = np.full(pixels, -1, np.int32), np.full(pixels, -1, np.int32)
    counts = np.zeros(pixels, np.int32)
    keys = np.zeros(4 * _FIRST_EXCLUSIONS, np.uint64)
    excluded, following = np.zeros(_FIRST_EXCLUSIONS, np.int32), np.zeros(_FIRST_EXCLUSIONS, np.int32)
    entries, filled = 0, 0
    for edge in range(len(sources)):
        a, b = _root(parents, sources[edge]), _root(parents, targets[edge])
        if a == b:
            continue
        slot = _slot(keys, a, b)
        if keys[slot] != 0:
            continue
        if attractive[edge]:
            if counts[a] > counts[b] or (counts[a] == counts[b] and sizes[a] > sizes[b]):
                a, b = b, a
            parents[a] = b
            sizes[b] += sizes[a]
            entry = first[a]
            while entry != -1:
                other = _root(parents, excluded[entry])
                if 4 * filled > 2 * len(keys):
                    keys = _grown(keys)
                slot = _slot(keys, b, other)
                if keys[slot] == 0:
                    keys[slot] = (np.uint64(min(b, other)) << np.uint64(32)) | np.uint64(max(b, other))
                    filled += 1
                entry = following[entry]
            if first[a] != -1:
                if first[b] == -1:
                    first[b] = first[a]
                else:
                    following[last[b]] = first[a]
                last[b] = last[a]
                counts[b] += counts[a]
            continue
        if 4 * filled > 2 * len(keys):
            keys = _grown(keys)
            slot = _slot(keys, a, b)
        keys[slot] = (np.uint64(min(a, b)) << np.uint64(32)) | np.uint64(max(a, b))
        filled += 1
        if entries + 2 > len(excluded):
            excluded = np.concatenate((excluded, np.zeros_like(excluded)))
            following = np.concatenate((following, np.zeros_like(following)))
        for one, other in ((a, b), (b, a)):
            excluded[entries], following[entries] = other, -1
            if first[one] == -1:
                first[one] = entries
            else:
                following[last[one]] = entries
            last[one] = entries
            counts[one] += 1
            entries += 1
    for pixel in range(pixels):
        parents[pixel] = _root(parents, pixel)
    return parents
