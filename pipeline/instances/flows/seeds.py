"""Objects from the pixels in which many paths end: Cellpose's rule, with ties broken by coordinates.

A seed is a pixel in which more than 10 paths end, and more than in any other of the 5 x 5 (5 x 5 x 5) around it. It
grows five times into neighbours in which more than 2 paths end; where grown seeds meet, the one with more paths gets
the pixel. An object is the set of pixels whose paths end in the pixels of one seed. All rules look at most `REACH`
pixels around an end.

References
----------
Stringer et al., Nature Methods 2021; ``cellpose.dynamics.get_masks_torch`` (4.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.instances.flows.compiled import compiled

_MORE_THAN = 10
_GROWS_INTO_MORE_THAN = 2
_GROWTH = 5
_NEIGHBOURHOOD = 2
REACH = 4 * _GROWTH
"""Distance from an end within which its whole object is decided: its seed is at most 5 away, another pixel of the
object ends at most 5 from that, a competing seed is at most 5 from there, and that one looks at most 5 around itself.
"""


@dataclass(frozen=True)
class Neighbourhoods:
    """Search distances of seeds along z, where planes may be farther apart than pixels; 0 for a single plane.

    Attributes
    ----------
    nearest : planes on each side in which no more paths may end than in a seed
    growth : planes that a seed may grow into
    """

    nearest: int = 0
    growth: int = 0

    @classmethod
    def of(cls, anisotropy: float) -> Neighbourhoods:
        """Return the distances for planes that are `anisotropy` pixels apart: as within a plane, at least one plane."""
        apart = max(1.0, anisotropy)
        return cls(max(1, round(_NEIGHBOURHOOD / apart)), max(1, round(_GROWTH / apart)))

    @property
    def reach(self) -> int:
        """Like `REACH`, in planes."""
        return 4 * self.growth


@dataclass(frozen=True)
class Seeds:
    """The seeds of a window, by their rank.

    Attributes
    ----------
    places : (axes, n) int64, their pixels: the anchors of the objects
    owner : int32, in the shape of the window, rank of the seed that owns a pixel plus 1, 0 for none
    """

    places: NDArray[np.int64]
    owner: NDArray[np.int32]


def find_seeds(ends: NDArray[np.integer], planes: Neighbourhoods = Neighbourhoods()) -> Seeds:
    """Find the seeds of a window.

    Parameters
    ----------
    ends : (y, x) or (z, y, x) integers, number of paths that end in a pixel
    planes : search distances along z
    """
    counts = np.ascontiguousarray(ends).reshape((1,) * (3 - ends.ndim) + ends.shape)
    candidates = np.flatnonzero(counts > _MORE_THAN)
    highest = candidates[_highest(counts, candidates, planes.nearest)]
    # By count, ties by position; the same order in every window of a plane.
    ranked = highest[np.lexsort((-highest, counts.ravel()[highest]))]
    places = np.array(np.unravel_index(ranked, ends.shape), np.int64)
    return Seeds(places, _grown(counts, ranked, planes.growth).reshape(ends.shape))


@compiled
def _highest(counts: NDArray[np.integer], candidates: NDArray[np.int64], nearest: int) -> NDArray[np.bool_]:
    """Return which pixels have more paths than those around them, or as many and come first."""
    depth, height, width = counts.shape
    highest = np.ones(len(candidates), np.bool_)
    for i in range(len(candidates)):
        own = candidates[i]
        x, y, z = own % width, own // width % height, own // width // height
        count = counts[z, y, x]
        for a in range(max(0, z - nearest), min(depth, z + nearest + 1)):
            for b in range(max(0, y - _NEIGHBOURHOOD), min(height, y + _NEIGHBOURHOOD + 1)):
                for c in range(max(0, x - _NEIGHBOURHOOD), min(width, x + _NEIGHBOURHOOD + 1)):
                    earlier = (a * height + b) * width + c < own
                    if counts[a, b, c] > count or (earlier and counts[a, b, c] == count):
                        highest[i] = False
    return highest


@compiled
def _grown(counts: NDArray[np.integer], seeds: NDArray[np.int64], planes: int) -> NDArray[np.int32]:
    """Return which seed owns a pixel; the last one if there are several."""
    depth, height, width = counts.shape
    owner = np.zeros((depth, height, width), np.int32)
    grown = np.empty((2 * planes + 1) * (2 * _GROWTH + 1) ** 2, np.int64)
    for i in range(len(seeds)):
        own = seeds[i]
        top = own // width // height
        owner[top, own // width % height, own % width] = i + 1
        grown[0] = own
        count, start = 1, 0
        for _ in range(_GROWTH):
            stop = count
            for j in range(start, stop):
                x, y, z = grown[j] % width, grown[j] // width % height, grown[j] // width // height
                for a in range(max(0, z - 1, top - planes), min(depth, z + 2, top + planes + 1)):
                    for b in range(max(0, y - 1), min(height, y + 2)):
                        for c in range(max(0, x - 1), min(width, x + 2)):
                            if counts[a, b, c] > _GROWS_INTO_MORE_THAN and owner[a, b, c] != i + 1:
                                owner[a, b, c] = i + 1
                                grown[count] = (a * height + b) * width + c
                                count += 1
            start = stop
    return owner
