"""Pixel statistics, measured before inference where the members' inputs need them, and stored with the plan."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from chorus.cluster.planning.plan import RunContext
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.pipeline.core.geometry import RegionGrid, TileSize, Window
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.io import storage
from chorus.pipeline.io.sources.reading import open_level, read_window
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.preprocessing.preparation import Measure, Statistics, Survey
from chorus.pipeline.preprocessing.sketches import Corner

ReadPlane = Callable[[int, int, Window], NDArray[Any]]
"""Gives (channels, *window) of a window of plane (t, z), or of volume t, those channels that the members see."""
_FOUND = TypeAdapter(list[tuple[Measure, float]])
# Edge of the blocks in which an image is read for its statistics; any value gives the same ones.
_BLOCK = 2048
_BLOCK_OF_VOLUME = (64, 256, 256)


def measures_of(ensemble: Ensemble, tile: TileSize, per: str) -> frozenset[Measure]:
    """Return the statistics that the members' inputs need, ``per`` image or data set."""
    return frozenset(m for m in ensemble.inputs(range(len(ensemble.spec.members)), tile).measures if m.per == per)


def measure_image(context: RunContext, image: PlannedImage, ensemble: Ensemble) -> None:
    """Measure an image's statistics and store them; raise ImageError where a pixel is not a finite number."""
    url = context.statistics_url(image.name)
    measures = measures_of(ensemble, context.settings.tile, "image")
    if (stored := stored_statistics(url)) is not None and measures <= stored.keys():
        return
    _write(url, measured(image, measures, stored_pixels(image, strict=context.settings.strict)))


def measured(image: PlannedImage, measures: frozenset[Measure], read: ReadPlane) -> Statistics:
    """Compute `measures` over all planes of an image; raise ImageError where a pixel is not a finite number.

    Parameters
    ----------
    read : gives its pixels; see `stored_pixels`
    """
    survey = Survey.begin(measures, len(image.channels), image.dtype)
    while not survey.complete:
        for corner, block in _blocks(image, read):
            survey.update(block, corner)
        survey = survey.conclude()
    return survey.values


def survey_image(context: RunContext, image: PlannedImage, survey: Survey) -> Survey:
    """Return a copy of `survey` (empty) after one pass over an image; raise ImageError at a non-finite pixel."""
    survey = copy.deepcopy(survey)
    for corner, block in _blocks(image, stored_pixels(image, strict=context.settings.strict)):
        survey.update(block, corner)
    return survey


def write_dataset_statistics(context: RunContext, survey: Survey) -> None:
    """Store what was found over all images of the run."""
    _write(context.dataset_url, survey.values)


def image_statistics(context: RunContext, image: PlannedImage, ensemble: Ensemble) -> Statistics:
    """Return all statistics measured for an image: its own and those of the data set."""
    tile = context.settings.tile
    known: dict[Measure, float] = {}
    if measures_of(ensemble, tile, "image"):
        known |= _read(context.statistics_url(image.name), context.session)
    if measures_of(ensemble, tile, "dataset"):
        known |= _read(context.dataset_url, context.session)
    return known


def stored_pixels(image: PlannedImage, *, strict: bool) -> ReadPlane:
    """Return a function that reads a stored image's pixels; see `chorus.pipeline.io.sources.reading.read_window`."""
    array = open_level(image.url, image.level_path, image.ngff)

    def read(t: int, z: int, window: Window) -> NDArray[Any]:
        return read_window(array, image.axes, t, z, image.channels, window, strict=strict, source=True)

    return read


def _blocks(image: PlannedImage, read: ReadPlane) -> Iterator[tuple[Corner, NDArray[Any]]]:
    """Yield blocks of planes that cover the image, each with the (t, z, y, x) of its first pixel."""
    times, depths = image.layers
    grid = RegionGrid.make(image.layer_shape, _BLOCK_OF_VOLUME if image.model_depth else _BLOCK)
    for t in range(times):
        for z in range(depths):
            for index in range(grid.count):
                window = grid.window(index)
                block, y, x = read(t, z, window), window.y.start, window.x.start
                if not image.model_depth:
                    yield (t, z, y, x), block
                    continue
                for plane in range(block.shape[1]):
                    yield (t, window.spans[0].start + plane, y, x), block[:, plane]


def _write(url: str, statistics: Statistics) -> None:
    with storage_errors(url):
        storage.write_bytes(url, _FOUND.dump_json(sorted(statistics.items())))


@lru_cache(maxsize=256)
def _read(url: str, session: str) -> dict[Measure, float]:
    """Read once per session: a later run of the same process may have other statistics at the same place."""
    return dict(_FOUND.validate_json(storage.read_bytes(url)))


def stored_statistics(url: str) -> Statistics | None:
    """Return the statistics that a session stored; None where there are none, or their file is damaged."""
    with storage_errors(url):
        if not storage.exists(url):
            return None
        data = storage.read_bytes(url)
    try:
        return dict(_FOUND.validate_json(data))
    except ValidationError:
        return None
