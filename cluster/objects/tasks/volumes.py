"""The tasks of a worker for the objects of a volume: as `chorus.cluster.objects.tasks.stages` for planes, in blocks.

::

    OUT/work/objects/<image name>/
      labels/<class>/<t>       names of the objects of a block, one shard each
      rows/00000003.parquet    rows of a block's objects; written after its names: the sign that it is done
      known/<class>-<t>-0      names of all objects of a time point, sorted: the first is label 1
      objects.parquet          the image's rows
      counts.json, done.json   as for planes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray

from chorus.cluster.objects.job import VolumeJob
from chorus.cluster.objects.records import ImageObjects
from chorus.cluster.objects.tasks.finding import columns_of
from chorus.cluster.objects.tasks.numbering import Numbered, counted_objects, write_numbered, write_numbers
from chorus.cluster.objects.tasks.rows import block_table, read_known, volume_schema, write_rows
from chorus.cluster.objects.tasks.stages import at_once
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.volumes.blocks import Box
from chorus.pipeline.instances.volumes.regions import label_block
from chorus.pipeline.instances.volumes.stored import StoredVolume
from chorus.pipeline.instances.volumes.table import volume_rows
from chorus.pipeline.io import storage
from chorus.pipeline.io.opened_arrays import open_array
from chorus.pipeline.io.outputs.groups import put_documents
from chorus.pipeline.io.outputs.writer import put_array
from chorus.pipeline.io.sources.reading import open_level, read_window
from chorus.pipeline.io.storage_failures import storage_errors


def find_all_in_volume(job: VolumeJob) -> ImageObjects:
    """Run all stages of an image of few blocks."""
    return at_once(job, find_in_block, number_volume, label_voxels)


def find_in_block(job: VolumeJob, index: int) -> None:
    """Write names and rows of the objects of a block.

    Raises
    ------
    ImageError
        If results or source cannot be read.
    OutputError
        If the result cannot be written.
    """
    if storage.exists(job.rows_url(index)):
        return
    t, box = job.block(index)
    settings = job.dynamics
    stored = StoredVolume(job.layout, t, least=job.least, anisotropy=settings.anisotropy)
    source = cache(lambda: open_level(job.image.url, job.image.level_path))
    columns, tables = columns_of(job), []
    for value, name in job.classes:
        objects = label_block(partial(stored.crop, value=value), box, job.shape, settings)
        plan = job.names_plan(name, t)
        put_documents(job.scratch, plan.documents())
        put_array(job.scratch, plan, {"z": box.z.slice, "y": box.y.slice, "x": box.x.slice}, objects.names)
        maps = partial(_maps, job, stored, source, t, objects.crop)
        rows = volume_rows(objects, box, job.shape, columns, maps, job.spacing)
        tables.append(block_table(rows, value, columns))
    write_rows(job.rows_url(index), pa.concat_tables(tables))


def _maps(
    job: VolumeJob, stored: StoredVolume, source: Callable[[], zarr.Array[Any]], t: int, crop: Box, plane: int
) -> list[NDArray[Any]]:
    """Read the maps whose means objects get, (y, x) each of a plane of `crop`: uncertainties, and source channels."""
    z = crop.z.start + plane
    pixels = read_window(source(), job.image.axes, t, z, job.channels, crop.window, strict=job.strict)
    box = Box.of(z, z + 1, crop.y.start, crop.y.stop, crop.x.start, crop.x.stop)
    return [*stored.maps(box, job.uncertainties)[:, 0], *pixels]


def number_volume(job: VolumeJob) -> None:
    """Write the image's table with labels, after all of its blocks, and create its empty label images.

    Raises
    ------
    ImageError
        If the source's metadata do not describe its channels.
    OutputError
        If the result cannot be written.
    """
    blocks = job.blocks.count
    urls = [[job.rows_url(t * blocks + index) for index in range(blocks)] for t in range(job.image.planes[0])]
    write_numbered(job, volume_schema, (Numbered(t, 0, (t,), rows) for t, rows in enumerate(urls)))


def label_voxels(job: VolumeJob, index: int) -> None:
    """Write a slab of the label images, after the image's objects are numbered.

    Raises
    ------
    OutputError
        If the names cannot be read, or the labels not written.
    """
    objects, (t, box) = counted_objects(job), job.slab(index)
    for _, name in job.classes:
        known = read_known(job.known_url(name, t, 0))
        for z, names in _stored_names(job, name, t, box):
            write_numbers(job, objects.label_image(name), t, z, box.window, names, known)


def _stored_names(job: VolumeJob, name: str, t: int, box: Box) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    window: Window = box.window
    with storage_errors(job.scratch):
        store = storage.store(job.scratch, read_only=True)
        array = open_array(store, job.names_plan(name, t).path)
        for z in range(box.z.start, box.z.stop):
            yield z, np.asarray(array[z, window.y.slice, window.x.slice], dtype=np.uint64)
