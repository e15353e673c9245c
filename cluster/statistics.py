"""Statistics of whole images, taken before inference where the normalisation needs them, and kept with the plan."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from cluster.images import PlannedImage
from cluster.plan import RunContext
from pipeline import storage
from pipeline.containers import storage_errors
from pipeline.ensemble import Ensemble
from pipeline.geometry import RegionGrid
from pipeline.normalisation import (
    dtype_divisor,
    fixed_scaling,
    image_statistics,
    needs_statistics,
)
from pipeline.reading import open_level, read_window
from pipeline.sketches import ChannelScaling

_SCALING = TypeAdapter(ChannelScaling)
# Edge of the blocks in which an image is read for its statistics; any value gives the same ones.
_BLOCK = 2048


def measure_image(context: RunContext, image: PlannedImage, ensemble: Ensemble) -> None:
    """Take an image's statistics and keep them; raises ImageError where a pixel is not a number."""
    url = context.statistics_url(image.name)
    if storage.exists(url):
        return
    array = open_level(image.url, image.level_path)
    times, depths = image.planes
    grid = RegionGrid(image.height, image.width, _BLOCK)

    def blocks() -> Iterator[NDArray[np.generic]]:
        for t in range(times):
            for z in range(depths):
                for index in range(grid.count):
                    window = grid.window(index)
                    yield read_window(array, image.axes, t, z, image.channels, window, strict=context.settings.strict)

    scaling = image_statistics(blocks, ensemble.spec.input.normalisation, len(image.channels))
    with storage_errors(url):
        storage.write_bytes(url, _SCALING.dump_json(scaling))


def image_scaling(context: RunContext, image: PlannedImage, ensemble: Ensemble) -> ChannelScaling:
    """How the image's pixels are normalised: by fixed values, or by its own statistics taken before."""
    entry = ensemble.spec.input
    if needs_statistics(entry.normalisation):
        return _read(context.statistics_url(image.name), context.session)
    divisor = dtype_divisor(image.dtype) if entry.scale == "dtype" else 1.0
    return fixed_scaling(entry.normalisation, len(image.channels), divisor)


@lru_cache(maxsize=256)
def _read(url: str, session: str) -> ChannelScaling:
    """Read once per session: a later run of the same process may have other statistics at the same place."""
    return _SCALING.validate_json(storage.read_bytes(url))
