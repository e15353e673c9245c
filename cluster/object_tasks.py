"""What a worker does for the objects of an image; knows nothing of Ray. Every task may be carried out again.

::

    OUT/work/objects/<image name>/
      labels/<class>/s0        names of the objects of a region, one shard each
      rows/00000003.parquet    rows of a region's objects; written after its names: the sign that it is done
      known/<class>-<t>-<z>    names of all objects of a plane, sorted: the first is label 1
      objects.parquet          the image's rows
      counts.json              objects per class; written after these: labels are known
      done.json                the same; written after the label images: the sign that the image is done
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cluster.images import PlannedImage, RegionPlace
from cluster.object_rows import (
    find_rows,
    known_names,
    labelled,
    object_schema,
    region_table,
    sorted_rows,
    table_writer,
    write_rows,
)
from pipeline import storage
from pipeline.arrays import LabelImage, label_plan
from pipeline.containers import put_documents, storage_errors
from pipeline.geometry import Window
from pipeline.instances.regions import ObjectSettings, label_region
from pipeline.instances.stored import StoredPlane
from pipeline.instances.table import numbered, object_rows
from pipeline.layout import ImageLayout
from pipeline.ngff import open_image
from pipeline.outputs import open_labels, prepare_labels, remove_folder, remove_labels, write_labels
from pipeline.pyramid import write_label_pyramid
from pipeline.reading import open_level, read_window

# Doubt that an object gets the mean of, where the run saved it.
DOUBTS = ("uncertainty", "epistemic")


@dataclass(frozen=True)
class ObjectJob:
    """What a worker is told of an image.

    Attributes
    ----------
    layout : of the image's results
    work : URL of its folder, see above
    scratch : URL of the folder of what is not needed in the end; `work`, unless one task does all of the image
    classes : value and name of each class that has objects
    multilabel : see `pipeline.instances.stored.StoredPlane`
    strict : a missing chunk of the source is an error
    """

    image: PlannedImage
    layout: ImageLayout
    work: str
    scratch: str
    classes: tuple[tuple[int, str], ...]
    multilabel: bool
    settings: ObjectSettings
    strict: bool

    @property
    def plane(self) -> tuple[int, int]:
        return self.image.height, self.image.width

    @property
    def doubts(self) -> tuple[str, ...]:
        return tuple(name for name in DOUBTS if name in self.layout.channels)

    @property
    def channels(self) -> range:
        """All channels of the source, also those that the ensemble does not see."""
        return range(self.image.shape[self.image.axes.index("c")] if "c" in self.image.axes else 1)

    @property
    def names_layout(self) -> ImageLayout:
        """Where the names of objects are kept until they are numbered."""
        return replace(self.layout, url=self.scratch, labels_url=self.scratch, labels_ngff="0.5")

    def rows_url(self, region: int) -> str:
        return storage.join(self.scratch, "rows", f"{region:08d}.parquet")

    def known_url(self, class_name: str, t: int, z: int) -> str:
        return storage.join(self.scratch, "known", f"{class_name}-{t}-{z}")

    @property
    def table_url(self) -> str:
        return storage.join(self.work, "objects.parquet")


class ImageObjects(BaseModel):
    """How many objects an image has.

    Attributes
    ----------
    counts : per class
    most : of a class in a plane
    maps : columns of means of the image's table
    """

    model_config = ConfigDict(frozen=True)

    counts: dict[str, int]
    most: dict[str, int]
    maps: list[str]

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def label_image(self, class_name: str) -> LabelImage:
        return LabelImage(class_name, "uint32" if self.most[class_name] <= np.iinfo(np.uint32).max else "uint64")


@dataclass(frozen=True)
class Done:
    """What a task comes back with: the seconds that it took, and the image's objects if it was the image's last."""

    seconds: float
    objects: ImageObjects | None


def timed(function: Callable[..., ImageObjects | None], *arguments: Any) -> Done:
    """Call a task's function."""
    started = time.perf_counter()
    objects = function(*arguments)
    return Done(time.perf_counter() - started, objects)


def find_all(job: ObjectJob) -> ImageObjects:
    """All of an image of few regions; what is only needed on the way stays on this machine."""
    with tempfile.TemporaryDirectory(prefix="chorus-objects-") as folder:
        inside = replace(job, scratch=folder)
        for region in range(job.image.regions):
            find_in_region(inside, region)
        number_objects(inside)
        for region in range(job.image.regions):
            label_pixels(inside, region)
        return finish_objects(inside)


def find_in_region(job: ObjectJob, region: int) -> None:
    """Names and rows of the objects of a region.

    Raises
    ------
    ImageError : results or source cannot be read
    OutputError : storage does not take what was found
    """
    if storage.exists(job.rows_url(region)):
        return
    place = job.image.locate(region)
    plane = StoredPlane(job.layout, place.t, place.z, multilabel=job.multilabel)
    columns = [*job.doubts, *(f"mean:{channel}" for channel in job.channels)]
    tables = []
    for value, name in job.classes:
        found = label_region(partial(plane.crop, value=value), place.window, job.plane, job.settings)
        _write_names(job, name, place, found.names)
        if found.around.any():
            maps = _maps(job, plane, place, found.crop)
        else:  # nothing is read where there is nothing to measure
            maps = [np.broadcast_to(np.float64(0), found.crop.shape)] * len(columns)
        by_number = {str(index): values for index, values in enumerate(maps)}
        tables.append(region_table(object_rows(found, place.window, job.plane, by_number), value, columns))
    write_rows(job.rows_url(region), pa.concat_tables(tables))


def _write_names(job: ObjectJob, name: str, place: RegionPlace, names: NDArray[np.uint64]) -> None:
    layout, label = job.names_layout, LabelImage(name, "uint64")
    put_documents(layout.url, label_plan(layout, label, 0).documents())
    write_labels(layout, label, 0, place.t, place.z, place.window, names)


def _maps(job: ObjectJob, plane: StoredPlane, place: RegionPlace, window: Window) -> list[NDArray[Any]]:
    """What objects get the means of, (y, x) each: doubts, and the channels of the source."""
    array = open_level(job.image.url, job.image.level_path)
    pixels = read_window(array, job.image.axes, place.t, place.z, job.channels, window, strict=job.strict)
    return [*(plane.maps(window, [name])[0] for name in job.doubts), *pixels]


def number_objects(job: ObjectJob) -> None:
    """The image's table, with labels, once all of its regions are done; and its label images, still empty.

    Raises
    ------
    ImageError : the source does not say what its channels are
    OutputError : storage does not take it
    """
    if storage.exists(storage.join(job.scratch, "counts.json")):
        return
    columns = [*job.doubts, *(f"mean:{name}" for name in _channel_names(job))]
    counts = {name: 0 for _, name in job.classes}
    most, schema, per_plane = dict(counts), object_schema(columns), job.image.grid.count
    with table_writer(job.table_url, schema) as writer:
        for first in range(0, job.image.regions, per_plane):
            place = job.image.locate(first)
            regions = find_rows([job.rows_url(region) for region in range(first, first + per_plane)])
            for value, name in job.classes:
                known = known_names(regions, value)
                _write_known(job.known_url(name, place.t, place.z), known)
                label = 1
                for rows in sorted_rows(regions, value, known):
                    of = {"image": job.image.name, "class_name": name}
                    writer.write_table(labelled(rows, label, schema, t=place.t, z=place.z, **of))
                    label += len(rows)
                counts[name] += len(known)
                most[name] = max(most[name], len(known))
    found = ImageObjects(counts=counts, most=most, maps=columns)
    for _, name in job.classes:
        remove_labels(job.layout, name)  # of other settings
        prepare_labels(job.layout, found.label_image(name))
    _write_json(storage.join(job.scratch, "counts.json"), found)


def _channel_names(job: ObjectJob) -> list[str]:
    """Names of the source's channels; with their number where two have the same."""
    image = job.image
    found = open_image(image.root, image.kind, image.path, image.name).channels  # type: ignore[arg-type]
    return [name if found.count(name) == 1 else f"{name}:{index}" for index, name in enumerate(found)]


def _write_known(url: str, known: NDArray[np.uint64]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, known, allow_pickle=False)
    with storage_errors(url):
        storage.write_bytes(url, buffer.getvalue())


def label_pixels(job: ObjectJob, region: int) -> None:
    """Write a region of the label images, once the image's objects are numbered.

    Raises
    ------
    OutputError : storage does not give the names, or does not take the labels
    """
    found, place = read_objects(job.scratch, "counts.json"), job.image.locate(region)
    at: dict[str, int | slice] = {"t": place.t, "z": place.z, "y": place.window.y.slice, "x": place.window.x.slice}
    for _, name in job.classes:
        with storage_errors(job.scratch):
            stored = open_labels(job.scratch, 0, name)[tuple(at[axis] for axis in job.layout.axes)]
            known = np.load(io.BytesIO(storage.read_bytes(job.known_url(name, place.t, place.z))), allow_pickle=False)
        names = np.asarray(stored, dtype=np.uint64)
        labels = numbered(names, known)
        if not np.array_equal(np.concatenate([np.zeros(1, np.uint64), known])[labels], names):
            raise RuntimeError(f"region {region} has an object without a row")
        write_labels(job.layout, found.label_image(name), 0, place.t, place.z, place.window, labels)


def finish_objects(job: ObjectJob) -> ImageObjects:
    """The pyramids of the label images and the sign that the image is done; what led there is removed.

    Raises
    ------
    OutputError : storage does not take it
    """
    found = read_objects(job.scratch, "counts.json")
    for _, name in job.classes:
        write_label_pyramid(job.layout, found.label_image(name))
    _write_json(storage.join(job.work, "done.json"), found)
    with storage_errors(job.scratch):
        for folder in ("labels", "rows", "known"):
            remove_folder(storage.join(job.scratch, folder))
    return found


def read_objects(work: str, name: str = "done.json") -> ImageObjects:
    """How many objects an image has, by the folder of its work."""
    url = storage.join(work, name)
    with storage_errors(url):
        return ImageObjects.model_validate_json(storage.read_bytes(url))


def _write_json(url: str, content: BaseModel) -> None:
    with storage_errors(url):
        storage.write_bytes(url, content.model_dump_json().encode())
