"""Find the objects of a region: names of their pixels, and a row for each."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chorus.cluster.objects.job import MapJob, ObjectJob
from chorus.cluster.objects.tasks.components import edges_of, write_pieces
from chorus.cluster.objects.tasks.map_pieces import find_pieces, zones_of
from chorus.cluster.objects.tasks.rows import region_table, write_rows
from chorus.cluster.objects.tasks.stars import StarJob, star_table, stars_in_region
from chorus.cluster.planning.planned_image import RegionPlace
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.components import RegionPieces, around, label_pieces
from chorus.pipeline.instances.maps.pieces import plane_pieces
from chorus.pipeline.instances.measures import measured_rows
from chorus.pipeline.instances.plane_objects import converging_objects, converging_rows
from chorus.pipeline.instances.stored import StoredPlane
from chorus.pipeline.instances.table import with_shapes
from chorus.pipeline.io import storage
from chorus.pipeline.io.outputs.arrays import LabelImage, label_plan
from chorus.pipeline.io.outputs.groups import put_documents
from chorus.pipeline.io.outputs.writer import write_labels
from chorus.pipeline.io.sources.reading import open_level, read_window


def find_in_region(job: ObjectJob, region: int) -> None:
    """Write names and rows of the objects of a region.

    Raises
    ------
    ImageError
        If results or source cannot be read.
    OutputError
        If the result cannot be written.
    """
    if storage.exists(job.rows_url(region)):
        return
    location = job.locate(region)
    plane = StoredPlane(job.layout, location.t, location.z, least=job.least, flows=job.flows)
    if job.of_pieces:
        tables = _pieces(job, plane, location, region)
    elif isinstance(job, StarJob):
        tables = _stars(job, plane, location, region)
    else:
        tables = [_converging(job, plane, location, value, name) for value, name in job.classes]
    write_rows(job.rows_url(region), pa.concat_tables(tables))


def _converging(job: ObjectJob, plane: StoredPlane, location: RegionPlace, value: int, name: str) -> pa.Table:
    """Rows of the objects of a class whose pixels' paths meet, along flows or away from the background."""
    method: Any = job.method
    objects = converging_objects(plane, location.window, job.plane, value, method, job.settings)
    write_names(job, name, location, objects.names)
    columns = columns_of(job)
    maps = partial(_maps, job, plane, location, value=value)
    rows = converging_rows(objects, location.window, job.plane, method, maps, len(columns), job.spacing)
    return region_table(rows, value, columns)


def _stars(job: StarJob, plane: StoredPlane, location: RegionPlace, region: int) -> list[pa.Table]:
    """Return rows of the objects of all classes, which are found together."""
    found, columns, tables = stars_in_region(job, location, region), columns_of(job), []
    read = cache(partial(_maps, job, plane, location, value=job.classes[0][0]))  # the same for all classes
    for value, name in job.classes:
        write_names(job, name, location, found.of_class(value).names)
        tables.append(star_table(job, found, location, value, columns, read))
    return tables


def _pieces(job: ObjectJob, plane: StoredPlane, location: RegionPlace, region: int) -> list[pa.Table]:
    """Return rows of objects inside the region; write pieces of others, which are joined after all regions."""
    read = cache(lambda: _maps(job, plane, location, location.window, job.classes[0][0]))  # the same for all classes
    columns, pieces, edges = columns_of(job), dict[int, RegionPieces](), dict[str, NDArray[Any]]()
    for value, name in job.classes:
        if isinstance(job, MapJob):
            found = find_pieces(job, plane, value, name, region)
            pieces[value] = plane_pieces(found, location.window, read, job.settings.minimum_size)
            edges |= zones_of(value, found)
        else:
            foreground = plane.foreground(around(location.window, job.plane), value)
            pieces[value] = label_pieces(foreground, location.window, job.plane, read, job.settings.minimum_size)
            edges |= edges_of({value: pieces[value]})
        write_names(job, name, location, pieces[value].names)
    if job.grid.count > 1:
        write_pieces(job, region, {value: one.cut for value, one in pieces.items()}, edges)
    tables = []
    for value, one in pieces.items():
        rows = measured_rows(one.whole, job.plane, columns)
        rows = with_shapes(rows, one.names, rows["name"].to_numpy(np.uint64), location.window, job.spacing)
        tables.append(region_table(rows, value, columns))
    return tables


def columns_of(job: ObjectJob) -> list[str]:
    """Return the columns of means, channels by their numbers."""
    return [*job.uncertainties, *job.measures, *(f"mean:{channel}" for channel in job.channels)]


def write_names(job: ObjectJob, name: str, location: RegionPlace, names: NDArray[np.uint64]) -> None:
    """Write the names of the objects of a region of a class."""
    layout, label = job.names_layout, LabelImage(name, "uint64")
    put_documents(layout.url, label_plan(layout, label, 0).documents())
    write_labels(layout, label, 0, location.t, location.z, location.window, names)


def _maps(job: ObjectJob, plane: StoredPlane, location: RegionPlace, window: Window, value: int) -> list[NDArray[Any]]:
    """Read the maps whose means objects get, (y, x) each: uncertainties, and the channels of the source."""
    array = open_level(job.image.url, job.image.level_path)
    pixels = read_window(array, job.image.axes, location.t, location.z, job.channels, window, strict=job.strict)
    return [*(plane.uncertainty(name, window, value) for name in job.uncertainties), *pixels]
