"""Texture of an image: Haar details at three scales, as exact sums of regions.

A block of 2 x 2 means of neighbouring pixels has a horizontal, a vertical and a diagonal difference; their sizes over a
plane, relative to its contrast, and whether they are where it is bright, tell one kind of specimen or microscope from
another without any network. Blocks lie on a grid that begins at the plane's origin and never cross a patch of it, so
that the partition into regions has no effect.

References
----------
Mallat, IEEE Transactions on Pattern Analysis and Machine Intelligence 11:674 (1989), Sec. V: energies of details as
texture; Van de Wouwer et al., IEEE Transactions on Image Processing 8:592 (1999).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.scores.sums import Sums

SCALES = (1, 2, 4)
"""Edges in pixels of the means whose differences are taken, one scale after the other."""
_BLOCK = 2 * SCALES[-1]
_FIELDS = 4


class Detail(NamedTuple):
    """Details of a plane at one scale, in stored values.

    Attributes
    ----------
    straight, diagonal : root mean square of horizontal and vertical differences together, and of diagonal ones
    brightness : correlation of the strength of the former with the block's mean, -1 to 1; NaN where one is even
    """

    straight: float
    diagonal: float
    brightness: float


def texture_sums(values: NDArray[Any], patch: int) -> tuple[Sums, ...]:
    """Return the sums of details of one region, for each of `SCALES`.

    Parameters
    ----------
    values : (channels, y, x) of any real dtype
    patch : edge of a patch in pixels, at least 8; the region begins at a multiple of it on both axes

    Returns
    -------
    tuple of Sums
        Of each channel in turn the strength of straight details, diagonal details, means, and the first by the third.
    """
    rows, columns = (_in_blocks(length, patch) for length in values.shape[1:])
    means = values.take(rows, axis=1).take(columns, axis=2).astype(np.float64)
    sums = []
    for _ in SCALES:
        a, b, c, d = (means[:, y::2, x::2] for y in (0, 1) for x in (0, 1))
        means = (a + b + c + d) / 4
        strength = np.hypot(a - b + c - d, a + b - c - d) / 4
        fields = [strength, (a - b - c + d) / 4, means, strength * means]
        sums.append(Sums.of([_single(field[channel]) for channel in range(len(values)) for field in fields]))
    return tuple(sums)


def details(sums: Sums, channel: int) -> Detail:
    """Return the details of a channel from the sums of all regions at one scale."""
    moments = sums.means_and_stds()[_FIELDS * channel : _FIELDS * (channel + 1)]
    (strength, spread), diagonal, (mean, deviation), (product, _) = moments
    both = spread * deviation
    brightness = (product - strength * mean) / both if both > 0 else math.nan
    return Detail(math.hypot(strength, spread), math.hypot(*diagonal), brightness)


def added(one: Sequence[Sums], other: Sequence[Sums]) -> tuple[Sums, ...]:
    """Return the sums of two regions."""
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _in_blocks(length: int, patch: int) -> NDArray[np.intp]:
    """Return the indices along an axis that are in whole blocks within a patch."""
    index = np.arange(length)
    first = index - index % patch % _BLOCK
    whole = (first % patch + _BLOCK <= patch) & (first + _BLOCK <= length)
    return index[whole]


def _single(field: NDArray[np.float64]) -> NDArray[np.float32]:
    limit = np.finfo(np.float32).max
    return np.clip(field, -limit, limit).astype(np.float32)
