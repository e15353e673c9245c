"""What the members' encoders make of an image: the last stage's answer, averaged over each tile and over all tiles.

From the tile on everything is an integer in units of 2^-32: sums are the same in any order and any grouping, so that
neither the cut into regions nor the spread of members over devices changes a bit. A tile that touches several regions
is evaluated for each of them, and counts for the one that holds its centre::

    plane      |      region 0      |      region 1      |
    tiles      [     .     ]                                 the centre, clamped into the plane
                     [     .     ]                           counts for region 0, is evaluated for both
                           [     .     ]                     counts for region 1, is evaluated for both
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.geometry import Grid, Span, Tile, Window
from chorus.pipeline.inference.device_transfer import to_device
from chorus.pipeline.scores.image_scores import FIXED_POINT

# More than half precision knows (65504). With it a tile is at most 2^48 units, and 2^14 tiles still fit in 63 bits.
_BOUND = 2.0**16


def pooled(stage: torch.Tensor) -> torch.Tensor:
    """The mean of an encoder's stage over (y, x): (batch, features) int64 in units of 2^-32.

    Each value is rounded on its own and integers are summed, so that a tile has the same features at any place of any
    batch. Values beyond +-2^16 count as that bound, NaN counts as zero.

    Parameters
    ----------
    stage : (batch, features, y, x) of any floating dtype
    """
    positions = stage.shape[2] * stage.shape[3]
    values = torch.nan_to_num(device_of(stage.device).in_float64(stage), nan=0.0).clamp_(-_BOUND, _BOUND)
    return values.mul_(FIXED_POINT / positions).round_().to(torch.int64).sum(dim=(2, 3)).to(stage.device)


def centres_in(region: Window, image: tuple[int, int], model: tuple[int, int]) -> Window:
    """Pixels of the model's plane whose centres lie in `region`; possibly none.

    Regions part the image's plane, tiles lie on the model's. The image's pixel under the centre of the model's pixel c
    is floor((c + 0.5) * image / model) on each axis, as in `chorus.pipeline.preprocessing.resampling`; so the windows
    of all regions part the model's plane.

    Parameters
    ----------
    region : of the image's plane
    image, model : (height, width) of the planes
    """

    def axis(span: Span, length: int, model_length: int) -> Span:
        def first(pixel: int) -> int:  # the least c with (2 c + 1) * length >= 2 * pixel * model_length
            return -((length - 2 * pixel * model_length) // (2 * length))

        return Span(first(span.start), first(span.stop))

    return Window(axis(region.y, image[0], model[0]), axis(region.x, image[1], model[1]))


class TileFeatures:
    """Sums the features of the tiles whose centres lie in a window of the plane.

    Parameters
    ----------
    grid : of the plane's tiles
    centres : the window; see `centres_in`

    Attributes
    ----------
    tiles : that count, so far
    samples : that the tiles that count got, so far
    passes : samples of all tiles so far, those that count for other regions included
    """

    def __init__(self, grid: Grid, centres: Window) -> None:
        self._grid, self._centres = grid, centres
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._total: torch.Tensor | None = None
        self.tiles = 0
        self.samples = self.passes = 0

    def add(self, tiles: Sequence[Tile], features: torch.Tensor, samples: Sequence[int] = ()) -> None:
        """Add a batch: (batch, features) int64 as of `pooled`, rows beyond `tiles` only fill it up.

        `samples` are those that each tile got, where all members are here.
        """
        counted = [index for index, tile in enumerate(tiles) if self.counts(tile)]
        part = features.index_select(0, to_device(np.array(counted, np.int64), features.device)).sum(dim=0)
        self._total = part if self._total is None else self._total + part
        self.tiles += len(counted)
        self.passes += sum(samples)
        self.samples += sum(samples[index] for index in counted) if samples else 0

    def sums(self) -> NDArray[np.int64]:
        """(features,) int64 in units of 2^-32."""
        if self._total is None:
            return np.zeros(0, np.int64)
        total: NDArray[np.int64] = self._total.cpu().numpy()
        return total

    def counts(self, tile: Tile) -> bool:
        """Whether its centre lies in the window."""
        y, x = self._grid.centre(tile)
        inside = self._centres
        return inside.y.start <= y < inside.y.stop and inside.x.start <= x < inside.x.stop


class FeatureSums(BaseModel):
    """What a region adds to its image's features.

    A record is read without Chorus by ``numpy.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i8")``.

    Attributes
    ----------
    tiles : that count for the region
    packed : their sums, (features,) in units of 2^-32, members one after the other in the ensemble's order
    """

    model_config = ConfigDict(frozen=True)

    tiles: int
    packed: str

    @classmethod
    def of(cls, tiles: int, sums: NDArray[np.int64]) -> FeatureSums:
        return cls(tiles=tiles, packed=_packed(sums, "<i8"))

    @property
    def sums(self) -> NDArray[np.int64]:
        return _unpacked(self.packed, "<i8")


class FeatureTotal:
    """Sums the features of an image's regions, in whole numbers of any size."""

    def __init__(self) -> None:
        self._total: NDArray[np.object_] | None = None
        self._tiles = 0

    def add(self, part: FeatureSums) -> None:
        sums = part.sums.astype(object)
        self._total = sums if self._total is None else self._total + sums
        self._tiles += part.tiles

    def mean(self) -> ImageFeatures:
        """Over all tiles that were added."""
        sums = [] if self._total is None else self._total.tolist()
        return ImageFeatures.of(self._tiles, np.array([total / (FIXED_POINT * self._tiles) for total in sums]))


class ImageFeatures(BaseModel):
    """An image's features.

    Attributes
    ----------
    tiles : of all planes, each once
    packed : their mean, (features,) float64, as in `FeatureSums` with ``<f8``; empty where no member has an encoder
    """

    model_config = ConfigDict(frozen=True)

    tiles: int = 0
    packed: str = ""

    @classmethod
    def of(cls, tiles: int, mean: NDArray[np.float64]) -> ImageFeatures:
        return cls(tiles=tiles, packed=_packed(mean, "<f8"))

    @property
    def mean(self) -> NDArray[np.float64]:
        return _unpacked(self.packed, "<f8")


def _packed(values: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(zlib.compress(values.astype(dtype).tobytes())).decode() if values.size else ""


def _unpacked(text: str, dtype: str) -> NDArray[Any]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)) if text else b"", dtype)
