"""The output fields: quantities that members predict per pixel, which statistics of them are kept, and their display.

Every field is declared here once, in `FIELDS`. Settings, stacked tensors, channel names, NGFF metadata, requests,
layers of the review page, reports and exports derive from it, so that nothing else lists fields or counts channels.

What members answer is described by `chorus.pipeline.core.outputs`, what a field is by `chorus.pipeline.core.field`. To
add a field, declare it here and give its values in
`chorus.pipeline.core.role_sums`. This module imports nothing heavy, since the command line imports it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from chorus.pipeline.core.field import Display, Field, hues
from chorus.pipeline.core.outputs import (
    AFFINITIES,
    BOUNDARY,
    CLASSES,
    DISTANCE,
    EFFORT,
    FLOWS,
    RAYS,
    VALUES,
    Outputs,
)

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Array = TypeVar("Array", NDArray[Any], torch.Tensor)

PROBABILITY = Field(
    name="probability",
    label="Probability",
    role=CLASSES,
    statistic="mean",
    display=Display("viridis"),
    prefix="probability",
    default=True,
)
UNCERTAINTY = Field(
    name="uncertainty",
    label="Uncertainty",
    role=CLASSES,
    statistic="predictive variance",
    display=Display("inferno", ("FF4FD8",), 0, 0.25),
    default=True,
    parts=("epistemic", "aleatoric"),
    letter="U",
)
EPISTEMIC = Field(
    name="epistemic",
    label="Members' disagreement (epistemic)",
    role=CLASSES,
    statistic="epistemic variance",
    display=Display("inferno", ("FFB000",), 0, 0.25),
    default=True,
    letter="E",
)
ALEATORIC = Field(
    name="aleatoric",
    label="Aleatoric",
    role=CLASSES,
    statistic="aleatoric variance",
    display=Display("inferno", ("00B7FF",), 0, 0.25),
    default=True,
)
FLOW_VARIANCE = Field(
    name="flow_variance",
    label="Flows' disagreement",
    role=FLOWS,
    statistic="circular variance",
    display=Display("inferno", ("FF6A3D",)),
    letter="F",
)
FLOW = Field(
    name="flows",
    label="Flow",
    role=FLOWS,
    statistic="mean",
    display=Display("diverging", ("8C7BFF", "B6FF3D", "3DFFD2"), scale="extent"),
    prefix="flow",
)
RAY_VARIATION = Field(
    name="ray_variation",
    label="Rays' disagreement",
    role=RAYS,
    statistic="coefficient of variation",
    display=Display("inferno", ("FF8A5C",)),
    letter="R",
)
RAY = Field(
    name="rays",
    label="Ray",
    role=RAYS,
    statistic="mean",
    display=Display("viridis", hues(32, 0.0), scale="extent"),
    prefix="ray",
)
DISTANCES = Field(
    name="distances",
    label="Distance",
    role=DISTANCE,
    statistic="mean",
    display=Display("viridis", hues(6, 0.03), scale="extent"),
    prefix="distance",
)
DISTANCE_VARIANCE = Field(
    name="distance_variance",
    label="Distances' disagreement",
    role=DISTANCE,
    statistic="variance",
    display=Display("inferno", hues(6, 0.11), scale="variance"),
    prefix="distance_variance",
)
BOUNDARIES = Field(
    name="boundary",
    label="Boundary",
    role=BOUNDARY,
    statistic="mean",
    display=Display("viridis", ("F2F26B",)),
)
BOUNDARY_EPISTEMIC = Field(
    name="boundary_epistemic",
    label="Members' disagreement about boundaries (epistemic)",
    role=BOUNDARY,
    statistic="epistemic variance",
    display=Display("inferno", ("FF9E2C",), 0, 0.25),
    letter="B",
)
BOUNDARY_ALEATORIC = Field(
    name="boundary_aleatoric",
    label="Boundary, aleatoric",
    role=BOUNDARY,
    statistic="aleatoric variance",
    display=Display("inferno", ("2CA8FF",), 0, 0.25),
)
AFFINITY = Field(
    name="affinities",
    label="Affinity",
    role=AFFINITIES,
    statistic="mean",
    display=Display("viridis", hues(12, 0.07)),
    prefix="affinity",
)
AFFINITY_VARIANCE = Field(
    name="affinity_variance",
    label="Affinities' disagreement",
    role=AFFINITIES,
    statistic="variance",
    display=Display("inferno", ("FF5CA8",), 0, 0.25),
    letter="A",
)
VALUE = Field(
    name="values",
    label="Value",
    role=VALUES,
    statistic="mean",
    display=Display("viridis", hues(6, 0.05), scale="extent"),
    prefix="value",
)
VALUE_VARIANCE = Field(
    name="value_variance",
    label="Values' disagreement",
    role=VALUES,
    statistic="variance",
    display=Display("inferno", hues(6, 0.13), scale="variance"),
    prefix="value_variance",
)
SAMPLES = Field(
    name="samples",
    label="Samples",
    role=EFFORT,
    statistic="count",
    display=Display("viridis", ("B0B0B0",), scale="extent"),
)

FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        PROBABILITY,
        UNCERTAINTY,
        EPISTEMIC,
        ALEATORIC,
        FLOW_VARIANCE,
        FLOW,
        RAY_VARIATION,
        RAY,
        DISTANCES,
        DISTANCE_VARIANCE,
        BOUNDARIES,
        BOUNDARY_EPISTEMIC,
        BOUNDARY_ALEATORIC,
        AFFINITY,
        AFFINITY_VARIANCE,
        VALUE,
        VALUE_VARIANCE,
        SAMPLES,
    )
}
"""All fields by name, in the order of a result's channels, which viewers, pages and reports keep."""

CHOICES = tuple(name for name, field in FIELDS.items() if field.role is not EFFORT)
"""Fields that a user can choose to keep; `SAMPLES` is kept in addition if effort is adaptive."""

DEFAULTS = tuple(name for name, field in FIELDS.items() if field.default)
"""Fields that a run keeps by default."""

OF_OBJECTS = tuple(field for field in FIELDS.values() if field.letter)
"""Fields that are averaged over the pixels of each object; objects are sorted by the first that the run has."""

CLASS_VARIANCES = tuple(
    field for field in FIELDS.values() if field.role is CLASSES and field.statistic.endswith("variance")
)
"""Maps of the uncertainty of a pixel's class, the most informative one first. They have the same scale."""

_BY_PREFIX = {field.prefix or field.name: field for field in FIELDS.values()}


def field_of(channel: str) -> Field | None:
    """Return the field that a map belongs to, by the map's name; None if no field has such maps."""
    field = _BY_PREFIX.get(channel.partition(":")[0])
    return field if field is not None and field.owns(channel) else None


def in_order(names: Collection[str]) -> list[str]:
    """Return these names of fields in the order of `FIELDS`."""
    return [name for name in FIELDS if name in names]


def shown_first(channels: Sequence[str], background: str) -> tuple[str, ...]:
    """Return the maps that a viewer which adds up channels shows at first: the first field, without background.

    Added up, several fields would hide each other: a pixel of an object is bright in most of them.
    """
    first = next((field for field in FIELDS.values() if field.among(channels)), None)
    own = [channels[index] for index in first.among(channels)] if first is not None else []
    return tuple(name for name in own if len(own) == 1 or name != PROBABILITY.channel(background))


@dataclass(frozen=True, slots=True)
class FieldLayout:
    """Positions of the maps of each field in a tensor (..., channels, *spatial) that holds all of them.

    Attributes
    ----------
    slices : of the channels of each field, by name, one after the other
    """

    slices: Mapping[str, slice]

    @classmethod
    def blended(cls, outputs: Outputs) -> FieldLayout:
        """Return the layout of a run's fields that are blended and resampled; sums of fields follow from these."""
        given = [field for field in FIELDS.values() if field.given(outputs) and not field.parts]
        return cls.of({field.name: len(field.channels(outputs)) for field in given})

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> FieldLayout:
        """Return the layout of these numbers of channels per field, in the order of `FIELDS`."""
        slices, start = {}, 0
        for name in in_order(counts):
            slices[name] = slice(start, start + counts[name])
            start += counts[name]
        return cls(slices)

    def __getitem__(self, field: Field) -> slice:
        return self.slices[field.name]

    @property
    def channels(self) -> int:
        """Number of maps in total."""
        return max((part.stop for part in self.slices.values()), default=0)

    def split(self, maps: Array) -> dict[str, Array]:
        """Split stacked maps by field.

        Parameters
        ----------
        maps : (channels, *spatial), NumPy or torch, any dtype

        Returns
        -------
        dict
            By name of the field, a view (channels of the field, *spatial) of `maps`.
        """
        return {name: maps[part] for name, part in self.slices.items()}
