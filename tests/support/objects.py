"""Planes of objects with their flows, and their paths and objects by arrays and plain loops: no code of the package."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.flows.dynamics import Crop
from chorus.pipeline.instances.regions import ObjectSettings


def discs(height: int, width: int, circles: list[tuple[float, float, float]]) -> NDArray[np.int32]:
    """Labels of circles (y, x, radius), later ones in front."""
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.int32)
    for index, (cy, cx, radius) in enumerate(circles, 1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = index
    return labels


def flows_to_centres(labels: NDArray[np.int32], *, noise: float = 0.0, seed: int = 0) -> NDArray[np.float32]:
    """Vectors of length 5 from each pixel to the mean of its object, shorter near it; with noise."""
    flows = np.zeros((2, *labels.shape), np.float32)
    for label in np.unique(labels[labels > 0]):
        y, x = np.nonzero(labels == label)
        dy, dx = y.mean() - y, x.mean() - x
        length = np.maximum(np.hypot(dy, dx), 1)
        flows[:, y, x] = 5 * dy / length, 5 * dx / length
    return flows + noise * np.random.default_rng(seed).standard_normal(flows.shape).astype(np.float32)


def cropped(foreground: NDArray[np.bool_], flows: NDArray[np.float32], window: Window) -> Crop:
    inside = window.y.slice, window.x.slice
    height, width = foreground.shape
    return Crop(foreground[inside], flows[:, *inside], window, (height, width))


def paths_by_arrays(
    crop: Crop, steps: int, *, lengths: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Where the foreground pixels of a crop are after all steps, (y, x), and which were never in an open cell."""
    height, width = crop.foreground.shape
    vectors = np.pad(_vectors(crop.foreground, crop.flows, lengths), ((0, 0), (0, 1), (0, 1)))
    last = (max(0, height - 2), float(height > 1)), (max(0, width - 2), float(width > 1))
    y, x = (found.astype(np.int64) for found in np.nonzero(crop.foreground))
    cell_y, cell_x = np.minimum(y, last[0][0]), np.minimum(x, last[1][0])
    part_y, part_x = (y - cell_y).astype(np.float32), (x - cell_x).astype(np.float32)
    top, bottom, left, right = crop.open_sides
    known = np.ones(len(y), bool)
    for step in range(steps + 1):
        known &= ~((top & (cell_y == 0)) | (bottom & (cell_y == last[0][0])))
        known &= ~((left & (cell_x == 0)) | (right & (cell_x == last[1][0])))
        if step == steps:
            break
        above = vectors[:, cell_y, cell_x] * (1 - part_x) + vectors[:, cell_y, cell_x + 1] * part_x
        below = vectors[:, cell_y + 1, cell_x] * (1 - part_x) + vectors[:, cell_y + 1, cell_x + 1] * part_x
        dy, dx = above * (1 - part_y) + below * part_y
        cell_y, part_y = _advanced(cell_y, part_y + dy, *last[0])
        cell_x, part_x = _advanced(cell_x, part_x + dx, *last[1])
    onwards = 1 if lengths else 0.5
    return cell_y + (part_y >= onwards), cell_x + (part_x >= onwards), known


def _advanced(
    cell: NDArray[np.int64], part: NDArray[np.float32], last: int, last_part: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    whole = np.floor(part)
    cell, part = cell + whole.astype(np.int64), part - whole
    beyond = (cell > last) | ((cell == last) & (part > last_part))
    part = np.where(cell < 0, np.float32(0), np.where(beyond, np.float32(last_part), part))
    return np.clip(cell, 0, last), part


def _vectors(foreground: NDArray[np.bool_], flows: NDArray[np.floating], lengths: bool) -> NDArray[np.float32]:
    vectors = np.where(foreground & np.isfinite(flows).all(axis=0), flows, 0).astype(np.float32) / np.float32(5)
    length = np.sqrt(vectors[0] * vectors[0] + vectors[1] * vectors[1])
    if lengths:
        return vectors / np.maximum(length, np.float32(1))
    tiny = np.float32(1e-3)
    return np.where(length < tiny, np.float32(0), vectors / np.maximum(length, tiny))


def objects_by_loops(
    foreground: NDArray[np.bool_], flows: NDArray[np.float32], chosen: ObjectSettings
) -> NDArray[np.uint64]:
    """Names of the objects of a whole plane: y * width + x + 1 of the seed."""
    height, width = foreground.shape
    one, onwards = np.float32(1), 1 if chosen.lengths else 0.5
    vectors = _vectors(foreground, flows, chosen.lengths)

    def at(y: int, x: int) -> NDArray[np.float32]:
        return vectors[:, min(y, height - 1), min(x, width - 1)]

    ends: dict[tuple[int, int], tuple[int, int]] = {}
    for y, x in zip(*np.nonzero(foreground), strict=True):
        (cy, fy), (cx, fx) = (int(y), np.float32(0)), (int(x), np.float32(0))
        for _ in range(chosen.steps):
            above = at(cy, cx) * (one - fx) + at(cy, cx + 1) * fx
            below = at(cy + 1, cx) * (one - fx) + at(cy + 1, cx + 1) * fx
            dy, dx = above * (one - fy) + below * fy
            cy, fy = _moved(cy, np.float32(fy + dy), height)
            cx, fx = _moved(cx, np.float32(fx + dx), width)
        ends[int(y), int(x)] = cy + int(fy >= onwards), cx + int(fx >= onwards)
    counts = Counter(ends.values())
    owner: dict[tuple[int, int], tuple[int, int, int]] = {}
    for (y, x), count in counts.items():
        rivals = [(counts[y + a, x + b], -y - a, -x - b) for a in range(-2, 3) for b in range(-2, 3)]
        if count <= 10 or max(rivals) != (count, -y, -x):
            continue
        cells = {(y, x)}
        for _ in range(5):
            near = {(cy + a, cx + b) for cy, cx in cells for a in (-1, 0, 1) for b in (-1, 0, 1)}
            cells = {c for c in near if max(abs(c[0] - y), abs(c[1] - x)) <= 5 and counts[c] > 2}
        for cell in cells:
            owner[cell] = max(owner.get(cell, (0, 0, 0)), (count, -y, -x))
    names = np.zeros((height, width), np.uint64)
    for pixel, end in ends.items():
        if end in owner:
            names[pixel] = -owner[end][1] * width - owner[end][2] + 1
    for name, size in zip(*np.unique(names, return_counts=True), strict=True):
        if size < chosen.minimum_size:
            names[names == name] = 0
    _fill(names, chosen.largest_hole)
    return names


def _moved(cell: int, part: np.float32, length: int) -> tuple[int, np.float32]:
    whole = math.floor(part)
    cell, part = cell + whole, np.float32(part - np.float32(whole))
    if cell < 0:
        return 0, np.float32(0)
    return (cell, part) if cell < length - 1 else (length - 1, np.float32(0))


def _fill(names: NDArray[np.uint64], largest: int) -> None:
    height, width = names.shape
    seen = names > 0
    filled = {}
    for start in zip(*np.nonzero(~seen), strict=True):
        if seen[start]:
            continue
        component, stack = set(), [start]
        seen[start] = True
        while stack:
            y, x = stack.pop()
            component.add((y, x))
            for other in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= other[0] < height and 0 <= other[1] < width and not seen[other]:
                    seen[other] = True
                    stack.append(other)
        ys, xs = [y for y, _ in component], [x for _, x in component]
        if min(ys) == 0 or min(xs) == 0 or max(ys) == height - 1 or max(xs) == width - 1:
            continue
        if max(ys) - min(ys) >= largest or max(xs) - min(xs) >= largest:
            continue
        rim = {(y + a, x + b) for y, x in component for a in (-1, 0, 1) for b in (-1, 0, 1)} - component
        around = {int(names[pixel]) for pixel in rim}
        if len(around) == 1:
            filled |= dict.fromkeys(component, around.pop())
    for pixel, name in filled.items():
        names[pixel] = name
