"""``ensemble.yaml`` as it is written: its fields and their valid values."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from chorus.pipeline.core.answers import AnswerShape
from chorus.pipeline.core.augmentation import VOLUME_AUGMENTATIONS, flips_of, refused
from chorus.pipeline.core.geometry import Axes, TileSize, of_each
from chorus.pipeline.core.outputs import AFFINITIES, Activation, Outputs, classes_of
from chorus.pipeline.core.provenance import About
from chorus.pipeline.core.strict import Strict
from chorus.pipeline.ensembles.entries import ClassEntry, InputEntry, Sentinel
from chorus.pipeline.ensembles.tile_rules import (
    Overlaps,
    Tile,
    answer_wrong,
    augmentations_wrong,
    overlap_wrong,
    tile_wrong,
)
from chorus.pipeline.inference.adaptive_bound import EffortBound
from chorus.pipeline.members.contract import MemberEntry
from chorus.pipeline.members.outputs import ClassesOutput, FlowsOutput, OutputEntry, RaysOutput, declared, without_flows
from chorus.pipeline.members.registry import registry

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
    answer : shape of a member's answer for a tile, where it is coarser or smaller than that
    tile, overlap, augmentations : how images are presented to members, unless a run overrides it; tile and overlap of
        volumes also one for each of z, y, x
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
    answer: AnswerShape = AnswerShape()
    tile: Tile
    overlap: Overlaps = 0.5
    augmentations: list[str] = Field(default_factory=lambda known: list(flips_of(_axes(known))), min_length=1)
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
        unknown = [n for n in names if n not in VOLUME_AUGMENTATIONS]
        if unknown or len(set(names)) != len(names):
            raise ValueError(f"give each at most once, out of {', '.join(VOLUME_AUGMENTATIONS)}")
        return names

    @property
    def tile_size(self) -> TileSize:
        """Edge of a square tile, or pixels on each axis of a volume's."""
        if self.input.axes == "yx" and isinstance(self.tile, int):
            return self.tile
        return self.tile_shape

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Pixels of a tile on each axis."""
        return of_each(self.tile, len(self.input.axes))

    @property
    def edge(self) -> int:
        """Edge of the tiles of an ensemble of planes."""
        if not isinstance(self.tile_size, int):
            raise TypeError("the members take volumes, whose tiles have no single edge")
        return self.tile_size

    @property
    def plane_overlap(self) -> float:
        """Overlap of the tiles of an ensemble of planes."""
        if isinstance(self.overlap, tuple):
            raise TypeError("the members take volumes, whose tiles overlap by more than one number")
        return self.overlap

    @field_validator("tile")
    @classmethod
    def _tile_of_axes(cls, tile: Tile, info: ValidationInfo) -> Tile:
        if reason := tile_wrong(_axes(info.data), tile):
            raise ValueError(reason)
        return tile

    @field_validator("overlap")
    @classmethod
    def _overlap_of_axes(cls, overlap: Overlaps, info: ValidationInfo) -> Overlaps:
        if reason := overlap_wrong(_axes(info.data), overlap):
            raise ValueError(reason)
        return overlap

    @model_validator(mode="after")
    def _of_axes(self) -> EnsembleSpec:
        if reason := augmentations_wrong(self.input.axes, self.tile_shape, self.augmentations):
            raise ValueError(f"augmentations: {reason}")
        if reason := answer_wrong(self.answer, self.input.axes, self.tile_shape, self.augmentations):
            raise ValueError(f"answer: {reason}")
        if self.answer.coarse and AFFINITIES in self.answers:
            raise ValueError("answer: affinities are of pairs of pixels, so that their grid is 1")
        if self.input.axes == "yx":
            return self
        if self.sentinels or self.effort:
            name = "sentinels" if self.sentinels else "effort"
            raise ValueError(f"{name}: not for ensembles of volumes yet; leave it out")
        kinds = registry().kinds
        volumes = [name for name, kind in kinds.items() if kind.volumes]
        for index, member in enumerate(self.members):
            if member.kind not in volumes:
                raise ValueError(
                    f"members: {index} is of kind {member.kind}, whose networks take planes; volumes need "
                    f"{', '.join(volumes[:-1])} or {volumes[-1]}"
                )
        return self

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
        if reason := refused(self.answers, tuple(self.augmentations), self.input.axes):
            raise ValueError(f"augmentations: {reason}; leave it out")
        return self

    @property
    def multilabel(self) -> bool:
        """Several foreground classes with a sigmoid each: a pixel may belong to more than one."""
        return self.activation == "sigmoid" and len(self.classes) > 2

    @property
    def answer_shape(self) -> AnswerShape:
        """`answer`, where tiles begin at multiples of the grid of the rays, too."""
        steps = [entry.grid for entry in self.outputs if isinstance(entry, RaysOutput) and entry.grid]
        if not steps or set(steps[0]) == {1}:
            return self.answer
        given = zip(of_each(self.answer.align, len(steps[0])), steps[0], strict=True)
        return self.answer.model_copy(update={"align": tuple(math.lcm(*pair) for pair in given)})

    @property
    def rays(self) -> RaysOutput:
        """The rays among the outputs; raise ValueError if there are none."""
        for entry in self.outputs:
            if isinstance(entry, RaysOutput):
                return entry
        raise ValueError("outputs: no rays")

    @property
    def flow_lengths(self) -> bool:
        """Whether objects of a plane follow flows with their lengths."""
        return any(isinstance(entry, FlowsOutput) and entry.lengths for entry in self.outputs)

    @property
    def ray_grid(self) -> tuple[int, ...]:
        """Distance in pixels (y, x) of the points that may be objects."""
        return self.rays.grid or self.answer.grids(2)

    @property
    def answers(self) -> Outputs:
        """The members' outputs; classes among them are those that have a probability map."""
        names = [entry.name for entry in self.classes]
        width = len(names) - (self.activation == "sigmoid")
        classes = classes_of(names[1:] if self.multilabel else names, self.activation, width=width)
        return Outputs(declared(self.outputs, classes, self.input.axes))


def _axes(known: dict[str, Any]) -> Axes:
    """Return the axes among the fields that are validated so far; those of planes where `input` is not valid."""
    entry = known.get("input")
    return entry.axes if isinstance(entry, InputEntry) else "yx"


def newer(content: Any) -> bool:
    """Return whether `content` is of a format that came after this version of Chorus."""
    features = (
        re.fullmatch(r"chorus-ensemble/(\d{1,9})", str(content.get("format"))) if isinstance(content, dict) else None
    )
    return features is not None and int(features[1]) > int(FORMAT.rpartition("/")[2])
