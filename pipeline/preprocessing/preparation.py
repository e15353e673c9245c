"""How raw pixels become what a member sees, and which statistics of the pixels that needs.

A preparation acts on each pixel alone once its statistics are known, so that it does not matter how an image is cut;
the statistics are taken over the whole image, or over all images of a run, before the first tile.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from chorus.pipeline.preprocessing.sketches import Moments, RadixSearch, Sketch

# The smallest spread whose reciprocal is finite in float32.
SMALLEST_SPREAD = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, order=True, slots=True)
class Measure:
    """A statistic of raw pixels.

    Attributes
    ----------
    kind : ``std`` is that of the population; ``percentile`` is linear between neighbours, as NumPy's default
    channel : of those that are handed to the members; -1 for all of them together
    percent : of a percentile, 0 to 100
    per : over one image, or over all images of a run
    """

    kind: Literal["mean", "std", "percentile"]
    channel: int
    percent: float = 0.0
    per: Literal["image", "dataset"] = "image"


Statistics = Mapping[Measure, float]
ALL_CHANNELS = -1


class Preparation(Protocol):
    """How raw pixels become a member's input. Equal preparations are computed once; so it has `==` and a hash."""

    @property
    def channels(self) -> int:
        """How many come out."""
        ...

    @property
    def measures(self) -> frozenset[Measure]:
        """What must be known of the image or the data set before."""
        ...

    def apply(self, raw: NDArray[Any], statistics: Statistics) -> NDArray[np.float32]:
        """(channels, y, x) float32 of raw (channels, y, x) pixels of any real dtype, each pixel by itself."""
        ...


@dataclass
class Survey:
    """One pass over pixels for a set of measures: update block by block, merge, conclude, until all are found."""

    measures: tuple[Measure, ...]
    channels: int
    sketches: dict[tuple[bool, bool], Sketch]
    found: dict[Measure, float] = field(default_factory=dict)

    @classmethod
    def begin(cls, measures: Collection[Measure], channels: int, dtype: DTypeLike) -> Survey:
        """The survey of the first pass over pixels of `dtype`; sketches are keyed by (percentiles, all together)."""
        sketches: dict[tuple[bool, bool], Sketch] = {}
        for together in (False, True):
            wanted = [m for m in measures if (m.channel == ALL_CHANNELS) == together]
            count = 1 if together else channels
            percents = tuple(sorted({m.percent for m in wanted if m.kind == "percentile"}))
            if percents:
                sketches[True, together] = RadixSearch.begin(percents, count, np.dtype(dtype))
            if any(m.kind != "percentile" for m in wanted):
                sketches[False, together] = Moments.begin(count)
        return cls(tuple(sorted(measures)), channels, sketches)

    @property
    def complete(self) -> bool:
        return not self.sketches

    def update(self, block: NDArray[Any]) -> None:
        """Add the pixels of a block, (channels, y, x)."""
        for (_, together), sketch in self.sketches.items():
            sketch.update(block.reshape(1, -1, 1) if together else block)

    def merge(self, other: Survey) -> Survey:
        """The survey of both surveys' pixels in the same pass."""
        merged = {key: sketch.merge(other.sketches[key]) for key, sketch in self.sketches.items()}
        return replace(self, sketches=merged)

    def conclude(self) -> Survey:
        """What was found in this pass, with the sketches for the next one where one is needed."""
        found, pending = dict(self.found), {}
        for key, sketch in self.sketches.items():
            result = sketch.conclude()
            if not isinstance(result, tuple):
                pending[key] = result
                continue
            percents = sketch.percents if isinstance(sketch, RadixSearch) else ()
            found |= {m: self._value(m, result, percents) for m in self.measures if self._key(m) == key}
        return Survey(self.measures, self.channels, pending, found)

    @staticmethod
    def _key(measure: Measure) -> tuple[bool, bool]:
        return measure.kind == "percentile", measure.channel == ALL_CHANNELS

    @staticmethod
    def _value(measure: Measure, result: tuple[tuple[float, ...], ...], percents: tuple[float, ...]) -> float:
        values = result[0 if measure.channel == ALL_CHANNELS else measure.channel]
        if measure.kind == "percentile":
            return values[percents.index(measure.percent)]
        return values[0 if measure.kind == "mean" else 1]


def surveyed(measures: Collection[Measure], blocks: Sequence[NDArray[Any]]) -> Statistics:
    """What `measures` are over blocks in memory, each (channels, y, x), all of one dtype.

    Raises
    ------
    ImageError
        If a pixel is NaN or infinite.
    """
    survey = Survey.begin(measures, blocks[0].shape[0], blocks[0].dtype)
    while not survey.complete:
        for block in blocks:
            survey.update(block)
        survey = survey.conclude()
    return survey.found


def without_spread(statistics: Statistics) -> bool:
    """Whether some channel has the same value in every pixel, or between all of its percentiles."""
    ends: dict[tuple[int, str], list[float]] = {}
    for measure, value in statistics.items():
        if measure.kind == "std" and value < SMALLEST_SPREAD:
            return True
        if measure.kind == "percentile":
            ends.setdefault((measure.channel, measure.per), []).append(value)
    return any(len(values) > 1 and max(values) - min(values) < SMALLEST_SPREAD for values in ends.values())
