"""The output fields: quantities that members predict per pixel, which statistics of them are kept, and their display.

Every field is declared here once, in `FIELDS`. Settings, stacked tensors, channel names, NGFF metadata, requests,
layers of the review page, reports and exports derive from it, so that nothing else lists fields or counts channels.

A `Role` is a kind of quantity that members predict: its channels are named by the run's `Outputs`, and its symmetry
says how it is restored after an augmentation. A `Field` is one statistic of the posterior of a role: a map per channel
of the role, or one map for all of them. To add a field, declare it here and give its values in
`chorus.pipeline.core.posterior.SampleSums.statistics`. This module imports nothing heavy, since the command line
imports it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Array = TypeVar("Array", NDArray[Any], torch.Tensor)

Symmetry = Literal["scalar", "vector"]
"""How values change under a flip or rotation: scalars only move, components of vectors are exchanged or negated."""

Statistic = Literal[
    "mean", "predictive variance", "epistemic variance", "aleatoric variance", "circular variance", "count"
]
Colormap = Literal["viridis", "inferno", "diverging"]


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of quantity that a pixel has.

    Attributes
    ----------
    name : the plural in sentences, such as "its members give no flows"
    symmetry : see `Symmetry`; outputs for an augmented tile are restored by it
    """

    name: str
    symmetry: Symmetry = "scalar"


CLASSES = Role("classes")
"""Probabilities; a channel per class that has one."""
FLOWS = Role("flows", "vector")
"""Vectors to the middle of the pixel's object; a channel per axis of the image, ``yx`` or ``zyx``."""
EFFORT = Role("samples")
"""Number of samples that adaptive effort drew; no output of a member; one channel."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a run's members, as far as fields depend on them.

    Attributes
    ----------
    channels : names of the channels of each role that the run has
    """

    channels: Mapping[Role, tuple[str, ...]]

    @classmethod
    def of(cls, classes: Iterable[str], *, flows: str = "", adaptive: bool = False) -> Outputs:
        """Return the outputs of a run.

        Parameters
        ----------
        classes : names of the classes that have a probability map
        flows : axes of the flows, such as ``yx``; empty if there are none
        adaptive : whether effort is adaptive
        """
        channels = {CLASSES: tuple(classes)}
        if flows:
            channels[FLOWS] = tuple(flows)
        if adaptive:
            channels[EFFORT] = ("samples",)
        return cls(channels)


@dataclass(frozen=True, slots=True)
class Display:
    """Default display of a field.

    Attributes
    ----------
    low, high : values at the ends of the colour map; `high` None stands for the number of samples, see `Field.window`
    colormap : of the review page and the report
    colors : of its channels in viewers that add up channels, ``RRGGBB``; empty if they take those of the classes
    unit : of its values, for display; empty for plain numbers
    """

    low: float
    high: float | None
    colormap: Colormap
    colors: tuple[str, ...] = ()
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Field:
    """A statistic of the posterior, kept as one or more maps, (channels, y, x) float32 before they are stored.

    Attributes
    ----------
    name : in ``--save``, settings, requests, and of its channel if it has one
    label : name for display
    role : the quantity that it is a statistic of; a run has the field if it has the role
    statistic : which one
    display : default display
    prefix : if not empty, it has a map per channel of its role, called ``<prefix>:<channel>``; else it has one map
    default : whether it is kept by default
    parts : fields that it is the sum of, pixel by pixel; it is neither blended nor resampled itself
    letter : of its mean over an object in names of exported objects; empty if objects have no such mean
    """

    name: str
    label: str
    role: Role
    statistic: Statistic
    display: Display
    prefix: str = ""
    default: bool = False
    parts: tuple[str, ...] = ()
    letter: str = ""

    @property
    def per_channel(self) -> bool:
        """Whether it has a map per channel of its role."""
        return bool(self.prefix)

    @property
    def symmetry(self) -> Symmetry:
        """How its maps change under a flip or a turn: as those of its role, or as a scalar where it has one map."""
        return self.role.symmetry if self.prefix else "scalar"

    def given(self, outputs: Outputs) -> bool:
        """Return whether a run has it."""
        return self.role in outputs.channels

    def channel(self, name: str = "") -> str:
        """Return the name of the map of channel `name` of its role, or of its only map."""
        return f"{self.prefix}:{name}" if self.prefix else self.name

    def channels(self, outputs: Outputs) -> tuple[str, ...]:
        """Return the names of its maps in a run that has it."""
        names = outputs.channels[self.role]
        return tuple(map(self.channel, names)) if self.prefix else (self.name,)

    def among(self, channels: Iterable[str]) -> list[int]:
        """Return the indices of its own maps among `channels`, names of maps."""
        return [index for index, name in enumerate(channels) if field_of(name) is self]

    def channel_label(self, channel: str) -> str:
        """Return a map's name for display."""
        return f"{self.label}: {channel.partition(':')[2]}" if self.prefix else self.label

    def window(self, samples: int) -> tuple[float, float]:
        """Return the values at the ends of the colour map.

        Parameters
        ----------
        samples : of a pixel in the run (members times augmentations)
        """
        return self.display.low, float(samples) if self.display.high is None else self.display.high


PROBABILITY = Field(
    name="probability",
    label="Probability",
    role=CLASSES,
    statistic="mean",
    display=Display(0, 1, "viridis"),
    prefix="probability",
    default=True,
)
UNCERTAINTY = Field(
    name="uncertainty",
    label="Uncertainty",
    role=CLASSES,
    statistic="predictive variance",
    display=Display(0, 0.25, "inferno", ("FF4FD8",)),
    default=True,
    parts=("epistemic", "aleatoric"),
    letter="U",
)
EPISTEMIC = Field(
    name="epistemic",
    label="Members' disagreement (epistemic)",
    role=CLASSES,
    statistic="epistemic variance",
    display=Display(0, 0.25, "inferno", ("FFB000",)),
    default=True,
    letter="E",
)
ALEATORIC = Field(
    name="aleatoric",
    label="Aleatoric",
    role=CLASSES,
    statistic="aleatoric variance",
    display=Display(0, 0.25, "inferno", ("00B7FF",)),
    default=True,
)
FLOW_VARIANCE = Field(
    name="flow_variance",
    label="Flows' disagreement",
    role=FLOWS,
    statistic="circular variance",
    display=Display(0, 1, "inferno", ("FF6A3D",)),
    letter="F",
)
# Members are trained on 5 times the unit vector; predicted flows are a little longer in places.
FLOW = Field(
    name="flows",
    label="Flow",
    role=FLOWS,
    statistic="mean",
    display=Display(-6, 6, "diverging", ("8C7BFF", "B6FF3D", "3DFFD2")),
    prefix="flow",
)
SAMPLES = Field(
    name="samples",
    label="Samples",
    role=EFFORT,
    statistic="count",
    display=Display(0, None, "viridis", ("B0B0B0",), "samples"),
)

FIELDS: dict[str, Field] = {
    field.name: field for field in (PROBABILITY, UNCERTAINTY, EPISTEMIC, ALEATORIC, FLOW_VARIANCE, FLOW, SAMPLES)
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
    prefix, colon, _ = channel.partition(":")
    field = _BY_PREFIX.get(prefix)
    return field if field is not None and field.per_channel == bool(colon) else None


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
    """Positions of the maps of each field in a tensor (..., channels, y, x) that holds all of them.

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
        maps : (..., channels, y, x), NumPy or torch, any dtype

        Returns
        -------
        dict
            By name of the field, a view (..., channels of the field, y, x) of `maps`.
        """
        return {name: maps[..., part, :, :] for name, part in self.slices.items()}
