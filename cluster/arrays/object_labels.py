"""Objects of an image whose results are in memory, as `chorus predict` makes them from stored results."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chorus.cluster.arrays.segmenting import Computed, Labels
from chorus.cluster.arrays.sources import ArraySource
from chorus.cluster.objects.inputs import diameter_in, star_settings, typical_diameter
from chorus.cluster.objects.job import distinct, uncertainties_of
from chorus.cluster.objects.labels import ObjectLabels
from chorus.cluster.objects.tasks.rows import labelled, object_schema, region_table
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.planning.resolved_settings import ResolvedSettings
from chorus.cluster.planning.volume_views import spacing_of
from chorus.pipeline.core.fields import FLOW, PROBABILITY, RAY, RAY_VARIATION
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.instances.methods import Method
from chorus.pipeline.instances.plane_objects import PlaneInMemory, ReadMaps, plane_objects, plane_stars
from chorus.pipeline.instances.regions import ObjectSettings
from chorus.pipeline.instances.stars.candidates import StarMaps
from chorus.pipeline.instances.stars.rows import MEASURES
from chorus.pipeline.instances.table import numbered
from chorus.pipeline.io.models import ImageLayout


def object_settings(image: PlannedImage, ensemble: Ensemble, settings: ResolvedSettings) -> ObjectSettings:
    """Return the settings that define the objects of an image."""
    diameter = max(1.0, settings.diameter_px or diameter_in(image, typical_diameter(ensemble)))
    return ObjectSettings(diameter, lengths=ensemble.spec.flow_lengths)


def plane_in_memory(
    maps: NDArray[np.floating[Any]], labels: Labels, layout: ImageLayout, *, multilabel: bool
) -> PlaneInMemory:
    """Return a plane held in memory.

    Parameters
    ----------
    maps : (channels, y, x) floats, in the order of `layout.channels`
    labels : (y, x) unsigned integers, classes
    """
    names = layout.channels
    flows = maps[of_flows] if (of_flows := FLOW.among(names)) else None
    probability = {}
    if multilabel:
        classes = enumerate(layout.classes[1:], 1)
        probability = {value: maps[names.index(PROBABILITY.channel(entry.name))] for value, entry in classes}
    return PlaneInMemory(labels, probability, flows, star_maps(maps, layout))


def star_maps(maps: NDArray[np.floating[Any]], layout: ImageLayout) -> StarMaps | None:
    """Return what stars are made of in a plane; None where there are no rays or no probabilities.

    Parameters
    ----------
    maps : (channels, y, x) floats, in the order of `layout.channels`
    """
    names = layout.channels
    rays, variation = RAY.among(names), RAY_VARIATION.among(names)
    wanted = [PROBABILITY.channel(entry.name) for entry in layout.classes[1:]]
    if not rays or not set(wanted) <= set(names):
        return None
    classes = [names.index(name) for name in wanted]
    whole = Window.of(0, maps.shape[1], 0, maps.shape[2])
    return StarMaps(maps[classes], maps[rays], maps[variation[0]] if variation else None, whole)


def make_objects(
    computed: Computed,
    image: PlannedImage,
    source: ArraySource,
    ensemble: Ensemble,
    settings: ResolvedSettings,
    method: Method,
) -> ObjectLabels:
    """Segment the objects of all planes of an image."""
    layout, chosen = computed.layout, object_settings(image, ensemble, settings)
    uncertainties = uncertainties_of(layout.channels, second_flows=False)
    measures = MEASURES if method == "stars" else ()
    columns = [*uncertainties, *measures, *(f"mean:{name}" for name in distinct(source.image.channels))]
    schema, spacing = object_schema(columns), spacing_of(image, "yx")
    labels: dict[str, Labels] = {entry.name: np.zeros(layout.shape, np.uint32) for entry in layout.classes[1:]}
    tables = [schema.empty_table()]
    for t, z in np.ndindex(image.planes):
        at = tuple({"t": t, "z": z}[axis] for axis in layout.axes[:-2])
        maps = computed.maps[at[:1]] if layout.axes.startswith("t") else computed.maps
        maps = maps[:, z] if "z" in layout.axes else maps
        plane = plane_in_memory(maps, computed.labels[at], layout, multilabel=ensemble.multilabel)
        means = _means(source, t, z, [maps[layout.channels.index(name)] for name in uncertainties])
        shape = (image.height, image.width)
        for value, entry in enumerate(layout.classes[1:], 1):
            if method == "stars" and plane.stars is not None:
                stars = star_settings(image, ensemble.spec.ray_grid, ensemble.spec.rays.objects, chosen.minimum_size)
                objects = plane_stars(plane.stars, shape, value, stars, means, len(uncertainties), spacing)
            else:
                objects = plane_objects(plane, shape, value, method, chosen, means, columns, image.region, spacing)
            known = objects.rows["name"].to_numpy(np.uint64)
            labels[entry.name][at] = numbered(objects.names, known)
            rows = region_table(objects.rows, value, columns)
            tables.append(labelled(rows, 1, schema, (image.name, t, z, entry.name)))
    return ObjectLabels(labels, pa.concat_tables(tables).to_pandas())


def _means(source: ArraySource, t: int, z: int, uncertainties: list[NDArray[np.floating[Any]]]) -> ReadMaps:
    """Return a reader of uncertainty maps and channels of a plane; it caches the last window for the next class."""

    @lru_cache(maxsize=1)
    def read(window: Window) -> list[NDArray[Any]]:
        own = [values[window.y.slice, window.x.slice] for values in uncertainties]
        return [*own, *source.all_channels(t, z, window)]

    return read
