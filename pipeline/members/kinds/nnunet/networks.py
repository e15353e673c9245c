"""nnU-Net's networks, built by dynamic_network_architectures from what the plans say; no other class is resolved.

References
----------
nnunetv2 2.8.1: ``utilities/get_network_from_plans.py``, and ``ConfigurationManager`` for plans before 2.3.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chorus.pipeline.core.devices import fp32_policy_kept
from chorus.pipeline.errors import RefusedError, first_line

_Count: TypeAlias = Annotated[int, Field(ge=1, le=64)]
_Width: TypeAlias = Annotated[int, Field(ge=1, le=8192)]
_Counts: TypeAlias = _Count | Annotated[list[_Count], Field(max_length=16)]
_Widths: TypeAlias = _Width | Annotated[list[_Width], Field(max_length=16)]
_PerAxis: TypeAlias = _Count | Annotated[list[_Count], Field(max_length=3)]
_Kernels: TypeAlias = _Count | Annotated[list[_PerAxis], Field(max_length=16)]
_Plain: TypeAlias = bool | int | float | str | None

_LIBRARY = "dynamic_network_architectures"
_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
_BLOCKS = ("BasicBlockD", "BottleneckD")
_LAYERS: Mapping[str, type[torch.nn.Module]] = {
    kind.__name__: kind
    for kind in (
        torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.InstanceNorm2d, torch.nn.InstanceNorm3d, torch.nn.BatchNorm2d,
        torch.nn.BatchNorm3d, torch.nn.GroupNorm, torch.nn.Dropout, torch.nn.Dropout2d, torch.nn.Dropout3d,
        torch.nn.LeakyReLU, torch.nn.ReLU, torch.nn.ELU, torch.nn.GELU, torch.nn.SiLU, torch.nn.Mish, torch.nn.PReLU,
    )
}  # fmt: skip
"""Layers that a plan may name, by the last part of their name."""


class Architecture(BaseModel):
    """The name of a network's class and its arguments, as plans have them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    network_class_name: str
    arch_kwargs: dict[str, Any]


class OldArchitecture(BaseModel):
    """The same in plans of nnunetv2 before 2.3."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    UNet_class_name: str
    UNet_base_num_features: _Width
    unet_max_num_features: _Width
    n_conv_per_stage_encoder: list[_Count] = Field(max_length=16)
    n_conv_per_stage_decoder: list[_Count] = Field(max_length=16)
    conv_kernel_sizes: list[_PerAxis] = Field(max_length=16)
    pool_op_kernel_sizes: list[_PerAxis] = Field(max_length=16)

    def renewed(self, axes: int) -> Architecture:
        """Return it as present plans have it, for 2 or 3 axes."""
        stages = len(self.n_conv_per_stage_encoder)
        blocks = "n_conv_per_stage" if self.UNet_class_name == "PlainConvUNet" else "n_blocks_per_stage"
        arguments = {
            "n_stages": stages,
            "features_per_stage": [
                min(self.UNet_base_num_features * 2**stage, self.unet_max_num_features) for stage in range(stages)
            ],
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": self.conv_kernel_sizes,
            "strides": self.pool_op_kernel_sizes,
            blocks: self.n_conv_per_stage_encoder,
            "n_conv_per_stage_decoder": self.n_conv_per_stage_decoder,
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
        name = f"{_LIBRARY}.architectures.unet.{self.UNet_class_name}"
        return Architecture(network_class_name=name, arch_kwargs=arguments)


class NetworkSettings(BaseModel):
    """Arguments of a network; names of classes are not resolved yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_stages: _Count
    features_per_stage: _Widths
    conv_op: str
    kernel_sizes: _Kernels
    strides: _Kernels
    n_conv_per_stage: _Counts | None = None
    n_blocks_per_stage: _Counts | None = None
    n_conv_per_stage_decoder: _Counts
    conv_bias: bool = False
    norm_op: str | None = None
    norm_op_kwargs: dict[str, _Plain] | None = None
    dropout_op: str | None = None
    dropout_op_kwargs: dict[str, _Plain] | None = None
    nonlin: str | None = None
    nonlin_kwargs: dict[str, _Plain] | None = None
    nonlin_first: bool | None = None
    block: str | None = None
    bottleneck_channels: _Widths | None = None
    stem_channels: _Width | None = None

    def total_strides(self, axes: int) -> tuple[int, ...]:
        """Return by how much the coarsest stage is smaller than the input, per axis of the network."""
        stages = self.strides if isinstance(self.strides, list) else [self.strides] * self.n_stages
        total = [1] * axes
        for stage in stages:
            own = stage if isinstance(stage, list) else [stage] * axes
            total = [a * b for a, b in zip(total, own, strict=True)]
        return tuple(total)


class NnunetNetwork(torch.nn.Module):
    """A network of nnU-Net whose axes are those of the image, in the order in which the image has them.

    Attributes
    ----------
    network : with its axes in nnU-Net's order
    encoder : its encoder, for features; `out_channels` are those of its stages
    """

    def __init__(self, network: torch.nn.Module, axes: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self._there = (0, 1, *(2 + axis for axis in axes))
        self._back = tuple(self._there.index(axis) for axis in range(len(self._there)))

    @property
    def encoder(self) -> torch.nn.Module:
        """The encoder of `network`."""
        encoder: torch.nn.Module = self.network.get_submodule("encoder")
        return encoder

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return the logits.

        Parameters
        ----------
        tiles : (batch, channels, y, x) or (batch, channels, z, y, x) float32

        Returns
        -------
        torch.Tensor
            (batch, outputs, y, x) or (batch, outputs, z, y, x).
        """
        logits: torch.Tensor = self.network(tiles.permute(self._there)).permute(self._back)
        return logits


def settings_of(url: str, architecture: Architecture) -> NetworkSettings:
    """Check a network's class and arguments; raise RefusedError if they are not those of nnU-Net's U-Nets."""
    package, _, name = architecture.network_class_name.rpartition(".")
    if package.split(".")[:2] != [_LIBRARY, "architectures"] or name not in _NETWORKS:
        raise RefusedError(
            f"{url}: its network is {architecture.network_class_name[:200]}, and Chorus builds {', '.join(_NETWORKS)} "
            f"of {_LIBRARY}; export it to ONNX and add the file"
        )
    try:
        return NetworkSettings.model_validate(architecture.arch_kwargs)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RefusedError(
            f"{url}: arch_kwargs.{where}: {first['msg']}; Chorus builds networks as nnU-Net plans them, export this "
            "one to ONNX and add the file"
        ) from error


def build_network(
    url: str,
    architecture: Architecture,
    channels: int,
    outputs: int,
    state: Mapping[str, torch.Tensor],
    axes: Sequence[int],
) -> NnunetNetwork:
    """Build a network with its weights, without deep supervision.

    Parameters
    ----------
    url : of the plans, for messages
    channels, outputs : of the first and the last layer
    state : its weights, which the network holds from then on
    axes : position among the image's spatial axes of each axis of the network

    Raises
    ------
    RefusedError
        If the library is not installed, the architecture is no U-Net of nnU-Net, or the weights do not fit.
    """
    settings = settings_of(url, architecture)
    name = architecture.network_class_name.rpartition(".")[2]
    arguments = settings.model_dump(exclude_unset=True)
    arguments |= {key: _layer(url, arguments[key]) for key in _NAMED if arguments.get(key) is not None}
    unets = library("architectures.unet")
    if "block" in arguments:
        arguments["block"] = getattr(library("building_blocks.residual"), _known(url, settings.block, _BLOCKS))
    try:
        with torch.device("meta"):  # no random numbers that the weights then replace, and no memory
            network: torch.nn.Module = getattr(unets, name)(
                input_channels=channels, num_classes=outputs, deep_supervision=False, **arguments
            )
        network.load_state_dict(dict(state), strict=True, assign=True)
        # Where `ModuleMember` looks for the width of an encoder's stages.
        network.get_submodule("encoder").out_channels = list(network.encoder.output_channels)  # type: ignore[union-attr, arg-type, assignment]
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [first_line(error)]
        raise RefusedError(
            f"{url}: the weights do not fit the network of the plans ({lines[min(1, len(lines) - 1)][:200]}); take the "
            "folder as nnU-Net's training left it, or export a network of your own trainer to ONNX"
        ) from error
    return NnunetNetwork(network.to(torch.float32), axes)


_NAMED: tuple[Literal["conv_op", "norm_op", "dropout_op", "nonlin"], ...] = (
    "conv_op",
    "norm_op",
    "dropout_op",
    "nonlin",
)


def _layer(url: str, name: str) -> type[torch.nn.Module]:
    if not name.startswith("torch.nn."):
        name = f"{name[:200]} is no torch.nn"
    return _LAYERS[_known(url, name, tuple(_LAYERS))]


def _known(url: str, name: str | None, known: Sequence[str]) -> str:
    """Return the last part of the name of a class; raise RefusedError if it is none of `known`."""
    last = (name or "").rpartition(".")[2]
    if last not in known:
        raise RefusedError(
            f"{url}: names the layer {(name or '')[:200]}, and Chorus builds with {', '.join(known)}; export the "
            "network to ONNX and add the file"
        )
    return last


def library(part: str) -> Any:
    """Import a module of the optional library; raise RefusedError if it is not installed."""
    try:
        with fp32_policy_kept():
            return importlib.import_module(f"{_LIBRARY}.{part}")
    except ImportError as error:
        raise RefusedError(
            f"{_LIBRARY} is not installed ({error}); install it with `pip install 'chorus-bioimage[nnunet]'`"
        ) from error
