"""Number the objects of an image from 1: its table, and label images in the place of names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chorus.cluster.objects.job import MapJob, ObjectJob, VolumeMapJob, VolumePiecesJob, channel_names
from chorus.cluster.objects.records import ImageObjects, recorded_objects, write_json
from chorus.cluster.objects.tasks.components import PLANES, joined_names, reader_of_names, unite_pieces
from chorus.cluster.objects.tasks.finding import columns_of
from chorus.cluster.objects.tasks.map_pieces import MAPS
from chorus.cluster.objects.tasks.rows import (
    find_rows,
    known_names,
    labelled,
    object_schema,
    read_known,
    sorted_rows,
    table_writer,
    volume_schema,
    write_known,
)
from chorus.cluster.objects.tasks.volume_components import VOLUME_MAPS, VOLUMES
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import OutputError
from chorus.pipeline.instances.table import numbered
from chorus.pipeline.io import storage
from chorus.pipeline.io.outputs.arrays import LabelImage
from chorus.pipeline.io.outputs.writer import prepare_labels, remove_labels, write_labels

COUNTS = "counts.json"


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
    write_numbered(job, volume_schema if isinstance(job, VolumePiecesJob) else object_schema, _parts(job))


def _parts(job: ObjectJob) -> Iterator[Numbered]:
    count, volumes = job.grid.count, isinstance(job, VolumePiecesJob)
    if volumes:
        union = VOLUME_MAPS if isinstance(job, VolumeMapJob) else VOLUMES
    else:
        union = MAPS if isinstance(job, MapJob) else PLANES
    for first in range(0, job.tasks("regions"), count):
        place = job.locate(first)
        urls = [job.rows_url(region) for region in range(first, first + count)]
        if job.of_pieces and count > 1:
            urls.append(unite_pieces(job, first, columns_of(job), union))
        yield Numbered(place.t, place.z, (place.t,) if volumes else (place.t, place.z), urls)


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
    objects, place = counted_objects(job), job.image.locate(region)
    for _, name in job.classes:
        known = read_known(job.known_url(name, place.t, place.z))
        names = reader_of_names(job, name, place)(place.window)
        if job.of_pieces and job.grid.count > 1:
            names = joined_names(job.joined_url(name, place.t, place.z), names)
        write_numbers(job, objects.label_image(name), place.t, place.z, place.window, names, known)
