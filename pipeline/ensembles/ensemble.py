"""The ensemble of members, their inputs and outputs: ``ensemble.yaml``, checked before any work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from pydantic import ValidationError

from chorus.pipeline.core.answers import AnswerShape
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.geometry import Padding, TileSize, shown_size, tile_shape
from chorus.pipeline.core.outputs import CLASSES, FLOWS, Outputs
from chorus.pipeline.ensembles.plain_yaml import NotPlainError, plain_yaml
from chorus.pipeline.ensembles.spec import FORMAT, EnsembleSpec, newer
from chorus.pipeline.errors import RefusedError, first_line, reason_of
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import fault, has_control_characters, shown
from chorus.pipeline.io.models import ClassInfo
from chorus.pipeline.io.storage_failures import failure_sentence
from chorus.pipeline.members.contract import LoadRequest, Member, ModuleMember
from chorus.pipeline.preprocessing.normalisation import NormalisedInput
from chorus.pipeline.preprocessing.preparation import Measure, Preparation

COLORS = ("#4daf4a", "#377eb8", "#e41a1c", "#984ea3", "#ff7f00", "#ffff33", "#a65628", "#f781bf")


@dataclass(frozen=True)
class Inputs:
    """The members' input: their distinct preparations of the same pixels, one after another along the channels.

    Attributes
    ----------
    preparations : each once
    channels : of the stack, for every member
    count : channels of the stack
    padding : of the prepared pixels beyond the image's edges
    """

    preparations: tuple[Preparation, ...]
    channels: tuple[slice, ...]
    count: int
    padding: Padding

    @property
    def measures(self) -> frozenset[Measure]:
        """Statistics that must be known before."""
        return frozenset().union(*(preparation.measures for preparation in self.preparations))


@dataclass(frozen=True)
class Ensemble:
    """An ensemble that was read from a URL: its specification, and the hash that identifies it in every output.

    Attributes
    ----------
    trust_code : whether code that a member brings along may run, and its weights may lie at any address
    named : whether the user named the weights, so that they may lie anywhere
    """

    url: str
    spec: EnsembleSpec
    hash: str
    trust_code: bool = False
    named: bool = False

    @property
    def multilabel(self) -> bool:
        """See `EnsembleSpec.multilabel`."""
        return self.spec.multilabel

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes with their colours, background first; missing colours are taken from `COLORS`."""
        return tuple(
            ClassInfo(c.name, c.color or ("#000000" if i == 0 else COLORS[(i - 1) % len(COLORS)]))
            for i, c in enumerate(self.spec.classes)
        )

    @cached_property
    def outputs(self) -> Outputs:
        """What members answer with; see `EnsembleSpec.answers`."""
        return self.spec.answers

    @property
    def probability_names(self) -> tuple[str, ...]:
        """Classes that have a probability map: all, or the foreground ones of a multi-label ensemble."""
        return self.outputs[CLASSES].names

    def asked(self, index: int, tile: TileSize | None = None, *, tried: bool = False) -> LoadRequest:
        """Build the request that loads member `index`, for tiles of this size or of the ensemble's own."""
        spec = self.spec
        weights = spec.members[index].weights
        beside = fault(weights) is None
        url = storage.join(self.folder, weights) if beside else self._elsewhere(weights)
        channels, tile = len(spec.input.channels), tile or spec.tile_size
        return LoadRequest(url, channels, self.outputs, tile, self.trust_code, tried, beside)

    def _elsewhere(self, weights: str) -> str:
        """Return the URL of weights outside the ensemble's folder: of its own scheme, or as the user named it.

        A downloaded ensemble must not make this machine call addresses that its author chose.
        """
        local = storage.scheme(self.url) == "file"
        if local and "://" not in weights and not has_control_characters(weights):
            return weights if weights.startswith("/") else storage.join(self.folder, weights)
        there = storage.scheme(weights) == storage.scheme(self.url) and not has_control_characters(weights)
        if not (self.named or self.trust_code or ("://" in weights and there)):
            raise RefusedError(
                f"{self.url}: the weights {shown(weights)} lie elsewhere; put them beside ensemble.yaml, or run with "
                f"--trust-code if you trust its author"
            )
        return weights

    def load_member(
        self, index: int, device: torch.device, tile: TileSize | None = None, *, tried: bool = False
    ) -> Member:
        """Load member `index` on `device`, whose results are repeatable from then on.

        `tried` spares a stranger's program its trial under limits, where the run made one before.

        Raises
        ------
        RefusedError
            Its weights are missing, wrong or do not fit.
        """
        device_of(device).be_repeatable()
        return self.spec.members[index].load(self.asked(index, tile, tried=tried), device)

    def inputs(self, members: Iterable[int], tile: TileSize | None = None) -> Inputs:
        """Collect what these members take as input; raise RefusedError if a member's preparation is unavailable."""
        stack: dict[Preparation, slice] = {}
        channels, count = [], 0
        for index in members:
            own = self.spec.members[index].preparation(self.asked(index, tile))
            preparation = own or self._normalised
            if preparation not in stack:
                stack[preparation] = slice(count, count + preparation.channels)
                count += preparation.channels
            channels.append(stack[preparation])
        return Inputs(tuple(stack), tuple(channels), count, self.spec.input.padding)

    @cached_property
    def all_inputs(self) -> Inputs:
        """What all members together see."""
        return self.inputs(range(len(self.spec.members)))

    @property
    def _normalised(self) -> NormalisedInput:
        entry = self.spec.input
        return NormalisedInput(entry.normalisation, len(entry.channels), entry.scale == "dtype")

    @property
    def folder(self) -> str:
        """URL of the folder that holds ``ensemble.yaml``."""
        return self.url.rsplit("/", 1)[0]


def read_ensemble(url: str, *, trust_code: bool = False) -> Ensemble:
    """Read and validate ``ensemble.yaml`` (or the folder that holds it); weights are checked on loading.

    Code that a member's package brings along runs with `trust_code` alone.

    Raises
    ------
    RefusedError
        In one sentence: what is missing or wrong, in which field.
    """
    url = ensemble_url(url)
    try:
        content = plain_yaml(storage.read_bytes(url))
        if newer(content):
            raise RefusedError(
                f"{url}: written by a newer Chorus (format {content['format']}, this one knows {FORMAT}); update "
                f"Chorus with `pip install --upgrade chorus-bioimage`"
            )
        spec = EnsembleSpec.model_validate(content)
    except OSError as error:
        raise RefusedError(f"ensemble {failure_sentence(error, url)}") from error
    except NotPlainError as error:
        raise RefusedError(f"{url}: not YAML ({first_line(error)}); see the README for an example") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise RefusedError(f"{url}: field {field}: {reason_of(first['msg'])}; correct it (format {FORMAT})") from error
    return Ensemble(url=url, spec=spec, hash=content_hash(spec), trust_code=trust_code)


def require_planes(ensemble: Ensemble, what: str) -> None:
    """Raise RefusedError where members take volumes, which `what` does not know."""
    if ensemble.spec.input.axes != "yx":
        raise RefusedError(f"{ensemble.url}: its members take volumes (input.axes: zyx), which {what} cannot use yet")


def ensemble_url(url: str) -> str:
    """Return the URL of ``ensemble.yaml``, given that file or the folder that holds it."""
    url = storage.normalise(url)
    return url if url.endswith((".yaml", ".yml")) else storage.join(url, "ensemble.yaml")


def content_hash(spec: EnsembleSpec) -> str:
    """Hash what defines the results: all but `about`, `sentinels`, `effort`, and how objects are made of outputs.

    Weights are in it by their own hashes.

    With adaptive effort the bound defines them too. Such a run keeps the bound among its settings, so that what was
    measured at full effort stays that of the same ensemble.
    """
    content = spec.model_dump(
        mode="json", exclude={"about": True, "sentinels": True, "effort": True, "outputs": {"__all__": {"objects"}}}
    )
    # Ensembles of classes and flows keep the hashes that they had before there were other outputs.
    roles = spec.answers.roles
    if roles in ((CLASSES,), (CLASSES, FLOWS)):
        del content["outputs"]
        content["flows"] = FLOWS in roles
        if spec.flow_lengths:
            content["flow_lengths"] = True
    if spec.answer == AnswerShape():
        del content["answer"]
    # So that ensembles of planes, and those that mirror, keep the hash that they had before there were others.
    for name, usual in (("axes", "yx"), ("padding", "mirror")):
        if content["input"][name] == usual:
            del content["input"][name]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_answer(ensemble: Ensemble, index: int, member: Member, tile: TileSize, device: torch.device) -> None:
    """Run a member on an empty tile; raise RefusedError if its output does not match the ensemble."""
    spec = ensemble.spec
    which = f"{ensemble.url}: member {index} ({spec.members[index].weights})"
    if spec.input.axes == "yx" and isinstance(member, ModuleMember) and member.of_volumes:
        raise RefusedError(f"{which}: its network takes volumes: set input.axes to zyx, and tile to z, y and x")
    channels, size = ensemble.inputs([index], tile).count, tile_shape(tile)
    try:
        with torch.inference_mode():
            answer = member(torch.zeros((1, channels, *size), device=device))
            given, finite = tuple(answer.shape), bool(torch.isfinite(answer).all())
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise RefusedError(
            f"{which} cannot take {channels} channels in tiles of {shown_size(tile)} ({reason}); correct "
            "input.channels or tile"
        ) from error
    outputs = ensemble.outputs
    # Probabilities may be of all classes or of the foreground ones, where a background follows from them.
    allowed = {outputs[CLASSES].channels}
    if CLASSES not in outputs.roles:
        allowed = {0}
    elif (member.activation or spec.activation) == "none":
        allowed |= {len(spec.classes), len(spec.classes) - 1} if not ensemble.multilabel else set()
    elif member.activation is not None:
        allowed = {len(spec.classes) - (member.activation == "sigmoid")}
    others = outputs.channels - outputs[CLASSES].channels
    values = spec.answer.values(size)
    if given not in {(1, classes + others, *values) for classes in allowed}:
        wanted = (outputs.channels, *values)
        more = "".join(f" and {role.name}" for role in outputs.roles if role != CLASSES)
        raise RefusedError(
            f"{which} gives {given[1:]} for a tile, not {wanted}; members must agree on the classes "
            f"({', '.join(c.name for c in spec.classes)}){more}, and on the size, which "
            "`answer` declares where it is not the tile's"
        )
    if not finite:
        raise RefusedError(f"{which} answers an empty tile with NaN or infinity; its weights are damaged: restore them")
