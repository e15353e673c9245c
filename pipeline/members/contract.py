"""What Chorus asks of a trained network, and how its weights are fetched and checked."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.preprocessing.preparation import Preparation

Activation = Literal["softmax", "sigmoid", "none"]
FLOWS = 2
"""Outputs that say where a pixel's object lies, after those of the classes: 5 times the unit vector (dy, dx)."""
FLOW_LENGTH = 5.0
"""Of the vectors that networks are trained on and give, as in Cellpose."""


@dataclass(frozen=True)
class LoadRequest:
    """What the ensemble asks of a member when it is loaded.

    Attributes
    ----------
    url : of its weights or package
    channels : handed to it, raw or normalised (`MemberEntry.preparation`)
    outputs : what its last layer gives for the classes, without flows
    flows : whether the flows (dy, dx) follow them
    tile : edge of a tile in pixels
    trust_code : whether code that the file brings along may run
    tried : whether such a file was loaded and called under limits before (`chorus.pipeline.members.trial`)
    beside : whether it lies beside ``ensemble.yaml``; of other files of the user nothing is told, not even a hash
    """

    url: str
    channels: int
    outputs: int
    flows: bool
    tile: int
    trust_code: bool = False
    tried: bool = False
    beside: bool = True


class Member(Protocol):
    """One trained network of an ensemble, on one device.

    Called with a batch of prepared tiles, (batch, channels, y, x) float32, it returns (batch, outputs, y, x): what
    its last layer says of the classes, then the flows (dy, dx) where the ensemble has them.

    Attributes
    ----------
    activation : turns what it says of the classes into probabilities; None takes the ensemble's. With ``none`` they
        are probabilities already, of all classes or of the foreground ones.
    """

    activation: Activation | None

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor: ...

    def parameters_bytes(self) -> int:
        """Bytes of weights that this member keeps on its device."""
        ...


@runtime_checkable
class Encoding(Protocol):
    """What a member offers besides, where its network has an encoder: that encoder's last stage.

    Attributes
    ----------
    features : channels of that stage; 0 where there is no encoder after all
    """

    features: int

    def encoded(self) -> torch.Tensor:
        """What the stage said of the batch of the last call, (batch, features, y, x); to be asked for once a call."""
        ...


class MemberEntry(BaseModel, ABC):
    """A member as ``ensemble.yaml`` has it; each kind adds its own fields.

    Attributes
    ----------
    weights : URL of a file or a package, or a path relative to ``ensemble.yaml``
    sha256 : of what `weights` holds
    activation : of this member where it differs from the ensemble's
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    weights: str
    sha256: str | None = None
    activation: Activation | None = None

    def preparation(self, asked: LoadRequest) -> Preparation | None:
        """How this member wants its pixels, where it brings that along; None: as the ensemble normalises them."""
        return None

    @abstractmethod
    def load(self, asked: LoadRequest, device: torch.device) -> Member:
        """The network on `device`; raises RefusedError where it is missing, wrong or does not fit."""


class ModuleMember:
    """A member that is a torch module, in evaluation mode and with channels last, where convolutions are fastest.

    It is `Encoding`, too, where the module has an `encoder` as networks of segmentation-models-pytorch have.

    Attributes
    ----------
    module, encoder : the network, and the part of it that makes features, or None
    """

    def __init__(self, module: torch.nn.Module, device: torch.device, activation: Activation | None = None) -> None:
        self.activation = activation
        module.eval()
        for parameter in module.parameters():  # TorchScript modules have no `requires_grad_` of their own
            parameter.requires_grad_(False)
        self.module = module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.encoder, self.features = _encoder(module)
        self._stage: torch.Tensor | None = None

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor
        if self.encoder is None:
            result = self.module(tiles)
            return result
        # Only while it is called: whoever exports or copies the module gets it as it was.
        hook = self.encoder.register_forward_hook(self._keep)
        try:
            result = self.module(tiles)
            return result
        finally:
            hook.remove()

    def encoded(self) -> torch.Tensor:
        """See `Encoding`."""
        stage, self._stage = self._stage, None
        if stage is None:
            raise RuntimeError("the encoder was not called since it was asked last")
        return stage

    def parameters_bytes(self) -> int:
        tensors = [*self.module.parameters(), *self.module.buffers()]
        return sum(t.numel() * t.element_size() for t in tensors)

    def _keep(self, encoder: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._stage = last_stage(output)


def last_stage(output: Any) -> torch.Tensor:
    """The coarsest stage of what an encoder of segmentation-models-pytorch gives."""
    # Stages from fine to coarse; encoders for DPT give them together with their tokens.
    stages = output[0] if isinstance(output[0], list | tuple) else output
    stage: torch.Tensor = stages[-1]
    return stage


def _encoder(module: torch.nn.Module) -> tuple[torch.nn.Module | None, int]:
    """The part of a network that makes features, and how many; none of TorchScript's, which never calls a hook."""
    encoder = getattr(module, "encoder", None)
    channels: Any = getattr(encoder, "out_channels", None)
    known = isinstance(encoder, torch.nn.Module) and isinstance(channels, list | tuple) and channels and channels[-1]
    if not known or isinstance(module, torch.jit.ScriptModule):
        return None, 0
    return encoder, int(channels[-1])


def fetch_weights(url: str, sha256: str | None, *, beside: bool = True) -> bytes:
    """The bytes of a weight file; raises RefusedError where it is missing or not the one that was meant.

    `beside`: see `LoadRequest`.
    """
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise RefusedError(
            f"weights {storage.explain(error, url) or url}; a member's `weights` is relative to ensemble.yaml"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if not beside and found != (sha256 or "").lower():
        raise RefusedError(
            f"{url}: is not the file that ensemble.yaml names, whose sha256 it gives; correct the path or the hash"
        )
    if sha256 is None:
        raise RefusedError(f"{url}: its member has no sha256 in ensemble.yaml; add `sha256: {found}`")
    if found != sha256.lower():
        raise RefusedError(
            f"{url}: sha256 is {found}, ensemble.yaml says {sha256}; restore the file or correct the hash"
        )
    return data
