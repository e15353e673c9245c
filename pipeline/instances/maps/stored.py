"""The stored maps of a plane or a volume of a run's results, as rules read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.fields import AFFINITY, BOUNDARIES, DISTANCES, PROBABILITY
from chorus.pipeline.core.outputs import AFFINITIES, BOUNDARY, CLASSES, DISTANCE, Outputs
from chorus.pipeline.instances.maps.mutex import Offset
from chorus.pipeline.instances.methods import MapMethod
from chorus.pipeline.instances.stored import StoredPlane
from chorus.pipeline.instances.volumes.blocks import Box
from chorus.pipeline.instances.volumes.stored import StoredVolume

CENTRE, BOUNDARY_OF, INVERTED = "centre", "boundary", "inverted_boundary"
"""Names of distances that objects are made of: to the centre; to the boundary, 0 there; the same, 1 there, as micro-SAM
and torch-em have it."""


@dataclass(frozen=True)
class MapSources:
    """Where the maps of objects are among the fields of a run.

    Attributes
    ----------
    distances : least and greatest value of each distance, by its name
    offsets : of the affinities along z, y, x
    boundaries : whether there are boundaries
    foreground : whether members say where the foreground is; else all of the image may be of objects
    """

    distances: Mapping[str, tuple[float, float]]
    offsets: tuple[Offset, ...]
    boundaries: bool
    foreground: bool

    @classmethod
    def of(cls, outputs: Outputs) -> MapSources:
        """Return those of an ensemble."""
        extents = dict.fromkeys(outputs[DISTANCE].names, outputs[DISTANCE].extent) if DISTANCE in outputs else {}
        known = {name: extent for name, extent in extents.items() if name in (CENTRE, BOUNDARY_OF, INVERTED)}
        vectors = outputs[AFFINITIES].vectors if AFFINITIES in outputs else ()
        derived = outputs[CLASSES].foreground if CLASSES in outputs else None
        return cls(
            known,
            tuple(_offset(vector) for vector in vectors),
            BOUNDARY in outputs,
            derived is None or derived.role == DISTANCE,
        )

    @property
    def method(self) -> MapMethod | None:
        """The method that they allow, the best one where there are several; None if there are no maps of objects."""
        if self.distances:
            return "distances"
        if self.offsets:
            return "affinities"
        return ("boundaries" if self.foreground else "agglomeration") if self.boundaries else None

    def lacks(self, method: MapMethod) -> str:
        """Return what a method needs and members do not give; empty if there is all of it."""
        if method == "distances" and not self.distances:
            return f"distances called {CENTRE}, {BOUNDARY_OF} or {INVERTED}"
        if method == "affinities" and not self.offsets:
            return "affinities"
        if method in ("boundaries", "agglomeration") and not self.boundaries:
            return "boundaries"
        if method == "boundaries" and not self.foreground:
            return "classes"
        return ""


def fields_of(method: MapMethod) -> set[str]:
    """Return the names of the fields of which a method makes objects."""
    return {
        "distances": {DISTANCES.name},
        "boundaries": {BOUNDARIES.name, PROBABILITY.name},
        "agglomeration": {BOUNDARIES.name},
        "affinities": {AFFINITY.name},
    }[method]


@dataclass(frozen=True)
class StoredMaps:
    """See `chorus.pipeline.instances.maps.rules.Maps`: those of one class in a volume, or a plane as one of depth 1.

    Attributes
    ----------
    stored : plane or volume of the results
    sources : of the run
    value : of the class, 1, 2, ...
    class_name : of the class
    """

    stored: StoredPlane | StoredVolume
    sources: MapSources
    value: int
    class_name: str

    def mask(self, box: Box) -> NDArray[np.bool_]:
        """Return where objects may be: the class, or everywhere if members do not say where it is.

        Returns
        -------
        NDArray[np.bool_]
            (z, y, x).
        """
        if not self.sources.foreground:
            return np.ones(box.shape, bool)
        if isinstance(self.stored, StoredVolume):
            return self.stored.foreground(box, self.value)
        return self.stored.foreground(box.window, self.value)[None]

    def foreground(self, box: Box) -> NDArray[np.floating]:
        """Return the probability of the class.

        Returns
        -------
        NDArray
            (z, y, x) of the stored dtype.
        """
        return self._read(PROBABILITY.channel(self.class_name), box)

    def distances(self, box: Box, to: Literal["centre", "boundary"]) -> NDArray[np.floating] | None:
        """Return a distance from 0 to 1; that to the boundary inverted.

        Returns
        -------
        NDArray or None
            (z, y, x) float32.
        """
        for name in (CENTRE,) if to == "centre" else (INVERTED, BOUNDARY_OF):
            if name in self.sources.distances:
                low, high = self.sources.distances[name]
                shares = (self._read(DISTANCES.channel(name), box).astype(np.float32) - low) / (high - low)
                return 1 - shares if name == BOUNDARY_OF else shares
        return None

    def boundaries(self, box: Box) -> NDArray[np.floating]:
        """Return the probability of a boundary.

        Returns
        -------
        NDArray
            (z, y, x) of the stored dtype.
        """
        return self._read(BOUNDARIES.channel(), box)

    def affinities(self, box: Box) -> NDArray[np.floating]:
        """Return the affinities.

        Returns
        -------
        NDArray
            (offsets, z, y, x) of the stored dtype.
        """
        axes = 3 if isinstance(self.stored, StoredVolume) else 2
        names = (",".join(map(str, offset[-axes:])) for offset in self.sources.offsets)
        return np.stack([self._read(AFFINITY.channel(name), box) for name in names])

    def _read(self, channel: str, box: Box) -> NDArray[np.floating]:
        if isinstance(self.stored, StoredVolume):
            values: NDArray[np.floating] = self.stored.maps(box, [channel])[0]
            return values
        return self.stored.map(channel, box.window)[None]


def _offset(vector: Sequence[float]) -> Offset:
    """Return an offset of affinities along z, y, x."""
    z, y, x = (*(0,) * (3 - len(vector)), *map(round, vector))
    return z, y, x
