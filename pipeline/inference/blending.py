"""Blend overlapping tiles into one plane: a Gaussian window and weighted sums, one row of tiles at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from chorus.pipeline.core.geometry import Span, Tile, Window

Sink = Callable[[Span, torch.Tensor], None]


def gaussian_window(tile: int) -> torch.Tensor:
    """Return the blending weights of a tile's pixels.

    Sigma is tile / 8. Weights that underflow to zero are raised to the smallest positive one, so that no pixel is
    divided by zero.

    Parameters
    ----------
    tile : edge of a tile in pixels

    Returns
    -------
    torch.Tensor
        (tile, tile) float32, largest at the centre, at most 1, positive everywhere.

    References
    ----------
    Isensee et al., nnU-Net, Nature Methods 18:203 (2021), Gaussian importance weighting.
    """
    offset = np.arange(tile, dtype=np.float64) - (tile - 1) / 2
    line = np.exp(-0.5 * (offset / (tile / 8)) ** 2)
    weights = np.outer(line, line)
    weights = (weights / weights.max()).astype(np.float32)
    weights[weights == 0] = weights[weights > 0].min()
    return torch.from_numpy(weights)


class BandBlender:
    """Weighted mean of the tiles' maps over a window of the plane, holding one row of tiles at a time.

    Tiles are added in row-major order. Once a tile begins below the first rows of the band, no later tile reaches these
    rows: they are divided by their weights and passed to `sink`, and the band moves down::

        target       ----------------------------
        band         [ tile ][ tile ]               (channels, tile, width) sums, (tile, width) weights
                         [ tile ][ tile ]           <- the first tile of the next row frees `step` rows

    For any pixel the sum runs over the tiles that cover it in the order of the whole plane's grid, in float32
    and with one rounding per product and one per sum, so its bits do not depend on the target.

    Parameters
    ----------
    channels : maps per tile
    target : the window of the plane to compute
    weights : (tile, tile) float32 on the device that computes
    sink : called with (rows of the plane, (channels, rows, width) float32), top to bottom, each row once
    """

    def __init__(self, channels: int, target: Window, weights: torch.Tensor, sink: Sink) -> None:
        self._target = target
        self._weights = weights
        self._sink = sink
        self._top = target.y.start
        tile, width = weights.shape[0], len(target.x)
        self._sums = torch.zeros((channels, tile, width), dtype=torch.float32, device=weights.device)
        self._total = torch.zeros((tile, width), dtype=torch.float32, device=weights.device)

    def add(self, tile: Tile, maps: torch.Tensor) -> None:
        """Add the maps of the next tile.

        Parameters
        ----------
        tile : the next one in row-major order
        maps : (channels, tile, tile) float32
        """
        if tile.window.y.start > self._top:
            self._release(tile.window.y.start)
        y, x = (
            self._shared(tile.window.y, self._top, self._target.y),
            self._shared(tile.window.x, self._target.x.start, self._target.x),
        )
        inner = (
            slice(y.start - tile.window.y.start, y.stop - tile.window.y.start),
            slice(x.start - tile.window.x.start, x.stop - tile.window.x.start),
        )
        outer = (
            slice(y.start - self._top, y.stop - self._top),
            slice(x.start - self._target.x.start, x.stop - self._target.x.start),
        )
        weights = self._weights[inner]
        # Product and sum are separate operations: a fused one rounds once, and whether it is used may depend on
        # where a pixel lies in the array.
        product = maps[:, inner[0], inner[1]] * weights
        self._sums[:, outer[0], outer[1]] += product
        self._total[outer] += weights

    def finish(self) -> None:
        """Pass the remaining rows to the sink."""
        self._release(self._target.y.stop)

    @staticmethod
    def _shared(span: Span, low: int, target: Span) -> Span:
        return Span(max(span.start, low, target.start), min(span.stop, target.stop))

    def _release(self, until: int) -> None:
        rows = min(until, self._target.y.stop) - self._top
        if rows <= 0:
            return
        self._sink(Span(self._top, self._top + rows), self._sums[:, :rows] / self._total[:rows])
        for array, axis in ((self._sums, 1), (self._total, 0)):
            kept = array.shape[axis] - rows
            array.narrow(axis, 0, kept).copy_(array.narrow(axis, rows, kept).clone())
            array.narrow(axis, kept, rows).zero_()
        self._top += rows
