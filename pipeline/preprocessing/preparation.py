"""Preparation of raw pixels for a member, and the statistics of pixels that it needs.

Once its statistics are known, a preparation acts on each pixel alone, so that the partition of an image does not
matter; statistics are taken over the whole image, or over all images of a run, before the first tile.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from chorus.pipeline.preprocessing.nonzero import NonzeroMoments, Within
from chorus.pipeline.preprocessing.sketches import ORIGIN, Corner, Moments, RadixSearch, Sketch

# The smallest spread whose reciprocal is finite in float32.
SMALLEST_SPREAD = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, order=True, slots=True)
class Measure:
    """A statistic of raw pixels.

    Attributes
    ----------
    kind : ``std`` is that of the population; ``percentile`` is linear between neighbours, as NumPy's default
    channel : index among the channels passed to the members; -1 for all of them together
    percent : of a percentile, 0 to 100
    per : over one image, or over all images of a run
    within : over all its pixels, or over those that are not 0 in every channel (``nonzero``) or their bounding box
        (``crop``); these have mean and std of a channel, and in a crop percentiles 0 and 100
    """

    kind: Literal["mean", "std", "percentile"]
    channel: int
    percent: float = 0.0
    per: Literal["image", "dataset"] = "image"
    within: Within = "image"


Statistics = Mapping[Measure, float]
ALL_CHANNELS = -1
_Pass: TypeAlias = tuple[Literal["moments", "percentiles", "nonzero"], bool]
_CONSTANT = "a channel has the same value in every pixel; it was taken as zero"


class Preparation(Protocol):
    """Preparation of raw pixels for a member. Equal preparations are computed once, so it has `==` and a hash."""

    @property
    def channels(self) -> int:
        """Number of channels of the output."""
        ...

    @property
    def measures(self) -> frozenset[Measure]:
        """Statistics of the image or the data set that it needs."""
        ...

    def apply(self, raw: NDArray[Any], statistics: Statistics) -> NDArray[np.float32]:
        """Prepare pixels, each pixel by itself.

        Parameters
        ----------
        raw : (channels, y, x) of any real dtype
        statistics : all of `measures`

        Returns
        -------
        NDArray[np.float32]
            (channels, y, x).
        """
        ...


@dataclass
class Survey:
    """Passes over pixels that compute a set of measures: update block by block, merge, conclude, until complete."""

    measures: tuple[Measure, ...]
    channels: int
    sketches: dict[_Pass, Sketch]
    values: dict[Measure, float] = field(default_factory=dict)

    @classmethod
    def begin(cls, measures: Collection[Measure], channels: int, dtype: DTypeLike) -> Survey:
        """Return the survey of the first pass over pixels of `dtype`.

        Its sketches are keyed by (what they are of, whether of all channels together).
        """
        sketches: dict[_Pass, Sketch] = {}
        for key in sorted({cls._key(measure) for measure in measures}):
            kind, together = key
            count = 1 if together else channels
            if kind == "percentiles":
                percents = tuple(sorted({m.percent for m in measures if cls._key(m) == key}))
                sketches[key] = RadixSearch.begin(percents, count, np.dtype(dtype))
            else:
                sketches[key] = Moments.begin(count) if kind == "moments" else NonzeroMoments.begin(count)
        return cls(tuple(sorted(measures)), channels, sketches)

    @property
    def complete(self) -> bool:
        """Whether all measures are found."""
        return not self.sketches

    def update(self, block: NDArray[Any], corner: Corner = ORIGIN) -> None:
        """Add the pixels of a block.

        Parameters
        ----------
        block : (channels, y, x) of the survey's dtype
        corner : (t, z, y, x) of its first pixel in the image

        Raises
        ------
        ImageError
            If a value is NaN, infinite or too large for float32.
        """
        for (_, together), sketch in self.sketches.items():
            sketch.update(block.reshape(1, -1, 1) if together else block, corner)

    def merge(self, other: Survey) -> Survey:
        """Return the survey of both surveys' pixels in the same pass."""
        merged = {key: sketch.merge(other.sketches[key]) for key, sketch in self.sketches.items()}
        return replace(self, sketches=merged)

    def conclude(self) -> Survey:
        """Return the results of this pass, with the sketches for the next one if one is needed."""
        values, pending = dict(self.values), {}
        for key, sketch in self.sketches.items():
            result = sketch.conclude()
            if not isinstance(result, tuple):
                pending[key] = result
                continue
            percents = sketch.percents if isinstance(sketch, RadixSearch) else ()
            values |= {m: self._value(m, result, percents) for m in self.measures if self._key(m) == key}
        return Survey(self.measures, self.channels, pending, values)

    @staticmethod
    def _key(measure: Measure) -> _Pass:
        if measure.within != "image":
            return "nonzero", False
        return "percentiles" if measure.kind == "percentile" else "moments", measure.channel == ALL_CHANNELS

    @staticmethod
    def _value(measure: Measure, result: tuple[tuple[float, ...], ...], percents: tuple[float, ...]) -> float:
        values = result[0 if measure.channel == ALL_CHANNELS else measure.channel]
        if measure.within != "image":
            return values[NonzeroMoments.found.index((measure.kind, measure.percent, measure.within))]
        if measure.kind == "percentile":
            return values[percents.index(measure.percent)]
        return values[0 if measure.kind == "mean" else 1]


def surveyed(
    measures: Collection[Measure], blocks: Sequence[NDArray[Any]], corners: Sequence[Corner] | None = None
) -> Statistics:
    """Compute statistics over blocks in memory.

    Parameters
    ----------
    measures : what to compute
    blocks : (channels, y, x) each, all of one real dtype
    corners : (t, z, y, x) of each block's first pixel in the image; they are successive planes where it is not given

    Returns
    -------
    Statistics
        The value of each measure.

    Raises
    ------
    ImageError
        If a pixel is NaN or infinite.
    """
    survey = Survey.begin(measures, blocks[0].shape[0], blocks[0].dtype)
    while not survey.complete:
        for index, block in enumerate(blocks):
            survey.update(block, corners[index] if corners else (0, index, 0, 0))
        survey = survey.conclude()
    return survey.values


def percentile_measures(channels: int, low: float, high: float) -> frozenset[Measure]:
    """Return what `percentile_ends` needs of each channel."""
    return frozenset(Measure("percentile", c, end) for c in range(channels) for end in (0.0, low, high, 100.0))


def percentile_ends(statistics: Statistics, channel: int, low: float, high: float) -> tuple[float, float]:
    """Return what becomes 0 and 1 of a channel that is scaled by percentiles: these, or where they are equal its range.

    Objects on a black background may be less than 0.2 % of an image, so that both percentiles are black.
    """
    percentiles, extremes = (
        (statistics[Measure("percentile", channel, a)], statistics[Measure("percentile", channel, b)])
        for a, b in ((low, high), (0.0, 100.0))
    )
    return percentiles if percentiles[1] - percentiles[0] >= SMALLEST_SPREAD else extremes


def spread_message(statistics: Statistics) -> str:
    """Return a sentence where some channel has no spread, or none between its percentiles; empty where all have."""
    ends: dict[tuple[int, str, str], dict[float, float]] = {}
    for measure, value in statistics.items():
        if measure.kind == "std" and value < SMALLEST_SPREAD:
            return _CONSTANT
        if measure.kind == "percentile":
            ends.setdefault((measure.channel, measure.per, measure.within), {})[measure.percent] = value
    message = ""
    for limits in ends.values():
        inner = [value for percent, value in limits.items() if percent not in (0, 100)]
        known = {0, 100} <= limits.keys()
        if known and limits[100.0] - limits[0.0] < SMALLEST_SPREAD:
            return _CONSTANT
        if len(inner) > 1 and max(inner) - min(inner) < SMALLEST_SPREAD:
            message = "a channel has the same value at its percentiles"
            message += (
                "; it was scaled by its least and greatest value"
                if known
                else ", its members' normalisation finds no spread"
            )
    return message
