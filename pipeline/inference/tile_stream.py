"""Cut the tiles of an image's window in batches, and hold the state of a region between submission and posterior."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Padding, Window
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.core.tiling import Grid, Tile, mirror
from chorus.pipeline.inference.blending import BandBlender
from chorus.pipeline.inference.device_transfer import to_device
from chorus.pipeline.inference.encoder_features import TileFeatures
from chorus.pipeline.inference.posterior_builder import InferenceSettings, PosteriorBuilder


@dataclass(frozen=True)
class PlaneWindow:
    """Prepared pixels that a region needs, inside a plane or a volume.

    Attributes
    ----------
    pixels : (channels, *window) float32
    window : where they lie
    grid : of the plane's or the volume's tiles
    padding : what tiles see beyond its edges
    """

    pixels: NDArray[np.float32]
    window: Window
    grid: Grid
    padding: Padding = "mirror"


def batches_of_tiles(grid: Grid, target: Window, size: int) -> Iterator[list[Tile]]:
    """Yield the tiles that touch `target`, in the grid's order, `size` at a time."""
    tiles = list(grid.tiles(target))
    for start in range(0, len(tiles), size):
        yield tiles[start : start + size]


class TileSource:
    """Cut the tiles that touch `target` out of an image's window, padded beyond the image's edges."""

    def __init__(self, plane: PlaneWindow, target: Window, settings: InferenceSettings, device: torch.device) -> None:
        self._reach = plane.grid.reach(target)
        self._pixels = to_device(plane.pixels, device)
        axes = zip(self._reach.spans, plane.window.spans, plane.grid.axes, strict=True)
        for dimension, (reach, read, axis) in enumerate(axes, start=1):
            if reach != read:
                inside = np.arange(reach.start, reach.stop, dtype=np.int64)
                index = mirror(inside, axis.length) - read.start
                self._pixels = self._pixels.index_select(dimension, to_device(index, device))
                if plane.padding == "zero":
                    beyond = np.flatnonzero((inside < 0) | (inside >= axis.length))
                    self._pixels.index_fill_(dimension, to_device(beyond, device), 0.0)
        self._grid, self._target = plane.grid, target
        self._settings = settings
        self._device = device

    @property
    def channels(self) -> int:
        """Number of channels of a tile."""
        return self._pixels.shape[0]

    def batches(self) -> Iterator[tuple[list[Tile], torch.Tensor]]:
        """Yield all batches in the grid's order.

        Yields
        ------
        tiles : of the batch
        pixels : (batch, channels, *tile) float32 on the device, padded with zeros after the last tile
        """
        size, tile = self._settings.batch, self._settings.tile
        for tiles in batches_of_tiles(self._grid, self._target, size):
            batch = torch.zeros((size, self.channels, *tile), device=self._device)
            for index, one in enumerate(tiles):
                batch[index] = self.cut(one)
            yield tiles, batch

    def cut(self, tile: Tile) -> torch.Tensor:
        """Return the pixels of one tile; a view, not to be changed.

        Parameters
        ----------
        tile : of the plane's grid, touching the target

        Returns
        -------
        torch.Tensor
            (channels, *tile) float32, on the device.
        """
        return self._pixels[:, *self._grid.seen(tile).within(self._reach)]


class RegionInProgress:
    """State of one region between submission and posterior; its tiles are sent and answered in the grid's order.

    Batches may hold tiles of several regions, which change no bit of each other's results.

    Parameters
    ----------
    plane, target : prepared pixels, and the window of the image to compute
    settings : of the run
    weights : of the shape of an answer, float32, see `chorus.pipeline.inference.blending.gaussian_window`
    members : number of members that answer
    features : if given, the members' encoder features are added to it
    """

    def __init__(
        self,
        plane: PlaneWindow,
        target: Window,
        settings: InferenceSettings,
        weights: torch.Tensor,
        members: int,
        features: TileFeatures | None,
    ) -> None:
        self._source = TileSource(plane, target, settings, weights.device)
        self._waiting = list(plane.grid.tiles(target))[::-1]
        self._missing = len(self._waiting)
        self._features = features
        self._canvas = PosteriorBuilder(target, settings, members, weights.device)
        # The ensemble's maps and the means of its members.
        channels = settings.maps + members * settings.classes
        self._blender = BandBlender(channels, target, weights, self._canvas.take)

    @property
    def waiting(self) -> int:
        """Number of tiles that were not sent yet."""
        return len(self._waiting)

    @property
    def channels(self) -> int:
        """Number of channels of a tile."""
        return self._source.channels

    def send(self, batch: torch.Tensor) -> list[Tile]:
        """Fill `batch` with the next tiles of the region, and return these tiles.

        Parameters
        ----------
        batch : (tiles, channels, *tile) float32 on the device, changed in place
        """
        tiles = [self._waiting.pop() for _ in range(min(len(batch), len(self._waiting)))]
        for index, tile in enumerate(tiles):
            batch[index] = self._source.cut(tile)
        return tiles

    def take(self, tiles: Sequence[Tile], maps: torch.Tensor, features: torch.Tensor, samples: Sequence[int]) -> None:
        """Add the answers for tiles that were sent; the first axis of each array is that of `tiles`, or longer.

        Parameters
        ----------
        tiles : in the order in which they were sent
        maps : (tiles, maps, *covered) float32, in the order of `InferenceSettings.layout`, then each member's mean
            probability
        features : (tiles, features) int64 in units of 2^-32
        samples : number of samples per tile
        """
        if self._features is not None:
            self._features.add(tiles, features, samples)
        for index, tile in enumerate(tiles):
            self._blender.add(tile, maps[index])
        self._missing -= len(tiles)
        if not self._missing:
            self._blender.finish()

    def posterior(self) -> Posterior:
        """Return the posterior of the target, once the results of all tiles are on the host."""
        return self._canvas.posterior()
