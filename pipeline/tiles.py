"""Tiles of a plane's window, cut one batch after the other, and a region whose tiles are on their way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.blending import BandBlender
from pipeline.canvas import InferenceSettings, PosteriorCanvas
from pipeline.features import TileFeatures
from pipeline.geometry import Grid, Span, Tile, Window, mirror
from pipeline.posterior import Posterior


@dataclass(frozen=True)
class PlaneWindow:
    """Prepared pixels that a region needs: (channels, y, x) float32 of `window`, inside a plane of `grid`."""

    pixels: NDArray[np.float32]
    window: Window
    grid: Grid


def batches_of_tiles(grid: Grid, target: Window, size: int) -> Iterator[list[Tile]]:
    """The tiles that touch `target`, in the grid's order, `size` at a time."""
    tiles = list(grid.tiles(target))
    for start in range(0, len(tiles), size):
        yield tiles[start : start + size]


class TileSource:
    """Cuts tiles out of a plane's window, mirrored at the plane's edges."""

    def __init__(self, plane: PlaneWindow, settings: InferenceSettings, device: torch.device) -> None:
        self._pixels = torch.from_numpy(plane.pixels).to(device, non_blocking=True)
        self._plane = plane
        self._settings = settings
        self._device = device

    @property
    def channels(self) -> int:
        return self._pixels.shape[0]

    def batches(self, target: Window) -> Iterator[tuple[list[Tile], torch.Tensor]]:
        """Tiles that touch `target` and their pixels, (batch, channels, tile, tile) float32."""
        size, tile = self._settings.batch, self._settings.tile
        for tiles in batches_of_tiles(self._plane.grid, target, size):
            batch = torch.zeros((size, self.channels, tile, tile), device=self._device)
            for index, one in enumerate(tiles):
                batch[index] = self.cut(one)
            yield tiles, batch

    def cut(self, tile: Tile) -> torch.Tensor:
        """Pixels of one tile, (channels, tile, tile) float32."""
        y = self._indices(tile.window.y, self._plane.grid.y.length, self._plane.window.y.start)
        x = self._indices(tile.window.x, self._plane.grid.x.length, self._plane.window.x.start)
        return self._pixels.index_select(1, y).index_select(2, x)

    def _indices(self, span: Span, length: int, origin: int) -> torch.Tensor:
        inside = mirror(np.arange(span.start, span.stop, dtype=np.int64), length) - origin
        return torch.from_numpy(inside).to(self._device)


class RegionOnItsWay:
    """A region between its pixels and its posterior: its tiles go out in order, and what is said of them comes back so.

    Batches may hold tiles of several regions, which change no bit of each other's results.

    Parameters
    ----------
    plane, target : what is read, and the window of the plane that is wanted
    weights : of a tile's pixels, see `pipeline.blending.gaussian_window`
    members : how many members answer
    features : gets those of the members' encoders, if they are wanted
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
        self._source = TileSource(plane, settings, weights.device)
        self._waiting = list(plane.grid.tiles(target))[::-1]
        self._features = features
        self._canvas = PosteriorCanvas(target, settings, members)
        self._ensemble = BandBlender(settings.maps, target, weights, self._canvas.take_ensemble)
        self._members = member_blenders(self._canvas, settings, target, weights, members)

    @property
    def waiting(self) -> int:
        """Tiles that did not go out yet."""
        return len(self._waiting)

    @property
    def channels(self) -> int:
        return self._source.channels

    def send(self, batch: torch.Tensor) -> list[Tile]:
        """Fill `batch`, (tiles, channels, tile, tile), with the next tiles, and say which ones they are."""
        tiles = [self._waiting.pop() for _ in range(min(len(batch), len(self._waiting)))]
        for index, tile in enumerate(tiles):
            batch[index] = self._source.cut(tile)
        return tiles

    def take(
        self,
        tiles: Sequence[Tile],
        maps: torch.Tensor,
        means: Sequence[torch.Tensor],
        features: torch.Tensor,
        samples: Sequence[int],
    ) -> None:
        """Add what is said of tiles that went out; of each array the first axis is that of `tiles`, or longer.

        Parameters
        ----------
        maps : (tiles, maps, tile, tile) of `SampleSums.maps`, with adaptive effort how many samples there were after it
        means : of each member, (tiles, classes, tile, tile)
        features : (tiles, features) int64
        samples : that each tile got
        """
        blend(tiles, means, self._members)
        if self._features is not None:
            self._features.add(tiles, features, samples)
        for index, tile in enumerate(tiles):
            self._ensemble.add(tile, maps[index])

    def posterior(self) -> Posterior:
        """Of the target, once all tiles came back."""
        for blender in (self._ensemble, *self._members):
            blender.finish()
        return self._canvas.posterior()


def member_blenders(
    canvas: PosteriorCanvas, settings: InferenceSettings, target: Window, weights: torch.Tensor, members: int
) -> list[BandBlender]:
    """One per member, whose mean goes to `canvas`."""
    return [
        BandBlender(settings.classes, target, weights, partial(canvas.take_member, member)) for member in range(members)
    ]


def blend(tiles: Sequence[Tile], means: Sequence[torch.Tensor], blenders: Sequence[BandBlender]) -> None:
    """Add each member's means of `tiles` to its blender."""
    for blender, mean in zip(blenders, means, strict=True):
        for index, tile in enumerate(tiles):
            blender.add(tile, mean[index])
