"""The posterior of a whole volume by the letter, in float64 and plain NumPy; shares no code with `pipeline`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Member = Callable[[Array], Array]
"""(channels, z, y, x) float64 pixels of a tile to (outputs, z, y, x) float64 logits."""

FLIPPED: dict[str, tuple[int, ...]] = {
    "identity": (),
    "hflip": (3,),
    "vflip": (2,),
    "hvflip": (2, 3),
    "zflip": (1,),
    "zhflip": (1, 3),
    "zvflip": (1, 2),
    "zhvflip": (1, 2, 3),
}
"""Axes of (channels, z, y, x) that each flip reverses."""


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles start on an axis: from the first pixel on, a step apart, until they cover it."""
    step, found = max(1, round(tile * (1 - overlap))), [0]
    while found[-1] + tile < length:
        found.append(found[-1] + step)
    return found


def bounced(start: int, tile: int, length: int) -> list[int]:
    """The pixels seen by a tile that may reach beyond the end, where they are mirrored without repeating the edge."""
    there = list(range(length)) + list(range(length - 2, 0, -1))  # there and back again
    return [there[index % len(there)] for index in range(start, start + tile)]


def importance(tile: Sequence[int]) -> Array:
    """Weights of a tile's pixels: a Gaussian of sigma tile / 8 about its middle, at most 1."""
    z, y, x = (np.arange(n) - (n - 1) / 2 for n in tile)
    parts = (z[:, None, None] / (tile[0] / 8), y[None, :, None] / (tile[1] / 8), x[None, None, :] / (tile[2] / 8))
    weights = np.exp(-0.5 * (parts[0] ** 2 + parts[1] ** 2 + parts[2] ** 2))
    return np.asarray(weights / weights.max())


def posterior_of_volume(
    image: Array, members: Sequence[Member], tile: Sequence[int], overlap: float, augmentations: Sequence[str]
) -> dict[str, Array]:
    """Probability (classes, z, y, x), epistemic and aleatoric (z, y, x) of `image`, (channels, z, y, x), by softmax."""
    shape, window, sums, total = image.shape[1:], importance(tile), {}, np.zeros(image.shape[1:])
    for corner in itertools.product(*(starts(n, t, overlap) for n, t in zip(shape, tile, strict=True))):
        rows = [bounced(a, t, n) for a, t, n in zip(corner, tile, shape, strict=True)]
        pixels = image[:, rows[0]][:, :, rows[1]][:, :, :, rows[2]]
        samples = []
        for member, name in itertools.product(members, augmentations):
            said = member(np.flip(pixels, FLIPPED[name]).copy())
            chances = np.exp(said - said.max(axis=0))
            samples.append(np.flip(chances / chances.sum(axis=0), FLIPPED[name]))
        p = np.array(samples)
        maps = {
            "probability": p.mean(axis=0),
            "epistemic": ((p**2).mean(axis=0) - p.mean(axis=0) ** 2).mean(axis=0),
            "aleatoric": (p - p**2).mean(axis=0).mean(axis=0),
        }
        ends = [min(a + t, n) for a, t, n in zip(corner, tile, shape, strict=True)]
        place = tuple(slice(a, b) for a, b in zip(corner, ends, strict=True))
        inner = tuple(slice(0, b - a) for a, b in zip(corner, ends, strict=True))
        total[place] += window[inner]
        for key, values in maps.items():
            full = sums.setdefault(key, np.zeros((*values.shape[:-3], *shape)))
            full[..., *place] += values[..., *inner] * window[inner]
    return {key: values / total for key, values in sums.items()}
