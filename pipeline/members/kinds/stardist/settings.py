"""The settings of a StarDist model, as its ``config.json`` and ``thresholds.json`` have them."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

_Count: TypeAlias = Annotated[int, Field(ge=1)]
_Size: TypeAlias = tuple[_Count, ...]
_Share: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Activation = Literal["relu", "elu", "selu", "tanh", "sigmoid", "softplus", "swish", "silu", "gelu", "linear"]
"""Names of Keras that are the same functions in torch."""


class Thresholds(BaseModel):
    """What makes objects: the least probability of a candidate, and the overlap from which the better suppresses."""

    model_config = ConfigDict(frozen=True)

    prob: _Share = 0.5
    nms: _Share = 0.4


class _Design(BaseModel):
    """What both backbones have.

    Attributes
    ----------
    grid : pixels per output, per axis
    n_classes : of objects; None where objects have no class
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    n_dim: Literal[2, 3]
    axes: str
    n_channel_in: _Count
    n_rays: Annotated[int, Field(ge=3)]
    grid: _Size
    n_classes: _Count | None = None

    @model_validator(mode="after")
    def _axes_fit(self) -> Self:
        """Check that there is one value per axis, and that channels come last."""
        if self.axes != {2: "YXC", 3: "ZYXC"}[self.n_dim]:
            raise ValueError(f"axes are {self.axes}, not YXC or ZYXC")
        per_axis = ("grid", "unet_pool", "unet_kernel_size", "resnet_kernel_size")
        wrong = [name for name in per_axis if len(getattr(self, name, self.grid)) != self.n_dim]
        if wrong:
            raise ValueError(f"{wrong[0]} does not have {self.n_dim} values")
        if any(step & (step - 1) for step in self.grid):
            raise ValueError(f"grid {list(self.grid)} is no power of 2 on each axis")
        return self

    @property
    def divisor(self) -> tuple[int, ...]:
        """What the size of an input must be a multiple of, per axis."""
        return self.grid

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """The pools by which the input shrinks to the grid: 1 or 2 per axis, one after the other."""
        pooled, pools = (1,) * self.n_dim, []
        while pooled != self.grid:
            pool = tuple(2 if step > done else 1 for step, done in zip(self.grid, pooled, strict=True))
            pooled = tuple(done * by for done, by in zip(pooled, pool, strict=True))
            pools.append(pool)
        return tuple(pools)


class UnetDesign(_Design):
    """A model whose backbone is the U-Net of CSBDeep."""

    backbone: Literal["unet"] = "unet"
    unet_n_depth: _Count
    unet_kernel_size: _Size
    unet_n_filter_base: _Count
    unet_n_conv_per_depth: _Count
    unet_pool: _Size
    unet_activation: Activation
    unet_last_activation: Activation
    unet_batch_norm: bool
    unet_expansion: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2
    unet_prefix: str = ""
    net_conv_after_unet: Annotated[int, Field(ge=0)]

    @property
    def divisor(self) -> tuple[int, ...]:
        """See `_Design.divisor`."""
        return tuple(pool**self.unet_n_depth * step for pool, step in zip(self.unet_pool, self.grid, strict=True))

    def filters(self, level: int) -> int:
        """Return the number of features at a level of the U-Net, 0 for the finest."""
        return int(self.unet_n_filter_base * self.unet_expansion ** max(0, level))


class ResnetDesign(_Design):
    """A model whose backbone is a residual network, as 3D models may have."""

    backbone: Literal["resnet"]
    resnet_n_blocks: _Count
    resnet_kernel_size: _Size
    resnet_n_filter_base: _Count
    resnet_n_conv_per_block: Annotated[int, Field(ge=2)]
    resnet_activation: Activation
    resnet_batch_norm: bool
    net_conv_after_resnet: Annotated[int, Field(ge=0)]


Design: TypeAlias = UnetDesign | ResnetDesign
DESIGN: TypeAdapter[Design] = TypeAdapter(Annotated[Design, Field(discriminator="backbone")])
