"""Candidates: the points of a grid that may be an object's, with the rays that lead from them to its outline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window

SHORTEST = 1e-3
"""Rays are at least this long, in pixels."""
# Points of the grid at the edges of a plane that are no candidates, as in StarDist: their objects are mostly outside.
_EDGE = 2


@dataclass(frozen=True)
class StarSettings:
    """All settings that define the objects of a plane.

    Attributes
    ----------
    prob_threshold : candidates are more probable than this
    nms_threshold : share of the smaller of two polygons from which the better one suppresses the other, exclusive
    minimum_size : objects of fewer pixels are removed
    grid : distance of the points that may be candidates, in pixels of the plane (y, x)
    scale : pixels of the plane per unit of the predicted rays
    """

    prob_threshold: float = 0.5
    nms_threshold: float = 0.4
    minimum_size: int = 15
    grid: tuple[int, int] = (1, 1)
    scale: float = 1.0


@dataclass(frozen=True)
class StarMaps:
    """Predicted maps of a window of the plane.

    Attributes
    ----------
    probability : (classes, y, x) of an object of each class, without background
    rays : (rays, y, x) lengths, see `StarSettings.scale`
    variation : (y, x) the members' disagreement about the rays; None where it is unknown
    window : of the plane
    """

    probability: NDArray[np.floating]
    rays: NDArray[np.floating]
    variation: NDArray[np.floating] | None
    window: Window


@dataclass(frozen=True)
class Candidates:
    """Candidates by rank: by probability, the most probable first, and of equal ones by y, then x.

    Attributes
    ----------
    points : (candidates, 2) int64, y and x in pixels of the plane
    scores : (candidates,) float32, the probability of an object
    classes : (candidates,) int64, the most probable class of each, 1 for the first
    rays : (candidates, rays) float32, lengths in pixels of the plane
    variation : (candidates,) float32, the members' disagreement about the rays; NaN where it is unknown
    """

    points: NDArray[np.int64]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    rays: NDArray[np.float32]
    variation: NDArray[np.float32]

    @property
    def longest(self) -> float:
        """Length of the longest ray in pixels; 0 if there are no candidates."""
        return float(self.rays.max(initial=0))

    @classmethod
    def of(cls, maps: StarMaps, plane: tuple[int, int], settings: StarSettings) -> Candidates:
        """Return the candidates in a window of a plane.

        Parameters
        ----------
        maps : of the window
        plane : height and width of the plane
        settings : of the objects
        """
        places = [
            np.arange(-span.start % step, len(span), step)
            for span, step in zip((maps.window.y, maps.window.x), settings.grid, strict=True)
        ]
        inside = [
            (place + span.start >= _EDGE * step) & (place + span.start < (-(-length // step) - _EDGE) * step)
            for place, span, step, length in zip(
                places, (maps.window.y, maps.window.x), settings.grid, plane, strict=True
            )
        ]
        y, x = (place[keep] for place, keep in zip(places, inside, strict=True))
        probabilities = maps.probability[:, y[:, None], x].astype(np.float32)
        total = probabilities.sum(axis=0, dtype=np.float32)
        row, column = np.nonzero(total > np.float32(settings.prob_threshold))
        at = y[row], x[column]
        rays = maps.rays[:, at[0], at[1]].T.astype(np.float32) * np.float32(settings.scale)
        unknown = np.full(len(row), np.nan, np.float32)
        return cls(
            np.stack(at, axis=1).astype(np.int64) + np.array([maps.window.y.start, maps.window.x.start]),
            total[row, column],
            probabilities[:, row, column].argmax(axis=0) + 1,
            np.maximum(rays, np.float32(SHORTEST)),
            unknown if maps.variation is None else maps.variation[at].astype(np.float32),
        ).sorted()

    @classmethod
    def joined(cls, parts: Sequence[Candidates]) -> Candidates:
        """Return the candidates of several windows, which have none in common."""
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls))).sorted()

    def sorted(self) -> Candidates:
        """Return them by rank."""
        return self[np.lexsort((self.points[:, 1], self.points[:, 0], -self.scores))]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: NDArray[np.integer] | NDArray[np.bool_]) -> Candidates:
        return Candidates(*(getattr(self, one.name)[which] for one in fields(self)))
