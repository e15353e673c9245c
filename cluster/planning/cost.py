"""The cost of a run, computed from its image table: tiles, forward passes, bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import model_grid
from chorus.cluster.planning.resolved_settings import ResolvedSettings, outputs_of
from chorus.cluster.planning.volume_views import VIEWS, turned
from chorus.pipeline.core.fields import FIELDS
from chorus.pipeline.core.geometry import Span
from chorus.pipeline.core.tiling import TileAxis
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.preprocessing.resampling import AxisMap


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a run, computed from the plan.

    Attributes
    ----------
    images, regions : how many
    tiles : evaluated, those that two regions share counted twice; `unique_tiles` counts them once
    forward_passes : tiles times members times augmentations, at most that with adaptive effort
    megapixels : of the segmented planes
    bytes_in, bytes_out : uncompressed
    most_tiles : of any region
    """

    images: int
    regions: int
    tiles: int
    unique_tiles: int
    forward_passes: int
    megapixels: float
    bytes_in: int
    bytes_out: int
    most_tiles: int


def cost(table: ImageTable, ensemble: Ensemble, settings: ResolvedSettings) -> Cost:
    """Return the cost of all images of `table`."""
    tiles, unique, most = tile_counts(table, settings)
    pixels = bytes_in = bytes_out = 0
    given = outputs_of(settings, ensemble)
    channels_out = sum(len(FIELDS[name].channels(given)) for name in settings.save)
    item = np.dtype(settings.dtype).itemsize * channels_out + 1
    examples, kind = table.kinds
    for image, count in zip(examples, np.bincount(kind).tolist(), strict=True):
        pixels += count * image.pixels
        bytes_in += count * image.pixels * len(image.channels) * np.dtype(image.dtype).itemsize
        bytes_out += count * image.pixels * item
    passes = tiles * len(ensemble.spec.members) * len(settings.augmentations)
    return Cost(len(table), table.regions, tiles, unique, passes, pixels / 1e6, bytes_in, bytes_out, most)


def tile_counts(table: ImageTable, settings: ResolvedSettings, region: int | None = None) -> tuple[int, int, int]:
    """Return the tiles of all regions, the tiles of all planes, and the most tiles of a region; for any edge."""
    tiles = unique = most = 0
    examples, kind = table.kinds
    for image, count in zip(examples, np.bincount(kind).tolist(), strict=True):
        for view in [turned(image, name) for name in VIEWS] if settings.volumes == "all" else [image]:
            layers, grid = count * math.prod(view.layers), model_grid(view, settings)
            *depth, height, width = view.grid.sizes
            sizes = (*depth, region or height, region or width)
            axes = [
                _axis_tiles(*axis) for axis in zip(grid.axes, view.layer_shape, view.model_shape, sizes, strict=True)
            ]
            tiles, unique = tiles + layers * math.prod(map(sum, axes)), unique + layers * grid.count
            most = max(most, math.prod(map(max, axes)))
    return tiles, unique, most


def _axis_tiles(axis: TileAxis, length: int, model_length: int, size: int) -> list[int]:
    """Return the tiles that each region needs along one axis; a region needs the product of all axes."""
    back = AxisMap.make(model_length, length)
    spans = [Span(start, min(start + size, length)) for start in range(0, length, size)]
    return [len(axis.touching(back.needed(span))) for span in spans]
