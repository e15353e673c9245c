"""Volumes of objects with their flows, and their objects by plain loops in float64: no code of the package."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.instances.volumes.blocks import Box
from chorus.pipeline.instances.volumes.dynamics import VolumeCrop


def balls(
    shape: tuple[int, int, int], spheres: list[tuple[float, float, float, float]], anisotropy: float = 1.0
) -> NDArray[np.int32]:
    """Labels of balls (z, y, x, radius) in pixels, of planes `anisotropy` pixels apart; later ones in front."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    labels = np.zeros(shape, np.int32)
    for index, (cz, cy, cx, radius) in enumerate(spheres, 1):
        labels[(z * anisotropy - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = index
    return labels


def flows_to_centres(
    labels: NDArray[np.int32], anisotropy: float = 1.0, *, noise: float = 0.0, seed: int = 0
) -> NDArray[np.float32]:
    """Vectors of length 5 from each voxel to the mean of its object, shorter near it; with noise."""
    flows = np.zeros((3, *labels.shape), np.float32)
    for label in np.unique(labels[labels > 0]):
        z, y, x = np.nonzero(labels == label)
        dz, dy, dx = anisotropy * (z.mean() - z), y.mean() - y, x.mean() - x
        length = np.maximum(np.sqrt(dz**2 + dy**2 + dx**2), 1)
        flows[:, z, y, x] = 5 * dz / length, 5 * dy / length, 5 * dx / length
    return flows + noise * np.random.default_rng(seed).standard_normal(flows.shape).astype(np.float32)


def tubes(shape: tuple[int, int, int], ends: tuple[int, int]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Labels of two bent tubes along x that touch all the way, and flows along each to its end (on x)."""
    z, y, x = np.mgrid[: shape[0], : shape[1], : shape[2]].astype(np.float32)
    labels, flows = np.zeros(shape, np.int32), np.zeros((3, *shape), np.float32)
    for label, (beside, end) in enumerate(zip((-2.5, 2.5), ends, strict=True), 1):
        inside = (abs(z - shape[0] // 2) < 3) & (abs(y - _bent(x, shape) - beside) < 2.5)
        to_x = x + np.clip(end - x, -3, 3)
        to = np.stack([shape[0] // 2 - z, _bent(to_x, shape) + beside - y, to_x - x])
        labels[inside], flows[:, inside] = label, 2 * to[:, inside]
    return labels, flows


def _bent(x: NDArray[np.float32], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    return shape[1] / 2 + 4 * np.sin(x / 25)


def cropped(foreground: NDArray[np.bool_], flows: NDArray[np.float32], box: Box, anisotropy: float) -> VolumeCrop:
    inside = box.z.slice, box.y.slice, box.x.slice
    return VolumeCrop(foreground[inside], flows[:, *inside], box, foreground.shape, anisotropy)


def objects_by_loops(
    foreground: NDArray[np.bool_], flows: NDArray[np.float32], steps: int, minimum_size: int, anisotropy: float
) -> NDArray[np.uint64]:
    """Names of the objects of a whole volume, holes not filled: flat place of the seed plus 1. In float64."""
    shape = foreground.shape
    nearest, growth = (max(1, round(n / max(1.0, anisotropy))) for n in (2, 5))
    shortest = min(1.0, anisotropy)
    length = np.sqrt((flows.astype(np.float64) ** 2).sum(axis=0))
    ok = foreground & np.isfinite(length) & (length >= 5e-3)
    units = np.where(ok, flows / np.where(ok, length, 1), 0)
    units *= np.array([shortest / anisotropy, shortest, shortest])[:, None, None, None]
    starts = np.stack(np.nonzero(foreground))
    at, most = starts.astype(np.float64), np.array(shape)[:, None] - 1
    for _ in range(steps):
        low = np.floor(at).astype(np.int64)
        part, step = at - low, np.zeros_like(at)
        for corner in itertools.product((0, 1), repeat=3):
            side = np.array(corner)[:, None]
            step += units[:, *np.minimum(low + side, most)] * np.where(side, part, 1 - part).prod(axis=0)
        at = np.clip(at + step, 0, most)
    found = np.floor(at + 0.5).astype(int)
    ends = dict(zip(zip(*starts.tolist(), strict=True), zip(*found.tolist(), strict=True), strict=True))
    counts = Counter(ends.values())
    owner: dict[tuple[int, ...], tuple[int, ...]] = {}
    for place, count in counts.items():
        z, y, x = place
        near = itertools.product(range(-nearest, nearest + 1), range(-2, 3), range(-2, 3))
        rivals = [(counts[z + a, y + b, x + c], -z - a, -y - b, -x - c) for a, b, c in near]
        if count <= 10 or max(rivals) != (count, -z, -y, -x):
            continue
        cells = {place}
        for _ in range(5):
            around = {
                (c[0] + s[0], c[1] + s[1], c[2] + s[2]) for c in cells for s in itertools.product((-1, 0, 1), repeat=3)
            }
            cells = {c for c in around if abs(c[0] - z) <= growth and counts[c] > 2}
        for cell in cells:
            owner[cell] = max(owner.get(cell, (0, 0, 0, 0)), (count, -z, -y, -x))
    names = np.zeros(shape, np.uint64)
    for voxel, end in ends.items():
        if end in owner:
            _, z, y, x = owner[end]
            names[voxel] = (-z * shape[1] - y) * shape[2] - x + 1
    for name, size in zip(*np.unique(names, return_counts=True), strict=True):
        if size < minimum_size:
            names[names == name] = 0
    return names
