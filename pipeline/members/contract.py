"""The interface of a trained network, and how its weights are fetched and checked."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.core.geometry import TileSize, shown_size, tile_shape
from chorus.pipeline.core.outputs import Activation, Outputs
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence
from chorus.pipeline.preprocessing.preparation import Preparation

FLOW_LENGTH = 5.0
"""Length of the vectors that networks are trained on and predict, as in Cellpose."""


@dataclass(frozen=True)
class LoadRequest:
    """Parameters with which an ensemble loads a member.

    Attributes
    ----------
    url : of the member's weights or package
    channels : number of input channels, raw or normalised (`MemberEntry.preparation`)
    outputs : what it must answer with
    tile : its size
    trust_code : whether code that the file brings along may run
    tried : whether such a file was loaded and called under limits before (`chorus.pipeline.members.safety.trial`)
    beside : whether it lies beside ``ensemble.yaml``; messages reveal nothing of other files, not even a hash
    """

    url: str
    channels: int
    outputs: Outputs
    tile: TileSize
    trust_code: bool = False
    tried: bool = False
    beside: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels of a tile on each axis, (y, x) or (z, y, x)."""
        return tile_shape(self.tile)

    @property
    def edge(self) -> int:
        """Edge of a square tile; raise RefusedError for tiles of volumes."""
        if not isinstance(self.tile, int):
            raise RefusedError(
                f"{self.url}: members of this kind take tiles of planes, not of {shown_size(self.tile)} voxels; set "
                f"`input.axes: yx` in ensemble.yaml"
            )
        return self.tile


class Member(Protocol):
    """One trained network of an ensemble, on one device.

    Attributes
    ----------
    activation : turns the outputs for the classes into probabilities; None takes the ensemble's. With ``none`` they
        are probabilities already, of all classes or of the foreground ones.
    """

    activation: Activation | None

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Predict a batch of prepared tiles.

        Parameters
        ----------
        tiles : (batch, channels, y, x) float32

        Returns
        -------
        torch.Tensor
            (batch, channels, y, x): the last layer's channels of each of the ensemble's outputs, in their order.
        """
        ...

    def parameters_bytes(self) -> int:
        """Return the bytes of weights that this member keeps on its device."""
        ...


@runtime_checkable
class Encoding(Protocol):
    """The features of a member's encoder, at the encoder's last stage.

    Attributes
    ----------
    features : channels of that stage; 0 if the network has no encoder
    """

    features: int

    def encoded(self) -> torch.Tensor:
        """Return the stage's output of the last call; ask at most once per call.

        Returns
        -------
        torch.Tensor
            (batch, features, y, x), y and x at the stage's resolution.
        """
        ...


class SizeRegression(Protocol):
    """What estimates the diameter of an image's objects from the features of a member's encoder."""

    def diameter(self, style: NDArray[np.floating[Any]]) -> float:
        """Return the diameter in pixels of the image that the member saw.

        Parameters
        ----------
        style : (features,), mean over the image's tiles, scaled to length 1
        """
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

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of its files in the folder `weights`; none where all in it are its, or `weights` is a file."""
        return ()

    def preparation(self, asked: LoadRequest) -> Preparation | None:
        """Return how this member wants its pixels prepared; None if the ensemble's normalisation applies."""
        return None

    def companions(self) -> tuple[tuple[str, str], ...]:
        """Return the URLs of further files where `weights` is a URL, each with what its name adds to theirs."""
        return ()

    def size_regression(self, asked: LoadRequest) -> SizeRegression | None:
        """Return what estimates the objects' diameter; None where the member has nothing of the kind."""
        return None

    @abstractmethod
    def load(self, asked: LoadRequest, device: torch.device) -> Member:
        """Load the network on `device`; raise RefusedError if it is missing, differs or does not fit."""


def channels_last(axes: int) -> torch.memory_format:
    """Return the memory format in which convolutions over so many axes are fastest."""
    return torch.channels_last_3d if axes == 3 else torch.channels_last


class ModuleMember:
    """A torch module as a member, in evaluation mode and channels-last memory, where convolutions are fastest.

    It provides `Encoding` if the module has an `encoder`, as networks of segmentation-models-pytorch have.

    Attributes
    ----------
    module, encoder : the network, and the part of it that makes features, or None
    """

    def __init__(self, module: torch.nn.Module, device: torch.device, activation: Activation | None = None) -> None:
        self.activation = activation
        module.eval()
        for parameter in module.parameters():  # TorchScript modules have no `requires_grad_` of their own
            parameter.requires_grad_(False)
        self.module = in_channels_last(module, device)
        self.encoder, self.features = _encoder(module)
        self._stage: torch.Tensor | None = None

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Predict a batch; see `Member`.

        Parameters
        ----------
        tiles : (batch, channels, y, x) float32, or (batch, channels, z, y, x) where an ensemble is of volumes

        Returns
        -------
        torch.Tensor
            (batch, outputs, y, x).
        """
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

    @property
    def of_volumes(self) -> bool:
        """Whether it has kernels of volumes."""
        return any(parameter.ndim == 5 for parameter in self.module.parameters())

    def encoded(self) -> torch.Tensor:
        """See `Encoding`."""
        stage, self._stage = self._stage, None
        if stage is None:
            raise RuntimeError("the encoder was not called since it was asked last")
        return stage

    def parameters_bytes(self) -> int:
        """Return the bytes of the module's parameters and buffers."""
        tensors = [*self.module.parameters(), *self.module.buffers()]
        return sum(t.numel() * t.element_size() for t in tensors)

    def _keep(self, encoder: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._stage = last_stage(output)


def in_channels_last(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Move a network to a device and its kernels to channels-last memory, those of planes or those of volumes."""
    if all(parameter.ndim < 5 for parameter in module.parameters()):
        moved: torch.nn.Module = module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return moved
    module = module.to(device)
    for parameter in module.parameters():
        if parameter.ndim in (4, 5):
            parameter.data = parameter.data.contiguous(memory_format=channels_last(parameter.ndim - 2))
    return module


def last_stage(output: Any) -> torch.Tensor:
    """Return the coarsest stage of an encoder of segmentation-models-pytorch.

    Parameters
    ----------
    output : of the encoder, stages from fine to coarse, each (batch, features, y, x)

    Returns
    -------
    torch.Tensor
        (batch, features, y, x).
    """
    # Stages from fine to coarse; encoders for DPT give them together with their tokens.
    stages = output[0] if isinstance(output[0], list | tuple) else output
    stage: torch.Tensor = stages[-1]
    return stage


def _encoder(module: torch.nn.Module) -> tuple[torch.nn.Module | None, int]:
    """Return the encoder of a network and its number of features; none for TorchScript, which calls no hooks."""
    encoder = getattr(module, "encoder", None)
    channels: Any = getattr(encoder, "out_channels", None)
    known = isinstance(encoder, torch.nn.Module) and isinstance(channels, list | tuple) and channels and channels[-1]
    if not known or isinstance(module, torch.jit.ScriptModule):
        return None, 0
    return encoder, int(channels[-1])


def fetch_weights(url: str, sha256: str | None, *, beside: bool = True) -> bytes:
    """Read a weight file; raise RefusedError if it is missing or its hash differs.

    `beside`: see `LoadRequest`.
    """
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise RefusedError(
            f"weights {failure_sentence(error, url) or url}; a member's `weights` is relative to ensemble.yaml"
        ) from error
    check_digest(url, hashlib.sha256(data).hexdigest(), sha256, beside=beside)
    return data


def check_digest(url: str, digest: str, sha256: str | None, *, beside: bool = True) -> None:
    """Compare a hash of weights with what ``ensemble.yaml`` says; raise RefusedError if they differ.

    `beside`: see `LoadRequest`.
    """
    if not beside and digest != (sha256 or "").lower():
        raise RefusedError(
            f"{url}: is not the file that ensemble.yaml names, whose sha256 it gives; correct the path or the hash"
        )
    if sha256 is None:
        raise RefusedError(f"{url}: its member has no sha256 in ensemble.yaml; add `sha256: {digest}`")
    if digest != sha256.lower():
        raise RefusedError(
            f"{url}: sha256 is {digest}, ensemble.yaml says {sha256}; restore the file or correct the hash"
        )
