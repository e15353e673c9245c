"""The tasks of a worker for the objects of an image; independent of Ray. Every task may safely be repeated.

::

    OUT/work/objects/<image name>/
      labels/<class>/s0        names of the objects of a region, one shard each
      rows/00000003.parquet    rows of a region's objects; written after its names: the sign that it is done
      pieces/00000003.*        of objects that are joined: sums of the pieces at the region's borders
      known/<class>-<t>-<z>    names of all objects of a plane, sorted: the first is label 1
      objects.parquet          the image's rows
      counts.json              objects per class; written after these: labels are known
      done.json                the same; written after the label images: the sign that the image is done
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chorus.cluster.objects.components import edges_of, joined_components, joined_names, unite_pieces, write_pieces
from chorus.cluster.objects.job import MapJob, ObjectJob, channel_names
from chorus.cluster.objects.map_pieces import find_pieces, joined_maps, zones_of
from chorus.cluster.objects.records import ImageObjects, StoredObjects, recorded_objects, write_json
from chorus.cluster.objects.rows import (
    find_rows,
    known_names,
    labelled,
    object_schema,
    read_known,
    region_table,
    sorted_rows,
    table_writer,
    write_known,
    write_rows,
)
from chorus.cluster.objects.star_tasks import StarJob, every_region, star_table, stars_in_region
from chorus.cluster.planning.planned_image import RegionPlace
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import OutputError
from chorus.pipeline.instances.components import RegionPieces, around, label_pieces
from chorus.pipeline.instances.maps.pieces import plane_pieces
from chorus.pipeline.instances.measures import measured_rows
from chorus.pipeline.instances.plane_objects import converging_objects, converging_rows
from chorus.pipeline.instances.stored import StoredPlane
from chorus.pipeline.instances.table import numbered, with_shapes
from chorus.pipeline.io import storage
from chorus.pipeline.io.durable import passing
from chorus.pipeline.io.outputs.arrays import LabelImage, label_plan
from chorus.pipeline.io.outputs.groups import put_documents
from chorus.pipeline.io.outputs.pyramid import write_label_pyramid
from chorus.pipeline.io.outputs.writer import open_labels, prepare_labels, remove_labels, write_labels
from chorus.pipeline.io.sources.reading import open_level, read_window
from chorus.pipeline.io.storage import remove_folder
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.io.stored_files import StoredFiles, stored_below

COUNTS = "counts.json"
Job = TypeVar("Job", bound=ObjectJob)


@dataclass(frozen=True)
class Done:
    """The result of a task: its seconds, and the image's objects if it was the image's last task."""

    seconds: float
    objects: ImageObjects | None


def timed(function: Callable[..., ImageObjects | None], *arguments: Any) -> Done:
    """Call a task's function and measure its time."""
    started = time.perf_counter()
    objects = function(*arguments)
    return Done(time.perf_counter() - started, objects)


def find_all(job: ObjectJob) -> ImageObjects:
    """Run all stages of an image of few regions."""
    return at_once(job, find_in_region, number_objects, label_pixels)


def find_all_stars(job: StarJob) -> ImageObjects:
    """Run all stages of an image of few regions whose objects are stars."""

    def find(inside: StarJob, region: int) -> None:
        if region == 0 and inside.image.grid.count > 1:
            every_region(inside)
        find_in_region(inside, region)

    return at_once(job, find, number_objects, label_pixels)


def at_once(
    job: Job, find: Callable[[Job, int], None], number: Callable[[Job], None], label: Callable[[Job, int], None]
) -> ImageObjects:
    """Run all stages of an image in this process; temporary files stay on this machine."""
    with tempfile.TemporaryDirectory(prefix="chorus-objects-") as folder, passing(folder):
        inside = replace(job, scratch=folder)
        for region in range(job.tasks("regions")):
            find(inside, region)
        number(inside)
        for part in range(job.tasks("labels")):
            label(inside, part)
        return finish_objects(inside)


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
    _write_names(job, name, location, objects.names)
    columns = columns_of(job)
    maps = partial(_maps, job, plane, location, value=value)
    rows = converging_rows(objects, location.window, job.plane, method, maps, len(columns), job.spacing)
    return region_table(rows, value, columns)


def _stars(job: StarJob, plane: StoredPlane, location: RegionPlace, region: int) -> list[pa.Table]:
    """Return rows of the objects of all classes, which are found together."""
    found, columns, tables = stars_in_region(job, location, region), columns_of(job), []
    read = cache(partial(_maps, job, plane, location, value=job.classes[0][0]))  # the same for all classes
    for value, name in job.classes:
        _write_names(job, name, location, found.of_class(value).names)
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
        _write_names(job, name, location, pieces[value].names)
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


def _write_names(job: ObjectJob, name: str, location: RegionPlace, names: NDArray[np.uint64]) -> None:
    layout, label = job.names_layout, LabelImage(name, "uint64")
    put_documents(layout.url, label_plan(layout, label, 0).documents())
    write_labels(layout, label, 0, location.t, location.z, location.window, names)


def _maps(job: ObjectJob, plane: StoredPlane, location: RegionPlace, window: Window, value: int) -> list[NDArray[Any]]:
    """Read the maps whose means objects get, (y, x) each: uncertainties, and the channels of the source."""
    array = open_level(job.image.url, job.image.level_path)
    pixels = read_window(array, job.image.axes, location.t, location.z, job.channels, window, strict=job.strict)
    return [*(plane.uncertainty(name, window, value) for name in job.uncertainties), *pixels]


@dataclass(frozen=True)
class Numbered:
    """A plane, or a volume at a time point, whose objects are numbered from 1.

    Attributes
    ----------
    t, z : where it is; z is 0 for a volume
    coordinates : values of the columns between image and class in ``objects.parquet``
    rows : URLs of the tables of its regions
    """

    t: int
    z: int
    coordinates: tuple[int, ...]
    rows: list[str]


def number_objects(job: ObjectJob) -> None:
    """Write the image's table with labels, after all of its regions, and create its empty label images.

    Raises
    ------
    ImageError
        If the source's metadata do not describe its channels.
    OutputError
        If the result cannot be written.
    """
    write_numbered(job, object_schema, _planes(job))


def _planes(job: ObjectJob) -> Iterator[Numbered]:
    per_plane = job.grid.count
    for first in range(0, job.tasks("regions"), per_plane):
        location = job.locate(first)
        urls = [job.rows_url(region) for region in range(first, first + per_plane)]
        if job.of_pieces and per_plane > 1:
            join = joined_maps if isinstance(job, MapJob) else joined_components
            urls.append(unite_pieces(job, first, columns_of(job), join))
        yield Numbered(location.t, location.z, (location.t, location.z), urls)


def write_numbered(job: ObjectJob, schema_of: Callable[[Sequence[str]], pa.Schema], parts: Iterable[Numbered]) -> None:
    """Write numbers of the objects of an image: its table, ``counts.json`` and empty label images.

    Parameters
    ----------
    schema_of : takes the columns of means, and returns the schema of the table
    parts : all of the image, each given out when those before it are numbered
    """
    if recorded_objects(job.scratch, COUNTS) is not None:
        return
    columns = [*job.uncertainties, *job.measures, *(f"mean:{name}" for name in channel_names(job))]
    counts = {name: 0 for _, name in job.classes}
    most, schema = dict(counts), schema_of(columns)
    with table_writer(job.table_url, schema) as writer:
        for part in parts:
            regions = find_rows(part.rows)
            for value, name in job.classes:
                known = known_names(regions, value)
                write_known(job.known_url(name, part.t, part.z), known)
                label = 1
                for rows in sorted_rows(regions, value, known):
                    writer.write_table(labelled(rows, label, schema, (job.image.name, *part.coordinates, name)))
                    label += len(rows)
                counts[name] += len(known)
                most[name] = max(most[name], len(known))
    objects = ImageObjects(counts=counts, most=most, maps=columns)
    for _, name in job.classes:
        remove_labels(job.layout, name)  # made with other settings
        prepare_labels(job.layout, objects.label_image(name))
    write_json(storage.join(job.scratch, COUNTS), objects)


def counted_objects(job: ObjectJob) -> ImageObjects:
    """Return the number of objects of an image after they are numbered; raise OutputError if that is damaged."""
    objects = recorded_objects(job.scratch, COUNTS)
    if objects is None:
        raise OutputError(f"{storage.join(job.scratch, COUNTS)}: is damaged; run the same command again")
    return objects


def write_numbers(
    job: ObjectJob,
    image: LabelImage,
    t: int,
    z: int,
    window: Window,
    names: NDArray[np.uint64],
    known: NDArray[np.uint64],
) -> None:
    """Write labels of a window of a plane: numbers in the place of names.

    Parameters
    ----------
    names : (y, x) uint64, names of objects, 0 is background
    known : (objects,) uint64, see `read_known`

    Raises
    ------
    OutputError
        If they cannot be written.
    RuntimeError
        If a name is not known.
    """
    labels = numbered(names, known)
    if not np.array_equal(np.concatenate([np.zeros(1, np.uint64), known])[labels], names):
        raise RuntimeError(f"plane t {t}, z {z} of {job.image.name} has an object without a row")
    write_labels(job.layout, image, 0, t, z, window, labels)


def label_pixels(job: ObjectJob, region: int) -> None:
    """Write a region of the label images, after the image's objects are numbered.

    Raises
    ------
    OutputError
        If the names cannot be read, or the labels not written.
    """
    objects, location = counted_objects(job), job.image.locate(region)
    at: dict[str, int | slice] = {
        "t": location.t,
        "z": location.z,
        "y": location.window.y.slice,
        "x": location.window.x.slice,
    }
    for _, name in job.classes:
        known = read_known(job.known_url(name, location.t, location.z))
        with storage_errors(job.scratch):
            stored = open_labels(job.scratch, 0, name)[tuple(at[axis] for axis in job.layout.axes)]
        names = np.asarray(stored, dtype=np.uint64)
        if job.of_pieces and job.grid.count > 1:
            names = joined_names(job.joined_url(name, location.t, location.z), names)
        write_numbers(job, objects.label_image(name), location.t, location.z, location.window, names, known)


def finish_objects(job: ObjectJob) -> ImageObjects:
    """Write the pyramids of the label images and the sign that the image is done; remove temporary files.

    Raises
    ------
    OutputError
        If the result cannot be written.
    """
    objects = counted_objects(job)
    for _, name in job.classes:
        with storage_errors(job.layout.labels_url):
            # Of processes that were killed: nobody else writes to this image any more.
            storage.remove_partial_files(storage.join(job.layout.labels_url, "labels", name))
        write_label_pyramid(job.layout, objects.label_image(name))
    files: StoredFiles = {}
    for _, name in job.classes:
        label = objects.label_image(name)
        files |= stored_below(storage.join(job.layout.labels_url, label.path), label.path)
    write_json(job.record, StoredObjects(objects=objects, files=files))
    write_json(storage.join(job.work, "done.json"), objects)
    with storage_errors(job.scratch):
        for folder in ("labels", "rows", "pieces", "known", "reach"):
            remove_folder(storage.join(job.scratch, folder))
    return objects
