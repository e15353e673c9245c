"""Blend overlapping tiles into one image: a Gaussian window and weighted sums, one row of tiles at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from chorus.pipeline.core.geometry import Span, Window
from chorus.pipeline.core.tiling import Tile

Sink = Callable[[Span, torch.Tensor], None]


def gaussian_window(tile: tuple[int, ...]) -> torch.Tensor:
    """Return the blending weights of a tile's pixels.

    The product of a Gaussian along each axis, whose sigma is the tile's length on it / 8. Weights that underflow to
    zero are raised to the smallest positive one, so that no pixel is divided by zero.

    Parameters
    ----------
    tile : pixels on each axis

    Returns
    -------
    torch.Tensor
        Of the tile's shape, float32, largest at the centre, at most 1, positive everywhere.

    References
    ----------
    Isensee et al., nnU-Net, Nature Methods 18:203 (2021), Gaussian importance weighting.
    """
    lines = [np.exp(-0.5 * ((np.arange(n, dtype=np.float64) - (n - 1) / 2) / (n / 8)) ** 2) for n in tile]
    weights = functools.reduce(np.multiply.outer, lines)
    weights = (weights / weights.max()).astype(np.float32)
    weights[weights == 0] = weights[weights > 0].min()
    return torch.from_numpy(weights)


class BandBlender:
    """Weighted mean of the tiles' maps over a window of the image, holding one row of tiles at a time.

    Tiles are added in row-major order. Once a tile begins below the first rows of the band, no later tile reaches these
    rows: they are divided by their weights and passed to `sink`, and the band moves down::

        target       ----------------------------
        band         [ tile ][ tile ]               (channels, tile, width) sums, (tile, width) weights
                         [ tile ][ tile ]           <- the first tile of the next row frees `step` rows

    In a volume a row is all of the tiles that begin at the same z, and the band moves along z.

    For any pixel the sum runs over the tiles that cover it in the order of the whole image's grid, in float32
    and with one rounding per product and one per sum, so its bits do not depend on the target.

    Parameters
    ----------
    channels : maps per tile
    target : the window of the image to compute
    weights : of the tile's shape, float32 on the device that computes
    sink : called with (span on the first axis, (channels, rows, ...) float32), in order, each row once
    """

    def __init__(self, channels: int, target: Window, weights: torch.Tensor, sink: Sink) -> None:
        self._target = target
        self._weights = weights
        self._sink = sink
        self._top = target.spans[0].start
        band = (weights.shape[0], *target.shape[1:])
        self._sums = torch.zeros((channels, *band), dtype=torch.float32, device=weights.device)
        self._total = torch.zeros(band, dtype=torch.float32, device=weights.device)

    def add(self, tile: Tile, maps: torch.Tensor) -> None:
        """Add the maps of the next tile.

        Parameters
        ----------
        tile : the next one in row-major order
        maps : (channels, *tile) float32
        """
        spans = tile.window.spans
        if spans[0].start > self._top:
            self._release(spans[0].start)
        origins = (self._top, *(span.start for span in self._target.spans[1:]))
        inner, outer = [], []
        for span, low, target in zip(spans, origins, self._target.spans, strict=True):
            start, stop = max(span.start, low), min(span.stop, target.stop)
            inner.append(slice(start - span.start, stop - span.start))
            outer.append(slice(start - low, stop - low))
        weights = self._weights[tuple(inner)]
        # Product and sum are separate operations: a fused one rounds once, and whether it is used may depend on
        # where a pixel lies in the array.
        product = maps[:, *inner] * weights
        self._sums[:, *outer] += product
        self._total[tuple(outer)] += weights

    def finish(self) -> None:
        """Pass the remaining rows to the sink."""
        self._release(self._target.spans[0].stop)

    def _release(self, until: int) -> None:
        rows = min(until, self._target.spans[0].stop) - self._top
        if rows <= 0:
            return
        self._sink(Span(self._top, self._top + rows), self._sums[:, :rows] / self._total[:rows])
        for array, axis in ((self._sums, 1), (self._total, 0)):
            kept = array.shape[axis] - rows
            array.narrow(axis, 0, kept).copy_(array.narrow(axis, rows, kept).clone())
            array.narrow(axis, kept, rows).zero_()
        self._top += rows
