"""How pixels become what a network was trained on: the settings, and the scaling that they give.

Fixed settings give it at once; those that need an image's own statistics take them before inference, from the whole
image, with the sketches of `pipeline.sketches`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import RefusedError
from pipeline.sketches import ChannelScaling, Moments, RadixSearch, Sketch

_Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
_Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Percent: TypeAlias = Annotated[float, Field(ge=0, le=100)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MeanStd(_Settings):
    """(x - mean) / std with one value per channel, given (`per: dataset`) or measured (`per: image`)."""

    kind: Literal["mean_std"] = "mean_std"
    per: Literal["dataset", "image"] = "dataset"
    mean: tuple[_Finite, ...] | None = None
    std: tuple[_Positive, ...] | None = None

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        if self.per == "image":
            if self.mean is not None or self.std is not None:
                raise ValueError("mean and std are measured with `per: image`; remove them or `per`")
        elif not self.mean or not self.std or len(self.mean) != len(self.std):
            raise ValueError("give mean and std with one value per channel each, or `per: image`")
        return self


class Percentile(_Settings):
    """(x - low) / (high - low) with the image's own percentiles of each channel, not clipped."""

    kind: Literal["percentile"] = "percentile"
    per: Literal["image"] = "image"
    low: _Percent
    high: _Percent

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be less than high ({self.high:g})")
        return self


class Unchanged(_Settings):
    """Pixels as they are: `none`, or `member` where the members normalise by themselves."""

    kind: Literal["none", "member"] = "none"


Normalisation: TypeAlias = Annotated[MeanStd | Percentile | Unchanged, Field(discriminator="kind")]


def needs_statistics(normalisation: Normalisation) -> bool:
    """Whether the whole image must be read before its first pixel can be normalised."""
    return not isinstance(normalisation, Unchanged) and normalisation.per == "image"


def dtype_divisor(dtype: DTypeLike) -> float:
    """What `scale: dtype` divides by: the maximum of an integer type, 1 for others."""
    dtype = np.dtype(dtype)
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0


def fixed_scaling(normalisation: Normalisation, channels: int, divisor: float = 1.0) -> ChannelScaling:
    """The scaling of a normalisation that needs no statistics, on pixels divided by `divisor` first.

    Raises
    ------
    RefusedError
        If the settings hold another number of values than there are channels.
    """
    if isinstance(normalisation, Unchanged):
        return ChannelScaling((0.0,) * channels, (1 / divisor,) * channels)
    if isinstance(normalisation, Percentile) or normalisation.mean is None or normalisation.std is None:
        raise ValueError(f"{normalisation!r} needs the statistics of an image")
    if len(normalisation.mean) != channels:
        raise RefusedError(
            f"normalisation: mean and std have {len(normalisation.mean)} values for {channels} channels; "
            "give one per channel"
        )
    return ChannelScaling.of((m * divisor for m in normalisation.mean), (s * divisor for s in normalisation.std))


def first_sketch(normalisation: Normalisation, channels: int, dtype: DTypeLike) -> Sketch:
    """The empty sketch for the first pass over pixels of `dtype`."""
    if isinstance(normalisation, Percentile):
        return RadixSearch.begin((normalisation.low, normalisation.high), channels, np.dtype(dtype))
    if not needs_statistics(normalisation):
        raise ValueError(f"{normalisation!r} needs no statistics")
    return Moments.begin(channels)


def image_statistics(
    read_blocks: Callable[[], Iterable[NDArray[Any]]], normalisation: Normalisation, channels: int
) -> ChannelScaling:
    """Scaling of an image by its own statistics. A divisor of its pixels cancels out, so there is none here.

    Parameters
    ----------
    read_blocks : gives the image's blocks, (channels, y, x) of one dtype, every pixel once, in any cut and order;
        called once per pass: twice for percentiles of floats and of integers over 16 bits, else once
    normalisation : one that `needs_statistics`
    channels : number of channels

    Raises
    ------
    ImageError
        If a pixel is NaN or infinite.
    """
    blocks = iter(read_blocks())
    first = next(blocks)
    found = _one_pass(first_sketch(normalisation, channels, first.dtype), chain([first], blocks))
    while not isinstance(found, ChannelScaling):
        found = _one_pass(found, read_blocks())
    return found


def _one_pass(sketch: Sketch, blocks: Iterable[NDArray[Any]]) -> Sketch | ChannelScaling:
    for block in blocks:
        sketch.update(block)
    return sketch.conclude()


def apply(pixels: NDArray[Any], scaling: ChannelScaling) -> NDArray[np.float32]:
    """Normalised (channels, y, x) float32 of `pixels` of any real dtype; each depends on its own value alone."""
    offset = np.asarray(scaling.offset, np.float32)[:, None, None]
    scale = np.asarray(scaling.scale, np.float32)[:, None, None]
    result = pixels.astype(np.float32)
    result -= offset
    result *= scale
    return result
