"""Shape of a member's answer for a tile, where it is not that of the tile: coarser, or without the tile's rim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field

from chorus.pipeline.core.geometry import of_each
from chorus.pipeline.core.strict import Strict
from chorus.pipeline.core.tiling import Grid

_Count = Annotated[int, Field(ge=1, le=64)]
_Pixels = Annotated[int, Field(ge=0, le=1024)]


class AnswerShape(Strict):
    """What part of a tile an answer covers, and how densely; each for all axes or for each.

    Along an axis, for a tile that begins at pixel t::

        tile      |----crop----|==================|----crop----|
        answer                  *   *   *   *   *                  index i stands for pixel t + crop + i * grid

    Values between the points of a grid are interpolated linearly, those after the last one are its own. Points keep
    their values, and lie on multiples of `grid` in the image whatever the tile, since tiles begin at multiples of it.

    Attributes
    ----------
    grid : pixels from one value of the answer to the next
    crop : pixels of the tile before and after the answer, a multiple of `grid`
    align : tiles begin at multiples of it; at least at those of `grid`
    """

    grid: _Count | tuple[_Count, ...] = 1
    crop: _Pixels | tuple[_Pixels, ...] = 0
    align: _Count | tuple[_Count, ...] = 1

    @property
    def plain(self) -> bool:
        """Whether answers have the shape of the tile."""
        return not self.coarse and not any(self.crop if isinstance(self.crop, tuple) else (self.crop,))

    @property
    def coarse(self) -> bool:
        """Whether an answer has fewer values than pixels."""
        return any(step > 1 for step in (self.grid if isinstance(self.grid, tuple) else (self.grid,)))

    def grids(self, axes: int) -> tuple[int, ...]:
        """Return `grid` of each of so many axes."""
        return of_each(self.grid, axes)

    def crops(self, axes: int) -> tuple[int, ...]:
        """Return `crop` of each of so many axes."""
        return of_each(self.crop, axes)

    def covered(self, tile: Sequence[int]) -> tuple[int, ...]:
        """Return the pixels of a tile on each axis that an answer is of."""
        return tuple(length - 2 * crop for length, crop in zip(tile, self.crops(len(tile)), strict=True))

    def values(self, tile: Sequence[int]) -> tuple[int, ...]:
        """Return the values of an answer along each axis of a tile."""
        return tuple(length // grid for length, grid in zip(self.covered(tile), self.grids(len(tile)), strict=True))

    def wrong(self, tile: Sequence[int], *, exchanging: str = "") -> str:
        """Return why it does not go with tiles of this shape, for a message; empty if it does.

        Parameters
        ----------
        exchanging : an augmentation that exchanges y and x, if one does
        """
        try:
            grids, crops, _ = (of_each(value, len(tile)) for value in (self.grid, self.crop, self.align))
        except ValueError as error:
            return f"give one number for all axes, or one for each ({error})"
        for length, grid, crop in zip(self.covered(tile), grids, crops, strict=True):
            if crop % grid:
                return f"crop {crop} is not a multiple of grid {grid}"
            if length < grid or length % grid:
                return f"a tile of {length + 2 * crop} less {crop} on both sides is no multiple of grid {grid}"
        if exchanging and (grids[-2], crops[-2]) != (grids[-1], crops[-1]):
            return f"{exchanging} exchanges y and x, which needs the same grid and crop on both"
        return ""

    def tiles(self, shape: Sequence[int], tile: int | Sequence[int], overlap: float | Sequence[float]) -> Grid:
        """Return the grid of tiles over an image of this shape; `overlap` is of the parts that answers cover."""
        axes = len(shape)
        covered = self.covered(of_each(tile, axes))
        align = [math.lcm(*pair) for pair in zip(of_each(self.align, axes), self.grids(axes), strict=True)]
        return Grid.make(shape, covered, overlap, margin=self.crops(axes), align=align)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Return values at every pixel that the answer covers.

        Parameters
        ----------
        values : (batch, channels, *values) float32

        Returns
        -------
        torch.Tensor
            (batch, channels, *covered) float32.
        """
        if not self.coarse:
            return values
        for axis, step in enumerate(self.grids(values.ndim - 2), start=2):
            values = between(values, axis, step)
        return values


def between(values: torch.Tensor, axis: int, step: int) -> torch.Tensor:
    """Return values at every pixel along an axis, given those at every `step`-th.

    Parameters
    ----------
    values : any shape
    axis : from 0
    step : pixels from one value to the next

    Returns
    -------
    torch.Tensor
        The axis `step` times as long; linear between values, and the last one after it.
    """
    if step == 1:
        return values
    length = values.shape[axis]
    following = torch.cat([values.narrow(axis, 1, length - 1), values.narrow(axis, length - 1, 1)], axis)
    parts = [values, *(values + (following - values) * (pixel / step) for pixel in range(1, step))]
    return torch.stack(parts, axis + 1).flatten(axis, axis + 1)
