"""Features of an image from the members' encoders: the last stage's output, averaged over each tile and over all tiles.

Beyond the tile everything is an integer in units of 2^-32: sums are the same in any order and any grouping, so that
neither the partition into regions nor the distribution of members over devices changes a bit. A tile that touches
several regions is evaluated for each of them, and counts for the region that contains its centre::

    plane      |      region 0      |      region 1      |
    tiles      [     .     ]                                 the centre, clamped into the plane
                     [     .     ]                           counts for region 0, is evaluated for both
                           [     .     ]                     counts for region 1, is evaluated for both
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.geometry import Span, Window
from chorus.pipeline.core.tiling import Grid, Tile
from chorus.pipeline.inference.device_transfer import to_device
from chorus.pipeline.scores.image_scores import FIXED_POINT

# Above the largest half-precision number (65504). A tile is then at most 2^48 units; 2^14 tiles still fit in 63 bits.
_BOUND = 2.0**16


def pooled(stage: torch.Tensor) -> torch.Tensor:
    """Return the mean of an encoder's stage over its pixels, as fixed-point integers.

    Each value is rounded on its own and integers are summed, so that a tile has the same features at any position of
    any batch. Values beyond +-2^16 are clipped, NaN counts as zero.

    Parameters
    ----------
    stage : (batch, features, y, x) or (batch, features, z, y, x) of any floating dtype

    Returns
    -------
    torch.Tensor
        (batch, features) int64 in units of 2^-32, on the device of `stage`.
    """
    positions = math.prod(stage.shape[2:])
    values = torch.nan_to_num(device_of(stage.device).in_float64(stage), nan=0.0).clamp_(-_BOUND, _BOUND)
    return values.mul_(FIXED_POINT / positions).round_().to(torch.int64).flatten(2).sum(dim=2).to(stage.device)


def centres_in(region: Window, image: Sequence[int], model: Sequence[int]) -> Window:
    """Return the pixels of the model's grid whose centres lie in `region`; possibly none.

    Regions partition the image, tiles lie on the model's grid (the image resampled to the pixel size of the
    ensemble). The image's pixel under the centre of the model's pixel c is floor((c + 0.5) * image / model) on each
    axis, as in `chorus.pipeline.preprocessing.resampling`; so the windows of all regions partition the model's grid.

    Parameters
    ----------
    region : of the image
    image, model : pixels on each axis of the image, and of the model's grid
    """

    def axis(span: Span, length: int, model_length: int) -> Span:
        def first(pixel: int) -> int:  # the smallest c with (2 c + 1) * length >= 2 * pixel * model_length
            return -((length - 2 * pixel * model_length) // (2 * length))

        return Span(first(span.start), first(span.stop))

    return Window(*(axis(*one) for one in zip(region.spans, image, model, strict=True)))


class TileFeatures:
    """Sum the features of the tiles whose centres lie in a window of the image.

    Parameters
    ----------
    grid : of the image's tiles
    centres : the window; see `centres_in`

    Attributes
    ----------
    tiles : number of tiles that counted so far
    samples : number of samples of these tiles so far
    passes : number of samples of all tiles so far, including tiles that count for other regions
    """

    def __init__(self, grid: Grid, centres: Window) -> None:
        self._grid, self._centres = grid, centres
        self.clear()

    def clear(self) -> None:
        """Reset all sums and counts to zero."""
        self._total: torch.Tensor | None = None
        self.tiles = 0
        self.samples = self.passes = 0

    def add(self, tiles: Sequence[Tile], features: torch.Tensor, samples: Sequence[int] = ()) -> None:
        """Add the features of a batch of tiles.

        Parameters
        ----------
        tiles : of the batch
        features : (batch, features) int64 as returned by `pooled`; rows beyond `tiles` are padding
        samples : number of samples per tile; empty if only a part of the members is here
        """
        counted = [index for index, tile in enumerate(tiles) if self.counts(tile)]
        part = features.index_select(0, to_device(np.array(counted, np.int64), features.device)).sum(dim=0)
        self._total = part if self._total is None else self._total + part
        self.tiles += len(counted)
        self.passes += sum(samples)
        self.samples += sum(samples[index] for index in counted) if samples else 0

    def sums(self) -> NDArray[np.int64]:
        """Return the sums over the tiles that counted.

        Returns
        -------
        NDArray[np.int64]
            (features,) in units of 2^-32; (0,) if no batch was added.
        """
        if self._total is None:
            return np.zeros(0, np.int64)
        total: NDArray[np.int64] = self._total.cpu().numpy()
        return total

    def counts(self, tile: Tile) -> bool:
        """Return whether the centre of `tile` lies in the window."""
        centre = self._grid.centre(tile)
        return all(span.start <= at < span.stop for span, at in zip(self._centres.spans, centre, strict=True))
