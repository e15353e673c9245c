"""Objects of the places where many paths end: Cellpose's rule, with ties broken by coordinates.

A seed is a pixel in which more than 10 paths end, and more than in any other of the 5 x 5 around it. It grows five
times into neighbours in which more than 2 end; where grown seeds meet, the one with more paths has the pixel. An object
is all pixels whose paths end in the pixels of one seed. Everything here looks at most `REACH` pixels around an end.

References
----------
Stringer et al., Nature Methods 2021; ``cellpose.dynamics.get_masks_torch`` (4.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_MORE_THAN = 10
_GROWS_INTO_MORE_THAN = 2
_GROWTH = 5
_NEIGHBOURHOOD = 2
REACH = 4 * _GROWTH
"""Around an end, what its whole object depends on: its seed is at most 5 away, another pixel of the object ends at most
5 from that, a seed that contends for it is at most 5 from there, and that one looks at most 5 around itself."""


@dataclass(frozen=True)
class Seeds:
    """The seeds of a window, by their rank.

    Attributes
    ----------
    y, x : (n,) int64, their pixels: the anchors of the objects
    owner : (y, x) int32, rank of the seed that has a pixel plus 1, 0 for none
    """

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    owner: NDArray[np.int32]


def find_seeds(ends: NDArray[np.integer]) -> Seeds:
    """The seeds of `ends`, (y, x) numbers of paths that end in a pixel."""
    height, width = ends.shape
    padded = np.pad(ends.astype(np.int64), _GROWTH)
    y, x = (found.astype(np.int64) for found in np.nonzero(ends > _MORE_THAN))
    # One number orders pixels by count, then from the top left; it is the same order in every window of a plane.
    order = ends[y, x] * np.int64(height * width) - (y * width + x)
    best = np.full((height + 2 * _GROWTH, width + 2 * _GROWTH), np.iinfo(np.int64).min)
    best[y + _GROWTH, x + _GROWTH] = order
    around = [
        (a, b) for a in range(-_NEIGHBOURHOOD, _NEIGHBOURHOOD + 1) for b in range(-_NEIGHBOURHOOD, _NEIGHBOURHOOD + 1)
    ]
    highest = np.ones(len(y), bool)
    for a, b in around:
        highest &= order >= best[y + _GROWTH + a, x + _GROWTH + b]
    rank = np.argsort(order[highest])
    y, x = y[highest][rank], x[highest][rank]
    return Seeds(y, x, _grown(padded, y, x)[_GROWTH:-_GROWTH, _GROWTH:-_GROWTH])


def _grown(padded: NDArray[np.int64], y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int32]:
    """Which seed has a pixel, in the padded window; of several the one of the highest rank."""
    side = np.arange(2 * _GROWTH + 1)
    rows, columns = y[:, None, None] + side[:, None], x[:, None, None] + side
    open_to = padded[rows, columns] > _GROWS_INTO_MORE_THAN
    grown = np.zeros(open_to.shape, bool)
    grown[:, _GROWTH, _GROWTH] = True
    for _ in range(_GROWTH):
        grown = ndimage.maximum_filter(grown, size=(1, 3, 3), mode="constant") & open_to
    owner = np.zeros(padded.shape, np.int32)
    of, row, column = np.nonzero(grown)
    np.maximum.at(owner, (y[of] + row, x[of] + column), (of + 1).astype(np.int32))
    return owner
