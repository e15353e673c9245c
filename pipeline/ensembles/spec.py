"""``ensemble.yaml`` as it is written: its fields and their valid values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from chorus.pipeline.core.augmentation import AUGMENTATIONS, FLIPS, refused
from chorus.pipeline.core.outputs import Activation, Outputs, classes_of
from chorus.pipeline.core.provenance import About
from chorus.pipeline.core.strict import Strict
from chorus.pipeline.inference.adaptive_bound import EffortBound
from chorus.pipeline.io.inside import fault
from chorus.pipeline.members.contract import MemberEntry
from chorus.pipeline.members.outputs import ClassesOutput, OutputEntry, RaysOutput, declared, without_flows
from chorus.pipeline.members.registry import registry
from chorus.pipeline.preprocessing.normalisation import Normalisation

FORMAT: Literal["chorus-ensemble/2"] = "chorus-ensemble/2"
COLORS = ("#4daf4a", "#377eb8", "#e41a1c", "#984ea3", "#ff7f00", "#ffff33", "#a65628", "#f781bf")


def _of_known_kind(content: Any) -> Any:
    """Name the known kinds, in place of the union's longer message."""
    if isinstance(content, dict) and content.get("kind") not in list(registry().kinds):
        raise PydanticCustomError("unknown_kind", "{reason}", {"reason": registry().unknown})
    return content


if TYPE_CHECKING:
    AnyMember = MemberEntry
else:
    # Of every kind that is installed, by its field `kind`.
    AnyMember = Annotated[
        Union[tuple(kind.entry for kind in registry().kinds.values())],  # noqa: UP007 - a number that is known here
        Field(discriminator="kind"),
        BeforeValidator(_of_known_kind),
    ]


class ClassEntry(Strict):
    """A class: its name and, but for the background, its colour."""

    name: str = Field(min_length=1)
    color: str | None = Field(default=None, pattern=r"^#[0-9a-fA-F]{6}$")

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        # It names arrays, columns and the folders of label images.
        if fault(f"x/{name.strip('/')}") or len(name.encode()) > 200:
            raise ValueError("give a plain name, of at most 200 bytes")
        return name


class InputEntry(Strict):
    """The data that the members were trained on.

    Attributes
    ----------
    channels : names, in the members' order
    pixel_size_um : micrometres per pixel; None takes images as they are
    diameter_px : of the objects, in pixels; for runs that say what it is in their images instead of the pixel size
    scale : ``dtype`` divides integers by their type's maximum first
    """

    channels: list[str] = Field(min_length=1)
    pixel_size_um: float | None = Field(default=None, gt=0)
    diameter_px: float | None = Field(default=None, gt=0)
    scale: Literal["dtype"] | None = None
    normalisation: Normalisation


class SentinelSettings(Strict):
    """How a sentinel's Dice was measured.

    Attributes
    ----------
    tile, overlap, augmentations : with others Dice may be another, and shows no fault
    precision, device : for people; another one must not move Dice by more than the tolerance
    """

    tile: int
    overlap: float
    augmentations: list[str]
    precision: str = "fp32"
    device: str = "cpu"


class Sentinel(Strict):
    """A labelled image that every run processes first, to check that the ensemble's results have not changed.

    Attributes
    ----------
    image : path of an OME-Zarr image, relative to ``ensemble.yaml``
    label : name of the label image inside it
    dice : by foreground class, 0 to 1
    tolerance : by how much Dice may move
    measured : None where it was with the ensemble's own settings
    """

    name: str = Field(min_length=1)
    image: str = Field(min_length=1)
    label: str = Field(min_length=1)
    dice: dict[str, float] = Field(min_length=1)
    tolerance: float = Field(default=0.01, gt=0, lt=1)
    measured: SentinelSettings | None = None


def _classes_alone() -> list[OutputEntry]:
    return [ClassesOutput()]


def _with_flows(schema: dict[str, Any]) -> None:
    """Add the short form of outputs to the JSON schema."""
    schema["properties"]["flows"] = {
        "default": False,
        "description": "Short for outputs `[{role: classes}, {role: flows}]`.",
        "title": "Flows",
        "type": "boolean",
    }


class EnsembleSpec(Strict):
    """``ensemble.yaml`` as written.

    Attributes
    ----------
    activation : turns what members say of the classes into probabilities; with ``sigmoid`` they have an output per
        foreground class
    outputs : what members answer with, in the order of their channels; ``flows: true`` is short for classes and flows
    tile, overlap, augmentations : how images are presented to members, unless a run overrides it
    about : where the ensemble comes from and what it is for; it does not change a result
    sentinels : labelled images that every run is tried on; they do not change a result either
    effort : which tiles need no augmentation, for runs with adaptive effort, which record it
    """

    model_config = ConfigDict(json_schema_extra=_with_flows)

    format: Literal["chorus-ensemble/2"]
    name: str = Field(min_length=1)
    classes: list[ClassEntry] = Field(min_length=2)
    input: InputEntry
    activation: Activation = "softmax"
    outputs: list[OutputEntry] = Field(default_factory=_classes_alone, min_length=1)
    tile: int = Field(ge=32, le=4096)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    augmentations: list[str] = Field(default_factory=lambda: list(FLIPS), min_length=1)
    members: list[AnyMember] = Field(min_length=1)
    about: About = About()
    sentinels: list[Sentinel] = Field(default_factory=list)
    effort: EffortBound | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, content: Any) -> Any:
        return without_flows(content)

    @field_validator("augmentations")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        unknown = [n for n in names if n not in AUGMENTATIONS]
        if unknown or len(set(names)) != len(names):
            raise ValueError(f"give each at most once, out of {', '.join(AUGMENTATIONS)}")
        return names

    @model_validator(mode="after")
    def _unique(self) -> EnsembleSpec:
        if len({c.name for c in self.classes}) != len(self.classes):
            raise ValueError("classes: two classes have the same name")
        if self.activation == "sigmoid" and len(self.classes) > 17:
            raise ValueError("classes: at most 16 foreground classes with activation sigmoid")
        if len({sentinel.name for sentinel in self.sentinels}) != len(self.sentinels):
            raise ValueError("sentinels: two sentinels have the same name")
        foreground = {c.name for c in self.classes[1:]}
        for sentinel in self.sentinels:
            if unknown := sorted(sentinel.dice.keys() - foreground):
                raise ValueError(f"sentinels: {sentinel.name} has a Dice of {unknown[0]}, which is no foreground class")
        if reason := refused(self.answers, tuple(self.augmentations)):
            raise ValueError(f"augmentations: {reason}; leave it out")
        return self

    @property
    def multilabel(self) -> bool:
        """Several foreground classes with a sigmoid each: a pixel may belong to more than one."""
        return self.activation == "sigmoid" and len(self.classes) > 2

    @property
    def rays(self) -> RaysOutput:
        """The rays among the outputs; raise ValueError if there are none."""
        for entry in self.outputs:
            if isinstance(entry, RaysOutput):
                return entry
        raise ValueError("outputs: no rays")

    @property
    def answers(self) -> Outputs:
        """The members' outputs; classes among them are those that have a probability map."""
        names = [entry.name for entry in self.classes]
        width = len(names) - (self.activation == "sigmoid")
        classes = classes_of(names[1:] if self.multilabel else names, self.activation, width=width)
        return Outputs(declared(self.outputs, classes, "yx"))


def newer(content: Any) -> bool:
    """Return whether `content` is of a format that came after this version of Chorus."""
    features = (
        re.fullmatch(r"chorus-ensemble/(\d{1,9})", str(content.get("format"))) if isinstance(content, dict) else None
    )
    return features is not None and int(features[1]) > int(FORMAT.rpartition("/")[2])
