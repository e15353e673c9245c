"""The settings of a run: those that define its result, and those that only define how it is executed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from chorus.cluster.planning.devices.cluster_file import ClusterFile
from chorus.cluster.runtime.started_tasks import Executor
from chorus.pipeline.backends.choice import Backend
from chorus.pipeline.core.augmentation import VOLUME_AUGMENTATIONS
from chorus.pipeline.core.device import DeviceKind
from chorus.pipeline.core.fields import CHOICES, DEFAULTS, FIELDS, in_order
from chorus.pipeline.core.geometry import Axes
from chorus.pipeline.inference.posterior_builder import Precision

Edge = Annotated[int, Field(ge=1, le=4096)]
Overlap = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, slots=True)
class Cut:
    """How results are cut where nothing else is asked for, in pixels: see `ResultSettings`."""

    region: int
    chunk: int
    region_depth: int | None = None
    chunk_depth: int | None = None


CUTS: dict[Axes, Cut] = {"yx": Cut(2048, 512), "zyx": Cut(256, 128, 64, 32)}
"""Regions of as many pixels, whether they are of planes or of volumes."""


def _diameter(given: object) -> object:
    """Return a diameter as it is set; raise a validation error in one sentence, not one for each type."""
    if given is None or given == "auto":
        return given
    try:
        value = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise PydanticCustomError("diameter", "Input should be a number of pixels greater than 0, or auto")
    return value


class ResultSettings(BaseModel):
    """Everything, besides images and ensemble, on which a byte of the result may depend.

    A run resumes in an existing output only with the same values. Fields that are None take the ensemble's value.

    `tile` and `overlap` are one number, or of volumes one for each of z, y, x.

    `region` and `chunk` are edges on y and x, `region_depth` and `chunk_depth` those on z, of an ensemble of volumes;
    None takes those of `CUTS`.

    `diameter` is that of the objects in pixels of the image's level (`level`, else 0). It decides how the image is
    resampled, by the ensemble's `input.diameter_px`; pixel sizes are not used then. With ``auto`` each image's own is
    estimated before its first region (`chorus.cluster.runs.image_diameters`).

    `backend` runs the members' networks; ``auto`` takes what `chorus bench engine` found fastest, else PyTorch.

    `effort` is ``full`` where every tile gets all augmentations, and ``adaptive`` where it gets them as far as they
    matter (`chorus.pipeline.inference.adaptive_bound`).

    `threads` are those of torch in an actor on cores, where some network's last bits might depend on them.

    `volumes` is None where every plane is by itself, ``all`` where results are of volumes (means over the planes in
    three directions, flows in three), and else the one direction that is a part of such a run: see
    `chorus.cluster.planning.volume_views`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channel: list[str] = []
    level: int | None = Field(default=None, ge=0)
    diameter: Annotated[float | Literal["auto"] | None, BeforeValidator(_diameter)] = None
    tile: Edge | tuple[Edge, Edge, Edge] | None = None
    overlap: Overlap | tuple[Overlap, Overlap, Overlap] | None = None
    augmentations: list[str] | None = None
    effort: Literal["full", "adaptive"] = "full"
    batch: int | None = Field(default=None, ge=1)
    precision: Precision = "fp32"
    backend: Backend | Literal["auto"] = "auto"
    device: DeviceKind = "cpu"
    threads: int = Field(default=1, ge=1)
    region: int | None = Field(default=None, ge=64)
    chunk: int | None = Field(default=None, ge=16)
    region_depth: int | None = Field(default=None, ge=1)
    chunk_depth: int | None = Field(default=None, ge=1)
    save: list[str] = Field(default_factory=lambda: list(DEFAULTS))
    dtype: Literal["float16", "float32"] = "float16"
    strict: bool = False
    in_place: bool = False
    volumes: Literal["all", "yx", "zx", "zy"] | None = None

    @property
    def diameter_px(self) -> float | None:
        """The diameter that was given; None if there is none, or each image has its own."""
        return None if self.diameter == "auto" else self.diameter

    @field_validator("save")
    @classmethod
    def _known_maps(cls, names: list[str]) -> list[str]:
        unknown = [n for n in names if n not in FIELDS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a map; choose out of {', '.join(CHOICES)}, or `none`")
        return in_order(names)

    @field_validator("augmentations")
    @classmethod
    def _known_augmentations(cls, names: list[str] | None) -> list[str] | None:
        unknown = [n for n in names or [] if n not in VOLUME_AUGMENTATIONS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not an augmentation; choose out of {', '.join(VOLUME_AUGMENTATIONS)}")
        return names

    @model_validator(mode="after")
    def _aligned(self) -> ResultSettings:
        if self.region and self.chunk and self.region % self.chunk:
            raise ValueError(f"region {self.region} is not a multiple of chunk {self.chunk}")
        if self.region_depth and self.chunk_depth and self.region_depth % self.chunk_depth:
            raise ValueError(f"region-depth {self.region_depth} is not a multiple of chunk-depth {self.chunk_depth}")
        if self.volumes and self.in_place:
            raise ValueError("--volumes: results of volumes are not written into source images; leave --in-place out")
        return self


class RunSettings(BaseModel):
    """How a run is executed; nothing here changes a byte of the result.

    Attributes
    ----------
    executor : ``ray``, ``serial`` in this process, or ``auto``: see `chorus.cluster.runtime.break_even`
    address : a running Ray cluster; None starts one on this machine
    actors : member actors; None takes what the machine has room for
    placement : all members in every actor, or groups of members in stages; None lets the planner choose
    stages : groups of members where the placement is staged
    trust_code : whether code from a member's package may run
    thumbnails : whether each image gets one for the report, when it is finished
    sentinels : whether a run stops or warns where the Dice of a sentinel changed, or skips sentinels
    metrics_port : port of the driver's metrics; a local Ray takes the next port; None for no metrics
    cluster : prices of its nodes; None where unknown
    profile : whether to record a timeline for `chorus profile`
    verify : whether to read all results of earlier sessions, and compare them with their checksums
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    executor: Executor = "auto"
    address: str | None = None
    actors: int | None = Field(default=None, ge=1)
    placement: Literal["replicated", "staged"] | None = None
    stages: int = Field(default=2, ge=2)
    trust_code: bool = False
    thumbnails: bool = True
    sentinels: Literal["check", "warn", "skip"] = "check"
    metrics_port: int | None = Field(default=None, ge=1, le=65534)
    cluster: ClusterFile | None = None
    profile: bool = False
    verify: bool = False
