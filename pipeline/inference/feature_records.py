"""Sums and means of encoder features as they are recorded: per region, and per image.

Sums are integers in units of 2^-32 (`chorus.pipeline.inference.encoder_features`), so their order does not matter. This
file needs no torch: commands that only read records start fast.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.scores.image_scores import FIXED_POINT


class FeatureSums(BaseModel):
    """A region's contribution to its image's features.

    A record is read without Chorus by ``numpy.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i8")``.

    Attributes
    ----------
    tiles : number of tiles that count for the region
    packed : their sums, (features,) int64 in units of 2^-32, members in the ensemble's order
    """

    model_config = ConfigDict(frozen=True)

    tiles: int
    packed: str

    @classmethod
    def of(cls, tiles: int, sums: NDArray[np.int64]) -> FeatureSums:
        """Pack sums.

        Parameters
        ----------
        tiles : number of tiles that were summed
        sums : (features,) int64 in units of 2^-32
        """
        return cls(tiles=tiles, packed=_packed(sums, "<i8"))

    @property
    def sums(self) -> NDArray[np.int64]:
        """(features,) int64 in units of 2^-32."""
        return _unpacked(self.packed, "<i8")


class FeatureTotal:
    """Sum the features of an image's regions, in integers of unlimited size."""

    def __init__(self) -> None:
        self._total: NDArray[np.object_] | None = None
        self._tiles = 0

    def add(self, part: FeatureSums) -> None:
        """Add the sums of a region."""
        sums = part.sums.astype(object)
        self._total = sums if self._total is None else self._total + sums
        self._tiles += part.tiles

    def mean(self) -> ImageFeatures:
        """Return the mean features over all tiles that were added."""
        sums = [] if self._total is None else self._total.tolist()
        return ImageFeatures.of(self._tiles, np.array([total / (FIXED_POINT * self._tiles) for total in sums]))


class ImageFeatures(BaseModel):
    """Mean encoder features of an image.

    Attributes
    ----------
    tiles : number of tiles of all planes, each counted once
    packed : their mean, (features,) float64, as in `FeatureSums` with ``<f8``; empty if no member has an encoder
    """

    model_config = ConfigDict(frozen=True)

    tiles: int = 0
    packed: str = ""

    @classmethod
    def of(cls, tiles: int, mean: NDArray[np.float64]) -> ImageFeatures:
        """Pack a mean.

        Parameters
        ----------
        tiles : number of tiles that were averaged
        mean : (features,) float64
        """
        return cls(tiles=tiles, packed=_packed(mean, "<f8"))

    @property
    def mean(self) -> NDArray[np.float64]:
        """(features,) float64."""
        return _unpacked(self.packed, "<f8")


def _packed(values: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(zlib.compress(values.astype(dtype).tobytes())).decode() if values.size else ""


def _unpacked(text: str, dtype: str) -> NDArray[Any]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)) if text else b"", dtype)
