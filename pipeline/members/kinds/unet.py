"""U-Nets of volumes that `chorus train` makes: their design in ``ensemble.yaml``, and a state dict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator

from chorus.pipeline.core.geometry import shown_size
from chorus.pipeline.core.strict import Strict
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import LoadRequest, Member, MemberEntry, ModuleMember, fetch_weights
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.kind import MemberKind, Network
from chorus.pipeline.members.kinds.nnunet.networks import library
from chorus.pipeline.members.kinds.smp import fill, state_dict

_Count = Annotated[int, Field(ge=1, le=16)]
_Triple = tuple[_Count, _Count, _Count]
USUAL_STAGES = 4
_LEAST_EDGE, _FIRST_FEATURES = 4, 16
_ANISOTROPIC = 2.0
"""An axis whose pixels are more than so many times the finest ones is not mixed or halved until others are alike."""


class UnetDesign(Strict):
    """A U-Net of volumes, as dynamic_network_architectures builds it, with leaky ReLU.

    Instance normalisation takes its statistics from each tile, since batches of volumes are too small for those of
    batches; so answers depend on the size of the tiles, which therefore is that of the training's patches.

    Attributes
    ----------
    architecture : plain convolutions, or an encoder of residual blocks
    features : channels of each stage
    strides : by which each stage is coarser than the one before it, on z, y and x; 1 for the first stage
    kernels : of each stage, on z, y and x; odd
    convolutions : convolutions, or residual blocks, of each stage of the encoder; and convolutions of the decoder's
    """

    architecture: Literal["PlainConvUNet", "ResidualEncoderUNet"] = "PlainConvUNet"
    features: list[Annotated[int, Field(ge=1, le=2048)]] = Field(min_length=2, max_length=8)
    strides: list[_Triple]
    kernels: list[_Triple]
    convolutions: Annotated[int, Field(ge=1, le=8)] = 2

    @model_validator(mode="after")
    def _staged(self) -> Self:
        """Check that every stage has its strides and kernels."""
        if not len(self.features) == len(self.strides) == len(self.kernels):
            raise ValueError("features, strides and kernels: give one of each per stage")
        if set(self.strides[0]) != {1}:
            raise ValueError("strides: give 1, 1, 1 for the first stage, which has the size of its input")
        if any(width % 2 == 0 for kernel in self.kernels for width in kernel):
            raise ValueError("kernels: give odd numbers, so that answers have the size of their tile")
        return self

    @property
    def stride(self) -> tuple[int, ...]:
        """Voxels on each axis of which tiles are multiples."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))

    def build(self, channels: int, outputs: int) -> torch.nn.Module:
        """Return the network with the library's random weights.

        Parameters
        ----------
        channels, outputs : of the first and the last layer

        Raises
        ------
        RefusedError
            If the library is not installed.
        """
        plain = self.architecture == "PlainConvUNet"
        network: torch.nn.Module = getattr(library("architectures.unet"), self.architecture)(
            input_channels=channels,
            n_stages=len(self.features),
            features_per_stage=self.features,
            conv_op=torch.nn.Conv3d,
            kernel_sizes=[list(kernel) for kernel in self.kernels],
            strides=[list(stride) for stride in self.strides],
            num_classes=outputs,
            n_conv_per_stage_decoder=[self.convolutions] * (len(self.features) - 1),
            conv_bias=True,
            norm_op=torch.nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=torch.nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=False,
            **{"n_conv_per_stage" if plain else "n_blocks_per_stage": [self.convolutions] * len(self.features)},
        )
        # Where `ModuleMember` looks for the width of an encoder's stages.
        network.get_submodule("encoder").out_channels = self.features  # type: ignore[assignment]
        return network


def first_names(module: torch.nn.Module) -> dict[str, str]:
    """Return the first name of the tensor behind every name in the state of `module`.

    Networks of the library have the same layer under several names, of which a file has the first.
    """
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in module.state_dict(keep_vars=True).items()}


def under_all_names(module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state with the first name of each tensor as one that `module` loads; other names stay."""
    names = first_names(module)
    more = {name: state[first] for name, first in names.items() if first != name and first in state}
    return {**state, **more}


def usual_design(
    patch: Sequence[int], pixel_sizes: Sequence[float], architecture: str, stages: int = USUAL_STAGES
) -> UnetDesign:
    """Return the design for patches of this size, by nnU-Net's rule for anisotropic voxels, but small.

    Parameters
    ----------
    patch : voxels on z, y and x
    pixel_sizes : on z, y and x, in any unit
    architecture : of the library
    stages : at most so many; fewer where patches are too small to be halved

    References
    ----------
    Isensee et al., nnU-Net, Nature Methods 18:203 (2021), Methods: network topology.
    """
    edges, sizes = list(patch), list(pixel_sizes)
    strides, kernels = [(1, 1, 1)], [_kernel(sizes)]
    while len(strides) < stages:
        near = [size <= _ANISOTROPIC * min(sizes) for size in sizes]
        halved = [fine and edge % 2 == 0 and edge // 2 >= _LEAST_EDGE for fine, edge in zip(near, edges, strict=True)]
        if not any(halved):
            break
        stride = tuple(1 + half for half in halved)
        edges = [edge // step for edge, step in zip(edges, stride, strict=True)]
        sizes = [size * step for size, step in zip(sizes, stride, strict=True)]
        strides.append((stride[0], stride[1], stride[2]))
        kernels.append(_kernel(sizes))
    if len(strides) < 2:
        raise ValueError(f"patch: {shown_size(patch)} voxels are too few to be halved; give a multiple of 8")
    features = [_FIRST_FEATURES << stage for stage in range(len(strides))]
    return UnetDesign.model_validate(
        {"architecture": architecture, "features": features, "strides": strides, "kernels": kernels}
    )


def _kernel(sizes: Sequence[float]) -> tuple[int, int, int]:
    z, y, x = (3 if size <= _ANISOTROPIC * min(sizes) else 1 for size in sizes)
    return z, y, x


class UnetMember(UnetDesign, MemberEntry):
    """``{kind: unet, features: [16, 32], strides: [[1, 1, 1], [1, 2, 2]], kernels: ..., weights: m.safetensors}``.

    A network that `chorus train --axes zyx` made; see `UnetDesign`. Weights of half precision are computed with in
    float32.
    """

    kind: Literal["unet"]

    def load(self, asked: LoadRequest, device: torch.device) -> Member:
        """Build the network and load its weights; raise RefusedError if they do not fit."""
        if len(asked.shape) != 3:
            raise RefusedError(f"{asked.url}: its network takes volumes; set `input.axes: zyx` in ensemble.yaml")
        if any(edge % step for edge, step in zip(asked.shape, self.stride, strict=True)):
            raise RefusedError(
                f"{asked.url}: takes tiles that are multiples of {shown_size(self.stride)}, not of "
                f"{shown_size(asked.shape)} voxels; correct `tile`"
            )
        outputs = asked.outputs.channels
        state = state_dict(asked.url, fetch_weights(asked.url, self.sha256, beside=asked.beside))
        module = self.build(asked.channels, outputs)
        fill(
            asked.url,
            module,
            under_all_names(module, state),
            f"{self.architecture} of this design",
            asked.channels,
            outputs,
        )
        return ModuleMember(module, device, self.activation)


def _describe(url: str, _: Network) -> tuple[ModelDescription, ...]:
    raise RefusedError(
        f"{url}: a state dict does not say which U-Net it is of; copy its member's entry from the ensemble.yaml that "
        "`chorus train` wrote"
    )


KIND = MemberKind(entry=UnetMember, describe=_describe, volumes=True)
