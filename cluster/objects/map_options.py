"""Options of objects that are made of distances, boundaries and affinities."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.instances.maps.mutex import MutexSettings
from chorus.pipeline.instances.maps.rules import MapSettings
from chorus.pipeline.instances.maps.seeded import DistanceSettings, SeedSettings
from chorus.pipeline.instances.maps.stored import MapSources
from chorus.pipeline.instances.maps.superpixels import SuperpixelSettings
from chorus.pipeline.instances.methods import MapMethod
from chorus.pipeline.instances.regions import ObjectSettings

_OWN = {
    "distances": {"center_distance_threshold", "boundary_distance_threshold", "distance_smoothing"},
    "boundaries": {"seed_threshold"},
    "agglomeration": {"boundary_threshold", "sigma_seeds", "sigma_weights", "superpixel_size", "beta"},
    "affinities": {"stride", "fragment_size"},
}


class MapOptions(BaseModel):
    """What a user may choose, each for the methods that know it; None is the default of `MapSettings`.

    Attributes
    ----------
    stride : see `chorus.pipeline.instances.maps.mutex.MutexSettings.strides`, on both axes
    center_distance_threshold, boundary_distance_threshold, distance_smoothing : see `DistanceSettings`
    seed_threshold : see `SeedSettings`
    boundary_threshold, sigma_seeds, sigma_weights, superpixel_size, beta : see `SuperpixelSettings`
    fragment_size : see `MutexSettings`
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    center_distance_threshold: float | None = Field(default=None, ge=0, le=1)
    boundary_distance_threshold: float | None = Field(default=None, ge=0, le=1)
    distance_smoothing: float | None = Field(default=None, ge=0, le=10)
    seed_threshold: float | None = Field(default=None, ge=-1, le=1)
    boundary_threshold: float | None = Field(default=None, ge=0, le=1)
    sigma_seeds: float | None = Field(default=None, ge=0, le=10)
    sigma_weights: float | None = Field(default=None, ge=0, le=10)
    superpixel_size: int | None = Field(default=None, ge=1)
    beta: float | None = Field(default=None, ge=0, le=1)
    stride: int | None = Field(default=None, ge=1, le=16)
    fragment_size: int | None = Field(default=None, ge=0)

    @property
    def chosen(self) -> dict[str, float]:
        """Those that are given, by name."""
        values = {name: getattr(self, name) for name in MapOptions.model_fields}
        return {name: value for name, value in values.items() if value is not None}

    def check(self, method: str) -> None:
        """Raise RefusedError if an option is given that the method does not know."""
        for name in self.chosen:
            if name not in _OWN.get(method, ()):
                raise RefusedError(f"--{name.replace('_', '-')}: objects by {method} do not take it; leave it out")

    def settings(self, method: MapMethod, objects: ObjectSettings, sources: MapSources) -> MapSettings:
        """Return all settings of the objects."""
        given = {name: value for name, value in self.chosen.items() if name in _OWN[method]}
        stride = given.pop("stride", 1)
        of_mutex: dict[str, Any] = {"offsets": sources.offsets, "strides": (1, stride, stride)}
        of_mutex |= given if method == "affinities" else {}
        return MapSettings(
            method,
            objects.diameter,
            objects.minimum_size,
            distances=DistanceSettings(**given) if method == "distances" else DistanceSettings(),
            seeds=SeedSettings(**given) if method == "boundaries" else SeedSettings(),
            superpixels=SuperpixelSettings(**given) if method == "agglomeration" else SuperpixelSettings(),  # type: ignore[arg-type]
            mutex=MutexSettings(**of_mutex),
        )
