"""Steps of BioImage.IO's processing as functions of a pixel, once the statistics that they need are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.preprocessing.preparation import Measure, Statistics

Pixels: TypeAlias = NDArray[np.float64]
Per: TypeAlias = Literal["image", "dataset"]


@dataclass(frozen=True)
class Pooled:
    """Mean or std of some channels together, out of their own: they have equally many pixels.

    Attributes
    ----------
    channels : of the ensemble, several but not all
    """

    kind: Literal["mean", "std"]
    channels: tuple[int, ...]
    per: Per

    @property
    def measures(self) -> frozenset[Measure]:
        kinds: tuple[Literal["mean", "std"], ...] = ("mean", "std")
        return frozenset(Measure(kind, c, per=self.per) for c in self.channels for kind in kinds)

    def value(self, statistics: Statistics) -> float:
        means, stds = (
            np.array([statistics[Measure(kind, c, per=self.per)] for c in self.channels]) for kind in ("mean", "std")
        )
        if self.kind == "mean":
            return float(means.mean())
        return float(np.sqrt((stds**2).mean() + means.var()))


@dataclass(frozen=True)
class Measured:
    """A statistic that is measured as it is."""

    measure: Measure

    @property
    def measures(self) -> frozenset[Measure]:
        return frozenset({self.measure})

    def value(self, statistics: Statistics) -> float:
        return statistics[self.measure]


@dataclass(frozen=True)
class Given:
    """A number that the package gives."""

    number: float

    @property
    def measures(self) -> frozenset[Measure]:
        return frozenset()

    def value(self, statistics: Statistics) -> float:
        return self.number


Value: TypeAlias = Pooled | Measured | Given
Values: TypeAlias = tuple[Value, ...]
"""One per channel of the tensor."""


def column(values: Values, statistics: Statistics) -> Pixels:
    """The values as (channels, 1, 1)."""
    return np.array([value.value(statistics) for value in values])[:, None, None]


class Operation(Protocol):
    """One step on a tensor's pixels, (channels, y, x) float64, each by itself."""

    def values(self) -> Values:
        """What it needs to know."""
        ...

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels: ...


@dataclass(frozen=True)
class Cast:
    """`ensure_dtype`."""

    dtype: str

    def values(self) -> Values:
        return ()

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        return pixels.astype(self.dtype).astype(np.float64)


@dataclass(frozen=True)
class Linear:
    """`scale_linear`: pixels * gain + offset."""

    gain: Values
    offset: Values

    def values(self) -> Values:
        return self.gain + self.offset

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        return pixels * column(self.gain, statistics) + column(self.offset, statistics)


@dataclass(frozen=True)
class Standardised:
    """`zero_mean_unit_variance`, fixed or measured: (pixels - mean) / (std + eps)."""

    mean: Values
    std: Values
    eps: float

    def values(self) -> Values:
        return self.mean + self.std

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        return (pixels - column(self.mean, statistics)) / (column(self.std, statistics) + self.eps)


@dataclass(frozen=True)
class Ranged:
    """`scale_range`: (pixels - low) / (high - low + eps)."""

    low: Values
    high: Values
    eps: float

    def values(self) -> Values:
        return self.low + self.high

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        low = column(self.low, statistics)
        return (pixels - low) / (column(self.high, statistics) - low + self.eps)


@dataclass(frozen=True)
class Clipped:
    """`clip`, from below, from above or both."""

    low: Values
    high: Values

    def values(self) -> Values:
        return self.low + self.high

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        if self.low:
            pixels = np.maximum(pixels, column(self.low, statistics))
        return np.minimum(pixels, column(self.high, statistics)) if self.high else pixels


@dataclass(frozen=True)
class Binarised:
    """`binarize`: 1 above the threshold, else 0."""

    threshold: Values

    def values(self) -> Values:
        return self.threshold

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        return (pixels > column(self.threshold, statistics)).astype(np.float64)


@dataclass(frozen=True)
class Squashed:
    """`sigmoid`, or `softmax` over the channels."""

    softmax: bool

    def values(self) -> Values:
        return ()

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        from scipy.special import expit, softmax

        result: Pixels = softmax(pixels, axis=0) if self.softmax else expit(pixels)
        return result
