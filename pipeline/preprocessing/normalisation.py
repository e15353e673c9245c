"""Normalisation as an ensemble declares it: the settings, and the scaling that follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.preprocessing.preparation import (
    SMALLEST_SPREAD,
    Measure,
    Statistics,
    percentile_ends,
    percentile_measures,
    surveyed,
)

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
        """Check that there is one mean and one std per channel, or neither if they are measured."""
        if self.per == "image":
            if self.mean is not None or self.std is not None:
                raise ValueError("mean and std are measured with `per: image`; remove them or `per`")
        elif not self.mean or not self.std or len(self.mean) != len(self.std):
            raise ValueError("give mean and std with one value per channel each, or `per: image`")
        return self


class Percentile(_Settings):
    """(x - low) / (high - low) with the image's own percentiles of each channel, not clipped.

    Where both percentiles of a channel are the same value, its least and its greatest value take their place.
    """

    kind: Literal["percentile"] = "percentile"
    per: Literal["image"] = "image"
    low: _Percent
    high: _Percent

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        """Check that low is less than high."""
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be less than high ({self.high:g})")
        return self


class Unchanged(_Settings):
    """Pixels without normalisation: `none`, or `member` if the members normalise by themselves."""

    kind: Literal["none", "member"] = "none"


Normalisation: TypeAlias = Annotated[MeanStd | Percentile | Unchanged, Field(discriminator="kind")]


@dataclass(frozen=True)
class ChannelScaling:
    """Scaling of each channel: ``(x - offset) * scale`` in float32.

    Attributes
    ----------
    offset, scale : one value per channel; a constant channel has scale 0, so that it becomes all zeros
    """

    offset: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def of(cls, offset: Iterable[float], spread: Iterable[float]) -> ChannelScaling:
        """Return the scaling from offset and spread (std, or high - low) of each channel."""
        scale = (1 / value if value >= SMALLEST_SPREAD else 0.0 for value in spread)
        return cls(tuple(offset), tuple(scale))


@dataclass(frozen=True)
class NormalisedInput:
    """The ensemble's normalisation as a `chorus.pipeline.preprocessing.preparation.Preparation`.

    Attributes
    ----------
    normalisation : the settings
    channels : number of channels of both input and output
    by_dtype : whether integers are divided by the maximum of their dtype first
    """

    normalisation: Normalisation
    channels: int
    by_dtype: bool = False

    @property
    def measures(self) -> frozenset[Measure]:
        """Statistics that the normalisation needs."""
        normalisation = self.normalisation
        if isinstance(normalisation, Percentile):
            return percentile_measures(self.channels, normalisation.low, normalisation.high)
        if isinstance(normalisation, MeanStd) and normalisation.per == "image":
            kinds: tuple[Literal["mean", "std"], ...] = ("mean", "std")
            return frozenset(Measure(kind, c) for c in range(self.channels) for kind in kinds)
        return frozenset()

    def apply(self, raw: NDArray[Any], statistics: Statistics) -> NDArray[np.float32]:
        """Normalise pixels.

        Parameters
        ----------
        raw : (channels, y, x) of any real dtype
        statistics : all of `measures`

        Returns
        -------
        NDArray[np.float32]
            (channels, y, x).

        Raises
        ------
        RefusedError
            If the settings have another number of values than there are channels.
        """
        return apply(raw, self.scaling(raw.dtype, statistics))

    def scaling(self, dtype: DTypeLike, statistics: Statistics) -> ChannelScaling:
        """Return the scaling for pixels of a dtype.

        Raises
        ------
        RefusedError
            If the settings have another number of values than there are channels.
        """
        normalisation, channels = self.normalisation, range(self.channels)
        if isinstance(normalisation, Percentile):
            ends = [percentile_ends(statistics, c, normalisation.low, normalisation.high) for c in channels]
            return ChannelScaling.of((low for low, _ in ends), (high - low for low, high in ends))
        divisor = dtype_divisor(dtype) if self.by_dtype else 1.0
        if isinstance(normalisation, Unchanged):
            return ChannelScaling((0.0,) * self.channels, (1 / divisor,) * self.channels)
        if normalisation.mean is None or normalisation.std is None:  # a divisor cancels out
            return ChannelScaling.of(
                [statistics[Measure("mean", c)] for c in channels], [statistics[Measure("std", c)] for c in channels]
            )
        if len(normalisation.mean) != self.channels:
            raise RefusedError(
                f"normalisation: mean and std have {len(normalisation.mean)} values for {self.channels} channels; "
                "give one per channel"
            )
        return ChannelScaling.of((m * divisor for m in normalisation.mean), (s * divisor for s in normalisation.std))


def dtype_divisor(dtype: DTypeLike) -> float:
    """Return the divisor of `scale: dtype`: the maximum of an integer dtype, 1 for others."""
    dtype = np.dtype(dtype)
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0


def normalised(image: NDArray[Any], normalisation: Normalisation) -> NDArray[np.float32]:
    """Normalise a whole image in memory, by its own statistics if the settings require them.

    Parameters
    ----------
    image : (channels, y, x) of any real dtype
    normalisation : the settings

    Returns
    -------
    NDArray[np.float32]
        (channels, y, x).

    Raises
    ------
    ImageError
        If a pixel is NaN or infinite and statistics are needed.
    """
    prepared = NormalisedInput(normalisation, image.shape[0])
    return prepared.apply(image, surveyed(prepared.measures, [image]))


def apply(pixels: NDArray[Any], scaling: ChannelScaling) -> NDArray[np.float32]:
    """Scale pixels; each result depends on the value of its pixel alone.

    Parameters
    ----------
    pixels : (channels, y, x) of any real dtype
    scaling : of each channel

    Returns
    -------
    NDArray[np.float32]
        (channels, y, x).
    """
    offset = np.asarray(scaling.offset, np.float32)[:, None, None]
    scale = np.asarray(scaling.scale, np.float32)[:, None, None]
    result = pixels.astype(np.float32)
    result -= offset
    result *= scale
    return result
