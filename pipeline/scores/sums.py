"""Exact sums of values and squares, as records keep them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.preprocessing.sketches import Moments


class Sums(BaseModel):
    """`chorus.pipeline.preprocessing.sketches.Moments` as a record: pixels; sums of values and squares per channel."""

    model_config = ConfigDict(frozen=True)

    pixels: int
    total: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def of(cls, fields: Sequence[NDArray[Any]]) -> Self:
        """Sum the values of each channel.

        Parameters
        ----------
        fields : one array per channel, all of the same size, any shape and real dtype
        """
        sums = Moments.begin(len(fields))
        sums.update(np.stack([field.reshape(-1, 1) for field in fields]))
        return cls(pixels=sums.pixels, total=sums.total, squares=sums.squares)

    def __add__(self, other: Sums) -> Sums:
        sums = self.moments().merge(other.moments())
        return Sums(pixels=sums.pixels, total=sums.total, squares=sums.squares)

    def moments(self) -> Moments:
        """Return the same sums as `Moments`."""
        return Moments(self.pixels, self.total, self.squares)

    def means_and_stds(self) -> list[tuple[float, float]]:
        """Return mean and standard deviation of each channel; NaN if there are no pixels."""
        if not self.pixels:
            return [(math.nan, math.nan)] * len(self.total)
        return [(mean, std) for mean, std in self.moments().conclude()]
