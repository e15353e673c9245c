"""The bundle of members, how to feed them and what they say: ``ensemble.yaml``, checked before any work."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline import storage
from pipeline.augmentation import AUGMENTATIONS, FLIPS
from pipeline.errors import RefusedError
from pipeline.layout import ClassInfo
from pipeline.members.contract import Member
from pipeline.members.smp import SmpMember
from pipeline.members.torchscript import TorchScriptMember
from pipeline.normalisation import Normalisation

FORMAT = "chorus-ensemble/1"
COLORS = ("#4daf4a", "#377eb8", "#e41a1c", "#984ea3", "#ff7f00", "#ffff33", "#a65628", "#f781bf")

AnyMember = Annotated[SmpMember | TorchScriptMember, Field(discriminator="kind")]
Activation = Literal["softmax", "sigmoid", "none"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassEntry(_Strict):
    """A class: its name and, but for the background, its colour."""

    name: str = Field(min_length=1)
    color: str | None = Field(default=None, pattern=r"^#[0-9a-fA-F]{6}$")


class InputEntry(_Strict):
    """What the members were trained on."""

    channels: list[str] = Field(min_length=1)
    pixel_size_um: float | None = Field(default=None, gt=0)
    scale: Literal["dtype"] | None = None
    normalisation: Normalisation


class EnsembleSpec(_Strict):
    """``ensemble.yaml`` as written; see the design for an example."""

    format: Literal["chorus-ensemble/1"]
    name: str = Field(min_length=1)
    classes: list[ClassEntry] = Field(min_length=2)
    input: InputEntry
    activation: Activation = "softmax"
    tile: int = Field(ge=32, le=4096)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    augmentations: list[str] = Field(default_factory=lambda: list(FLIPS), min_length=1)
    members: list[AnyMember] = Field(min_length=1)

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
        return self


@dataclass(frozen=True)
class Ensemble:
    """An ensemble that was read from a URL: what it says, and the hash that names it in every output."""

    url: str
    spec: EnsembleSpec
    hash: str

    @property
    def multilabel(self) -> bool:
        """Several foreground classes with a sigmoid each: a pixel may belong to more than one."""
        return self.spec.activation == "sigmoid" and len(self.spec.classes) > 2

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        return tuple(
            ClassInfo(c.name, c.color or ("#000000" if i == 0 else COLORS[(i - 1) % len(COLORS)]))
            for i, c in enumerate(self.spec.classes)
        )

    @property
    def outputs(self) -> int:
        """Channels that a member's last layer gives."""
        return len(self.spec.classes) - (1 if self.spec.activation == "sigmoid" else 0)

    @property
    def probability_names(self) -> tuple[str, ...]:
        """Classes that have a probability map: all, or the foreground ones of a multi-label ensemble."""
        names = [c.name for c in self.spec.classes]
        return tuple(names[1:] if self.multilabel else names)

    def load_member(self, index: int, device: torch.device) -> Member:
        """Member `index` on `device`; raises RefusedError where its weights are missing, wrong or do not fit."""
        member = self.spec.members[index]
        url = member.weights if "://" in member.weights else storage.join(self.folder, member.weights)
        if member.weights.startswith("/"):
            url = member.weights
        return member.load(url, channels=len(self.spec.input.channels), outputs=self.outputs, device=device)

    @property
    def folder(self) -> str:
        return self.url.rsplit("/", 1)[0]


def read_ensemble(url: str) -> Ensemble:
    """Read and validate ``ensemble.yaml`` (or the folder that holds it); weights are checked on loading.

    Raises
    ------
    RefusedError
        In one sentence: what is missing or wrong, in which field.
    """
    url = storage.normalise(url)
    if not url.endswith((".yaml", ".yml")):
        url = storage.join(url, "ensemble.yaml")
    try:
        text = storage.read_bytes(url).decode()
        content = yaml.safe_load(text)
        spec = EnsembleSpec.model_validate(content)
    except OSError as error:
        raise RefusedError(f"ensemble {storage.explain(error, url)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RefusedError(f"{url}: not YAML ({str(error).splitlines()[0]}); see the README for an example") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise RefusedError(f"{url}: field {field}: {first['msg']}; correct it (format {FORMAT})") from error
    canonical = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return Ensemble(url=url, spec=spec, hash=hashlib.sha256(canonical.encode()).hexdigest())


def check_answer(ensemble: Ensemble, index: int, member: Member, tile: int, device: torch.device) -> None:
    """Show a member an empty tile; raises RefusedError where what it gives is not what the ensemble says."""
    spec = ensemble.spec
    which = f"{ensemble.url}: member {index} ({spec.members[index].weights})"
    channels = len(spec.input.channels)
    wanted = (1, ensemble.outputs, tile, tile)
    try:
        with torch.inference_mode():
            answer = member(torch.zeros((1, channels, tile, tile), device=device))
            given, finite = tuple(answer.shape), bool(torch.isfinite(answer).all())
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise RefusedError(
            f"{which} cannot take {channels} channels in tiles of {tile} ({reason}); correct input.channels or tile"
        ) from error
    if given != wanted:
        raise RefusedError(
            f"{which} gives {given[1:]} for a tile, not {wanted[1:]}; members must agree on the classes "
            f"({', '.join(c.name for c in spec.classes)}) and keep the tile's size"
        )
    if not finite:
        raise RefusedError(f"{which} answers an empty tile with NaN or infinity; its weights are damaged: restore them")
