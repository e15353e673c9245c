"""Layers of Keras in torch, with their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.kinds.stardist.keras_weights import Arrays, KerasLayers
from chorus.pipeline.members.kinds.stardist.settings import Activation

_CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORMALISATIONS: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "swish": nn.SiLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "linear": nn.Identity,
}
_EPSILON = 1e-3  # of batch normalisation in Keras


class _SamePadding(nn.Module):
    """Pad with zeros as TensorFlow's ``same`` does, with the larger half at the end, then convolve with strides."""

    def __init__(self, convolution: nn.Module, kernel: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.convolution, self._kernel, self._strides = convolution, tuple(kernel), tuple(strides)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads: list[int] = []
        for size, length, stride in zip(x.shape[2:], self._kernel, self._strides, strict=True):
            total = max((-(-size // stride) - 1) * stride + length - size, 0)
            pads = [total // 2, total - total // 2, *pads]
        result: torch.Tensor = self.convolution(functional.pad(x, pads))
        return result


class Builder:
    """Makes layers with their weights, and refuses those that do not have the shape that config.json gives."""

    def __init__(self, layers: KerasLayers, axes: int) -> None:
        self.layers, self.axes = layers, axes

    def convolution(
        self, arrays: Arrays, channels: int, filters: int, kernel: Sequence[int], strides: Sequence[int] = ()
    ) -> nn.Module:
        """Return a convolution of the same size, or smaller by `strides`; raise RefusedError if it does not fit."""
        expected = (*kernel, channels, filters)
        weight, bias = arrays.get("kernel"), arrays.get("bias")
        if weight is None or weight.shape != expected or (bias is not None and bias.shape != (filters,)):
            shape = None if weight is None else tuple(weight.shape)
            raise RefusedError(
                f"{self.layers.url}: a convolution has weights of shape {shape}, config.json says {expected}; copy "
                "both files of one model"
            )
        options: dict[str, Any] = {"stride": tuple(strides)} if strides else {"padding": "same"}
        options["kernel_size"] = tuple(kernel)
        made = _CONVOLUTIONS[self.axes](channels, filters, **options, bias=bias is not None)
        state = {"weight": torch.from_numpy(weight).movedim((-1, -2), (0, 1)).contiguous()}
        made.load_state_dict(state if bias is None else {**state, "bias": torch.from_numpy(bias)})
        return _SamePadding(made, kernel, strides) if strides else made

    def normalisation(self, filters: int) -> nn.Module:
        """Return the next batch normalisation; raise RefusedError if there is none of this size."""
        arrays = self.layers.next("batch_normalization")
        keys = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        if any(name not in arrays or arrays[name].shape != (filters,) for name in keys.values()):
            raise RefusedError(f"{self.layers.url}: a batch normalisation is not of {filters} features; copy it anew")
        made = _NORMALISATIONS[self.axes](filters, eps=_EPSILON)
        made.load_state_dict({key: torch.from_numpy(arrays[name]) for key, name in keys.items()}, strict=False)
        return made

    def block(
        self,
        arrays: Arrays,
        channels: int,
        filters: int,
        kernel: Sequence[int],
        activation: Activation,
        *,
        normalised: bool = False,
        strides: Sequence[int] = (),
    ) -> nn.Sequential:
        """Return convolution, batch normalisation where there is one, and activation."""
        parts = [self.convolution(arrays, channels, filters, kernel, strides)]
        if normalised:
            parts.append(self.normalisation(filters))
        return nn.Sequential(*parts, ACTIVATIONS[activation]())
