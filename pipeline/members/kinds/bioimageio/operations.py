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
    """Mean or standard deviation of some channels together, pooled from their own: all have equally many pixels.

    Attributes
    ----------
    channels : of the ensemble, several but not all
    """

    kind: Literal["mean", "std"]
    channels: tuple[int, ...]
    per: Per

    @property
    def measures(self) -> frozenset[Measure]:
        """Mean and standard deviation of each channel."""
        kinds: tuple[Literal["mean", "std"], ...] = ("mean", "std")
        return frozenset(Measure(kind, c, per=self.per) for c in self.channels for kind in kinds)

    def value(self, statistics: Statistics) -> float:
        """Pool the channels' mean or standard deviation, weighting channels equally."""
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
        """The one measure."""
        return frozenset({self.measure})

    def value(self, statistics: Statistics) -> float:
        """Look the measure up."""
        return statistics[self.measure]


@dataclass(frozen=True)
class Given:
    """A number that the package gives."""

    number: float

    @property
    def measures(self) -> frozenset[Measure]:
        """None: the number is given by the package."""
        return frozenset()

    def value(self, statistics: Statistics) -> float:
        """Return the number."""
        return self.number


Value: TypeAlias = Pooled | Measured | Given
Values: TypeAlias = tuple[Value, ...]
"""One per channel of the tensor."""


def column(values: Values, statistics: Statistics) -> Pixels:
    """Evaluate the values, one per channel, for broadcasting over pixels.

    Parameters
    ----------
    values : one per channel
    statistics : all measures that the values need

    Returns
    -------
    Pixels
        (channels, 1, 1) float64.
    """
    return np.array([value.value(statistics) for value in values])[:, None, None]


class Operation(Protocol):
    """One step on a tensor's pixels, (channels, y, x) float64, each by itself."""

    def values(self) -> Values:
        """Return the values that the operation needs."""
        ...

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        """Apply the operation to each pixel by itself.

        Parameters
        ----------
        pixels : (channels, y, x) float64
        statistics : all measures that `values` need

        Returns
        -------
        Pixels
            (channels, y, x) float64.
        """
        ...


@dataclass(frozen=True)
class Cast:
    """`ensure_dtype`."""

    dtype: str

    def values(self) -> Values:
        """Return no values."""
        return ()

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        """Round trip through the dtype; see `Operation`."""
        return pixels.astype(self.dtype).astype(np.float64)


@dataclass(frozen=True)
class Linear:
    """`scale_linear`: pixels * gain + offset."""

    gain: Values
    offset: Values

    def values(self) -> Values:
        """Return gains, then offsets."""
        return self.gain + self.offset

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        """Multiply by the gain and add the offset; see `Operation`."""
        return pixels * column(self.gain, statistics) + column(self.offset, statistics)


@dataclass(frozen=True)
class Standardised:
    """`zero_mean_unit_variance`, fixed or measured: (pixels - mean) / (std + eps)."""

    mean: Values
    std: Values
    eps: float

    def values(self) -> Values:
        """Return means, then standard deviations."""
        return self.mean + self.std

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        """Subtract the mean and divide by the standard deviation plus `eps`; see `Operation`."""
        return (pixels - column(self.mean, statistics)) / (column(self.std, statistics) + self.eps)


@dataclass(frozen=True)
class Ranged:
    """`scale_range`: (pixels - low) / (high - low + eps)."""

    low: Values
    high: Values
    eps: float

    def values(self) -> Values:
        """Return lower ends, then upper ends."""
        return self.low + self.high

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        """Map the range between the ends to 0 to 1, without clipping; see `Operation`."""
        low = column(self.low, statistics)
        return (pixels - low) / (column(self.high, statistics) - low + self.eps)


@dataclass(frozen=True)
class Clipped:
    """`clip`, from below, from above or both."""

    low: Values
    high: Values

    def values(self) -> Values:
        """Return lower bounds, then upper bounds; either may be missing."""
        return self.low + self.high

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        """Clip to the bounds that there are; see `Operation`."""
        if self.low:
            pixels = np.maximum(pixels, column(self.low, statistics))
        return np.minimum(pixels, column(self.high, statistics)) if self.high else pixels


@dataclass(frozen=True)
class Binarised:
    """`binarize`: 1 above the threshold, else 0."""

    threshold: Values

    def values(self) -> Values:
        """Return the thresholds."""
        return self.threshold

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        """Return 1 above the threshold and 0 elsewhere; see `Operation`."""
        return (pixels > column(self.threshold, statistics)).astype(np.float64)


@dataclass(frozen=True)
class Squashed:
    """`sigmoid`, or `softmax` over the channels."""

    softmax: bool

    def values(self) -> Values:
        """Return no values."""
        return ()

    def __call__(self, pixels: Pixels, statistics: Statistics) -> Pixels:
        """Apply softmax over the channels, or the logistic function; see `Operation`."""
        from scipy.special import expit, softmax

        result: Pixels = softmax(pixels, axis=0) if self.softmax else expit(pixels)
        return result
