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
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from chorus.cluster.objects.job import ObjectJob, VolumePiecesJob
from chorus.cluster.objects.records import ImageObjects, StoredObjects, write_json
from chorus.cluster.objects.tasks.finding import find_in_region
from chorus.cluster.objects.tasks.numbering import counted_objects, label_pixels, number_objects
from chorus.cluster.objects.tasks.stars import StarJob, every_region
from chorus.cluster.objects.tasks.volume_components import find_pieces_of_block
from chorus.pipeline.io import storage
from chorus.pipeline.io.durable import passing
from chorus.pipeline.io.outputs.pyramid import write_label_pyramid
from chorus.pipeline.io.storage import remove_folder
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.io.stored_files import StoredFiles, stored_below

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


def find_all_pieces(job: VolumePiecesJob) -> ImageObjects:
    """Run all stages of an image of few blocks whose objects are made of pieces in volumes."""
    return at_once(job, find_pieces_of_block, number_objects, label_pixels)


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
