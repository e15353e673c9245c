"""Maps of labelled objects, ideal or noisy, as networks of micro-SAM, torch-em and PlantSeg predict them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from chorus.pipeline.instances.maps.mutex import Offset
from chorus.pipeline.instances.volumes.blocks import Box

PLANE_OFFSETS: tuple[Offset, ...] = ((0, -1, 0), (0, 0, -1), (0, -4, 0), (0, 0, -4), (0, -4, -4), (0, -4, 4))
VOLUME_OFFSETS: tuple[Offset, ...] = (
    (-1, 0, 0), (0, -1, 0), (0, 0, -1), (-3, 0, 0), (0, -4, 0), (0, 0, -4), (-3, -4, 0), (-3, 0, -4),
)  # fmt: skip


@dataclass(frozen=True)
class MapsInMemory:
    """See `chorus.pipeline.instances.maps.rules.Maps`; all (z, y, x), affinities (offsets, z, y, x)."""

    inside: NDArray[np.bool_]
    centre: NDArray[np.float32]
    edge: NDArray[np.float32]
    walls: NDArray[np.float32]
    affinity: NDArray[np.float32]

    def mask(self, box: Box) -> NDArray[np.bool_]:
        return _at(self.inside, box)

    def foreground(self, box: Box) -> NDArray[np.float32]:
        return _at(self.inside, box).astype(np.float32)

    def distances(self, box: Box, to: Literal["centre", "boundary"]) -> NDArray[np.float32]:
        return _at(self.centre if to == "centre" else self.edge, box)

    def boundaries(self, box: Box) -> NDArray[np.float32]:
        return _at(self.walls, box)

    def affinities(self, box: Box) -> NDArray[np.float32]:
        return _at(self.affinity, box)


def _at(array: NDArray, box: Box) -> NDArray:
    return array[..., box.z.slice, box.y.slice, box.x.slice]


def maps_of(labels: NDArray[np.int32], offsets: Sequence[Offset], *, noise: float = 0.0, seed: int = 0) -> MapsInMemory:
    """Maps of labels (z, y, x); the noise is of about two pixels, as that of networks."""
    rng = np.random.default_rng(seed)

    def noisy(values: NDArray) -> NDArray[np.float32]:
        white = rng.standard_normal(values.shape)
        grain = ndimage.gaussian_filter(white, [0] * (white.ndim - 3) + [min(1, n - 1) for n in labels.shape])
        return np.clip(values + noise * grain / max(grain.std(), 1e-9), 0, 1).astype(np.float32)

    walls = ndimage.gaussian_filter(walls_of(labels).astype(np.float64), [0.7 * (n > 1) for n in labels.shape])
    centre, edge = distances_of(labels)
    return MapsInMemory(labels > 0, noisy(centre), noisy(edge), noisy(walls), noisy(affinities_of(labels, offsets)))


def walls_of(labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels with a neighbour, by a side, of another object or of the background."""
    walls = np.zeros(labels.shape, bool)
    for axis in range(3):
        different = np.diff(labels, axis=axis) != 0
        walls |= np.insert(different, 0, False, axis) | np.insert(different, different.shape[axis], False, axis)
    return walls


def affinities_of(labels: NDArray[np.int32], offsets: Sequence[Offset]) -> NDArray[np.float32]:
    """Whether a pixel and the one at each offset are of the same object; at the border 0."""
    affinities = np.zeros((len(offsets), *labels.shape), np.float32)
    reach = max(abs(step) for offset in offsets for step in offset)
    wide = np.pad(labels, reach, constant_values=-1)
    for channel, offset in zip(affinities, offsets, strict=True):
        there = tuple(slice(reach + step, reach + step + n) for step, n in zip(offset, labels.shape, strict=True))
        channel[:] = wide[there] == labels
    return affinities


def distances_of(labels: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance to the centre and inverted distance to the boundary, per object 0 to 1; 1 in the background."""
    centre, edge = np.ones(labels.shape), np.ones(labels.shape)
    flat = labels.shape[0] == 1
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        if box is None:
            continue
        mask = labels[box] == label
        padded = np.pad(mask, [(0, 0) if flat else (1, 1), (1, 1), (1, 1)])
        inner = tuple(slice(0, 1) if flat and axis == 0 else slice(1, -1) for axis in range(3))
        depth = ndimage.distance_transform_edt(padded[0])[None] if flat else ndimage.distance_transform_edt(padded)
        depth = depth[inner]
        edge[box][mask] = 1 - (depth / depth[mask].max())[mask]
        middle = np.argwhere(mask)[((np.argwhere(mask) - np.argwhere(mask).mean(axis=0)) ** 2).sum(axis=1).argmin()]
        away = np.sqrt(sum((axis - at) ** 2 for axis, at in zip(np.indices(mask.shape), middle, strict=True)))
        centre[box][mask] = (away / max(away[mask].max(), 1))[mask]
    return centre, edge


def mutex_by_loops(
    disaffinities: NDArray[np.floating], offsets: Sequence[Offset], mask: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Mutex watershed by a plain loop over sorted edges: no code of the package."""
    edges = []
    for channel, offset in enumerate(offsets):
        for place in np.ndindex(mask.shape):
            other = tuple(at + step for at, step in zip(place, offset, strict=True))
            if not all(0 <= at < n for at, n in zip(other, mask.shape, strict=True)):
                continue
            value = np.float32(disaffinities[channel][place])
            if mask[place] and mask[other] and np.isfinite(value):
                attracts = sum(map(abs, offset)) == 1
                edges.append((-(1 - value if attracts else value), channel, place, other, attracts))
    edges.sort(key=lambda edge: edge[:3])
    clusters = {place: {place} for place in np.ndindex(mask.shape) if mask[place]}
    excluded: set[frozenset[int]] = set()
    for _, _, place, other, attracts in edges:
        a, b = clusters[place], clusters[other]
        if a is b or frozenset((id(a), id(b))) in excluded:
            continue
        if not attracts:
            excluded.add(frozenset((id(a), id(b))))
            continue
        for pair in [pair for pair in excluded if id(b) in pair]:
            excluded.add((pair - {id(b)}) | {id(a)})
        a |= b
        for member in b:
            clusters[member] = a
    labels, known = np.zeros(mask.shape, np.int64), {}
    for place, cluster in clusters.items():
        labels[place] = known.setdefault(id(cluster), len(known) + 1)
    return labels
