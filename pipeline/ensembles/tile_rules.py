"""Which tiles, overlaps, augmentations and answers go with the axes of an ensemble."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from chorus.pipeline.core.answers import AnswerShape
from chorus.pipeline.core.augmentation import augmentations_of
from chorus.pipeline.core.geometry import Axes, of_each

Overlap = Annotated[float, Field(ge=0, lt=1)]
Edge = Annotated[int, Field(ge=1, le=4096)]
Tile = Edge | tuple[Edge, Edge, Edge]
Overlaps = Overlap | tuple[Overlap, Overlap, Overlap]
_LEAST_EDGE = 32
_MOST_VOXELS = 1 << 26


def tiles_wrong(axes: Axes, tile: Tile, overlap: Overlaps, augmentations: Sequence[str]) -> tuple[str, str] | None:
    """Return which of the fields does not go with the axes, and why; None where all do."""
    if reason := tile_wrong(axes, tile):
        return "tile", reason
    if reason := overlap_wrong(axes, overlap):
        return "overlap", reason
    reason = augmentations_wrong(axes, of_each(tile, len(axes)), augmentations)
    return ("augmentations", reason) if reason else None


def tile_wrong(axes: Axes, tile: Tile) -> str:
    """Return why the size of tiles does not go with the axes; empty where it does."""
    if axes == "zyx":
        shape = of_each(tile, 3)
        large = math.prod(shape) > _MOST_VOXELS
        return f"{' x '.join(map(str, shape))} are more than {_MOST_VOXELS} voxels" if large else ""
    if isinstance(tile, tuple):
        return "give one number for tiles of planes, which are square; volumes have input.axes: zyx"
    return "" if tile >= _LEAST_EDGE else f"give at least {_LEAST_EDGE} pixels for tiles of planes"


def overlap_wrong(axes: Axes, overlap: Overlaps) -> str:
    """Return why the overlap does not go with the axes; empty where it does."""
    planes = axes == "yx" and isinstance(overlap, tuple)
    return "give one number for tiles of planes, which are square; volumes have input.axes: zyx" if planes else ""


def augmentations_wrong(axes: Axes, tile: tuple[int, ...], names: Sequence[str]) -> str:
    """Return why the augmentations do not go with axes and tiles; empty where they do."""
    known = augmentations_of(axes)
    if unknown := [name for name in names if name not in known]:
        return f"{unknown[0]} is one of volumes, and the members take planes; choose out of {', '.join(known)}"
    turning = [name for name in names if known[name].exchanges]
    if turning and tile[-2] != tile[-1]:
        return f"{turning[0]} exchanges y and x, which needs tiles of as many rows as columns"
    return ""


def answer_wrong(answer: AnswerShape, axes: Axes, tile: tuple[int, ...], augmentations: Sequence[str]) -> str:
    """Return why the shape of an answer does not go with tiles and augmentations; empty where it does."""
    known = augmentations_of(axes)
    return answer.wrong(tile, exchanging=next((name for name in augmentations if known[name].exchanges), ""))
