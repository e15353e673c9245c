"""The backbones of StarDist: the U-Net and the residual network of CSBDeep.

References
----------
``stardist.models.StarDist2D._build`` and ``StarDist3D._build``, StarDist 0.9.2; ``csbdeep.internals.blocks``, CSBDeep
0.8.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import nn

from chorus.pipeline.members.kinds.stardist.layers import ACTIVATIONS, Builder
from chorus.pipeline.members.kinds.stardist.settings import Activation, ResnetDesign, UnetDesign

_POOLS: dict[int, type[nn.MaxPool2d] | type[nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class Unet(nn.Module):
    """CSBDeep's U-Net, after convolutions and pools that shrink the input to the grid.

    Attributes
    ----------
    channels : of its output
    """

    def __init__(self, build: Builder, design: UnetDesign) -> None:
        super().__init__()
        kernel, act, pool = design.unet_kernel_size, design.unet_activation, _POOLS[design.n_dim]
        channels, stem = design.n_channel_in, list[nn.Module]()
        for stage in design.stages:
            for _ in range(design.unet_n_conv_per_depth):
                base = design.unet_n_filter_base
                stem.append(build.block(build.layers.next("conv"), channels, base, kernel, act))
                channels = base
            stem.append(pool(stage))
        self.stem = nn.Sequential(*stem)

        def blocks(
            name: str, numbers: Sequence[int], channels: int, filters: Sequence[int], last: Activation
        ) -> nn.Module:
            made = []
            for number, out in zip(numbers, filters, strict=True):
                activation = last if number == numbers[-1] else act
                arrays = build.layers.take(f"{design.unet_prefix}{name}_{number}")
                norm = design.unet_batch_norm
                made.append(build.block(arrays, channels, out, kernel, activation, normalised=norm))
                channels = out
            return nn.Sequential(*made)

        depth, count = design.unet_n_depth, design.unet_n_conv_per_depth
        # The last of the middle and of each level upwards is numbered as if one more came before it.
        numbers = [*range(count - 1), count]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level in range(depth):
            same = design.filters(level)
            self.down.append(blocks(f"down_level_{level}_no", range(count), channels, [same] * count, act))
            channels = same
        wide, narrow = design.filters(depth), design.filters(depth - 1)
        self.middle = blocks("middle", numbers, channels, [wide] * (count - 1) + [narrow], act)
        channels = narrow
        for level in reversed(range(depth)):
            same, narrow = design.filters(level), design.filters(level - 1)
            last = act if level else design.unet_last_activation
            filters = [same] * (count - 1) + [narrow]
            self.up.append(blocks(f"up_level_{level}_no", numbers, channels + same, filters, last))
            channels = narrow
        self.channels = channels
        self.pool = pool(design.unet_pool)
        self.unpool = nn.Upsample(scale_factor=tuple(map(float, design.unet_pool)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features at the size of the grid.

        Parameters
        ----------
        x : (batch, channels, ...) at the size of the tiles

        Returns
        -------
        torch.Tensor
            (batch, `channels`, ...).
        """
        x, skipped = self.stem(x), []
        for block in self.down:
            x = block(x)
            skipped.append(x)
            x = self.pool(x)
        x = self.middle(x)
        for block in self.up:
            x = block(torch.cat([self.unpool(x), skipped.pop()], 1))
        return x


class _Residual(nn.Module):
    """A block of convolutions, the first with strides, that is added to its input."""

    def __init__(
        self, build: Builder, design: ResnetDesign, channels: int, filters: int, strides: Sequence[int]
    ) -> None:
        super().__init__()
        kernel, act, normalised = design.resnet_kernel_size, design.resnet_activation, design.resnet_batch_norm
        once, parts = (1,) * design.n_dim, list[nn.Module]()
        for index in range(design.resnet_n_conv_per_block):
            first, last = index == 0, index == design.resnet_n_conv_per_block - 1
            arrays = build.layers.next("conv")
            by = strides if first and prod(strides) > 1 else ()
            parts.append(
                build.block(
                    arrays,
                    channels if first else filters,
                    filters,
                    kernel,
                    "linear" if last else act,
                    normalised=normalised,
                    strides=by,
                )
            )
        self.path = nn.Sequential(*parts)
        self.shortcut: nn.Module = nn.Identity()
        if prod(strides) > 1 or filters != channels:
            self.shortcut = build.convolution(build.layers.next("conv"), channels, filters, once, strides)
        self.activation = ACTIVATIONS[act]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.activation(self.shortcut(x) + self.path(x))
        return result


def residual_network(build: Builder, design: ResnetDesign) -> tuple[nn.Module, int]:
    """Return the residual backbone and the channels of its output."""
    filters = design.resnet_n_filter_base
    parts = [
        build.convolution(build.layers.next("conv"), design.n_channel_in, filters, (7,) * design.n_dim),
        build.convolution(build.layers.next("conv"), filters, filters, (3,) * design.n_dim),
    ]
    once = (1,) * design.n_dim
    stages = [*design.stages, *[once] * design.resnet_n_blocks][: design.resnet_n_blocks]
    for stage in stages:
        more = filters * (2 if prod(stage) > 1 else 1)
        parts.append(_Residual(build, design, filters, more, stage))
        filters = more
    return nn.Sequential(*parts), filters
