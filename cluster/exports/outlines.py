"""A run of ``chorus export rois`` or ``geojson``: the objects of every image in a file of their own, in parallel."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from chorus.cluster.objects.run import RECORD, TABLE
from chorus.cluster.planning.image_table import PlannedImage
from chorus.cluster.planning.requests import Outcome
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.started_tasks import Executor, rows_of_calls
from chorus.cluster.runtime.tasks import TaskResult, attempt
from chorus.cluster.state.documents import PredictRecord
from chorus.cluster.state.results import finished_run, planned_images
from chorus.pipeline.errors import ImageError, OutputError, RefusedError
from chorus.pipeline.exports.files import remove_file
from chorus.pipeline.exports.geojson import write_geojson
from chorus.pipeline.exports.outlines import LabelledImage, ObjectTable, doubt_column, outlines
from chorus.pipeline.exports.rois import write_rois
from chorus.pipeline.exports.tables import write_by_doubt, write_table
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.models import ClassInfo
from chorus.pipeline.io.sources.level_geometry import place_of
from chorus.pipeline.io.sources.ngff import open_image
from chorus.pipeline.io.storage import storage_errors
from chorus.pipeline.report.documents import classes_of

SUFFIX = {"rois": ".zip", "geojson": ".geojson"}
IMAGES, BY_DOUBT = "images.csv", "by_doubt.csv"
_COLUMNS = ["image", "file", "status", "objects", "message"]
# Maximum of images per task: they share what is read of the table.
_MOST = 64
# Maximum of rows of a task that are read at once.
_HELD = 1 << 17


class ExportRequest(BaseModel):
    """Objects to export.

    Attributes
    ----------
    out : URL of the results of a run, after `chorus objects`
    to : URL of the folder that gets a file per image
    kind : of the files
    color : of objects; None is by uncertainty (``doubt``) if the run saved it, else by class
    object_type : of QuPath
    executor, address : as in `chorus.cluster.planning.settings.RunSettings`
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    to: str
    kind: Literal["rois", "geojson"]
    color: Literal["class", "doubt"] | None = None
    object_type: Literal["detection", "annotation"] = "detection"
    executor: Executor = "auto"
    address: str | None = None


@dataclass(frozen=True)
class ExportJob:
    """The export of one image, as a worker receives it: its rows of ``objects.parquet``, and the URL of its file."""

    image: PlannedImage
    classes: tuple[ClassInfo, ...]
    table: ObjectTable
    column: str | None
    labels_url: str
    url: str
    request: ExportRequest


def check_apart(out: str, to: str) -> None:
    """Raise RefusedError if exports cannot be written to `to`, or `to` is the folder of the results itself."""
    storage.check_writable(to)
    if to == out:
        raise RefusedError(f"--out {to}: is the folder of the results; choose another one")


class Objects:
    """The results of ``chorus objects`` in `out`.

    Raises
    ------
    RefusedError
        If it has not been run, or not to its end.
    """

    def __init__(self, out: str) -> None:
        self.out, self.url = out, storage.join(out, TABLE)
        record = storage.join(out, RECORD)
        with storage_errors(out):
            if not (storage.exists(record) and storage.exists(self.url)):
                raise RefusedError(f"{out}: has no objects; run `chorus objects {out}` first")
            content: dict[str, Any] = json.loads(storage.read_bytes(record))
            fs, path = storage.filesystem(self.url)
            with fs.open(path, "rb") as file:
                found = pq.ParquetFile(file)
                self.schema: pa.Schema = found.schema_arrow
                rows = found.metadata.num_rows
        self.images: list[dict[str, Any]] = content.get("images", [])
        done = [row for row in self.images if row["status"] == "done"]
        self.counts = np.array([sum(row["objects"].values()) for row in done], np.int64)
        if content["outcome"] not in ("complete", "failures") or int(self.counts.sum()) != rows:
            raise RefusedError(f"{out}: its objects are not complete; run `chorus objects {out}` again")
        starts = np.cumsum(self.counts) - self.counts
        self._rows = {row["name"]: (int(a), int(a + n)) for row, a, n in zip(done, starts, self.counts, strict=True)}
        self.column = doubt_column(self.schema.names)
        self.all = ObjectTable(self.url, 0, rows)

    def of(self, image: str) -> ObjectTable:
        """Return the rows of an image whose objects are done."""
        return ObjectTable(self.url, *self._rows[image])


def export_objects(request: ExportRequest, reporter: Reporter, only: Collection[str] | None = None) -> Outcome:
    """Write a file per image, ``images.csv``, and ``by_doubt.csv``, a list of all objects.

    A row of the outcome is an image: ``image``, ``file`` (below `to`, None if there is none), ``status`` (``done``;
    ``empty``, it has no objects; ``failed``; ``open`` if the run was interrupted before it), ``objects``, ``message``.

    Parameters
    ----------
    only : names of the images to export, without ``by_doubt.csv``; None is all

    Raises
    ------
    RefusedError
        Before any work: `out` has no objects, or not the uncertainty that is asked for.
    """
    request = request.model_copy(update={"out": storage.normalise(request.out), "to": storage.normalise(request.to)})
    check_apart(request.out, request.to)
    run, objects = finished_run(request.out), Objects(request.out)
    if "volume" in objects.schema.names:
        raise RefusedError(
            f"{request.out}: its objects are volumes, and outlines are of planes; look at the label images, or "
            f"use `chorus export tables`"
        )
    if request.color == "doubt" and objects.column is None:
        raise RefusedError(f"{request.out}: saved no doubt; use --color class, or run predict with --save uncertainty")
    if request.color is None:
        request = request.model_copy(update={"color": "doubt" if objects.column else "class"})
    if only is not None:
        wanted = set(only)
        objects.images = [row for row in objects.images if row["name"] in wanted]
    rows = {row["name"]: _row(row) for row in objects.images}
    started = time.time()
    state, message = _carry_out(request, _jobs(request, run, objects), rows, reporter)
    if state == "complete":
        if only is None:
            reporter.phase(f"writing {BY_DOUBT}")
            to = storage.join(request.to, BY_DOUBT)
            write_by_doubt(objects.all, objects.schema, objects.counts, objects.column, to)
        if any(row["status"] == "failed" for row in rows.values()):
            state = "failures"
    listed = list(rows.values())
    write_table(pd.DataFrame(listed, columns=_COLUMNS), storage.join(request.to, IMAGES))
    counts = {name: sum(row["status"] == name for row in listed) for name in ("done", "empty", "failed", "open")}
    summary = {"images": len(listed), **counts, "objects": sum(row["objects"] for row in listed)}
    return Outcome(request.to, state, message, listed, summary | {"seconds": round(time.time() - started, 1)})


def file_name(image: str, suffix: str) -> str:
    """Return the path of an image's file: that of its results without ``.ome.zarr``, where nobody looks for files."""
    return image.replace(".ome.zarr", "", 1) + suffix


def _row(found: dict[str, Any]) -> dict[str, Any]:
    """Return the row of an image that is not exported yet, or cannot be."""
    row = {"image": found["name"], "file": None, "status": "open", "objects": 0, "message": ""}
    if found["status"] != "done":
        row |= {"status": "failed", "message": found["message"]}
    return row


def _jobs(request: ExportRequest, run: PredictRecord, objects: Objects) -> list[ExportJob]:
    plan = planned_images(request.out)
    places = {name: index for index, name in enumerate(plan.names)}
    classes = tuple(classes_of(run))
    jobs = []
    for row in objects.images:
        name = row["name"]
        if row["status"] == "done":
            labels = inside(storage.join(request.out, "images"), name)
            url = inside(request.to, file_name(name, SUFFIX[request.kind]))
            image = plan.image(places[name])
            jobs.append(ExportJob(image, classes, objects.of(name), objects.column, labels, url, request))
    return jobs


def _carry_out(
    request: ExportRequest, jobs: Sequence[ExportJob], rows: dict[str, dict[str, Any]], reporter: Reporter
) -> tuple[str, str]:
    """Export the images and fill in the rows."""
    size = min(max(len(jobs) // _MOST, 1), _MOST)
    batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]

    def take(result: TaskResult) -> dict[str, Any]:
        batch = batches[result.key]
        ends: list[TaskResult] = result.value[0] if result.error is None else []
        for job, error in zip(batch, [end.error for end in ends] or [result.error] * len(batch), strict=True):
            row = rows[job.image.name]
            if error is not None:
                row |= {"status": "open" if result.unwritable else "failed", "message": error}
            else:
                kept = request.kind == "geojson" or len(job.table)
                row |= {"status": "done" if len(job.table) else "empty", "objects": len(job.table)}
                row |= {"file": file_name(job.image.name, SUFFIX[request.kind]) if kept else None}
        failed = [rows[job.image.name]["message"] for job in batch if rows[job.image.name]["status"] == "failed"]
        ended = {"status": "failed" if failed else "done", "message": "; ".join(failed)}
        seconds = result.value[1] if result.error is None else 0.0
        return ended | {"pixels": sum(job.image.pixels for job in batch), "seconds": seconds}

    calls = [(index, export_batch, (batch,)) for index, batch in enumerate(batches)]
    return rows_of_calls(request.executor, request.address, calls, reporter, take)


def export_batch(jobs: Sequence[ExportJob]) -> tuple[list[TaskResult], float]:
    """Export images one after the other.

    Returns
    -------
    The result of each image, and the seconds of all

    Raises
    ------
    OutputError
        If the files cannot be written.
    """
    started = time.perf_counter()
    ends = []
    first, last = jobs[0].table, jobs[-1].table
    shared = ObjectTable(first.url, first.start, last.stop)
    if len(shared) <= _HELD:  # otherwise every image would read all row groups that it has rows in
        shared = shared.in_memory()
    for index, job in enumerate(jobs):
        end = attempt(index, export_image, replace(job, table=shared.part(job.table.start, job.table.stop)))
        if end.unwritable:
            raise OutputError(end.error or "")
        if end.error is not None:
            remove_file(job.url)  # of an earlier export; it no longer matches the table
        ends.append(end)
    return ends, time.perf_counter() - started


def export_image(job: ExportJob) -> None:
    """Write the file of one image; an image without objects gets no set of ROIs.

    Raises
    ------
    ImageError
        If its labels or its source's metadata cannot be read.
    OutputError
        If the file cannot be written.
    """
    request, count = job.request, len(job.table)
    if not count and request.kind == "rois":
        remove_file(job.url)
        return
    image = _labelled(job)
    found = outlines(image, job.table, job.column, request.color or "class")
    if request.kind == "rois":
        write_rois(image, found, count, job.url)
    else:
        painted = request.color == "doubt"
        write_geojson(image, found, count, job.url, object_type=request.object_type, painted=painted)


def _labelled(job: ExportJob) -> LabelledImage:
    planned = job.image
    source = open_image(planned.root, planned.kind, planned.path, planned.name)  # type: ignore[arg-type]
    finest = source.levels[0]
    level = next((one for one in source.levels if one.path == planned.level_path), None)
    if level is None:
        raise ImageError(
            f"{source.url}: its level {planned.level_path}, which was segmented, is gone; run predict anew"
        )
    lengths = dict(zip(source.axes, finest.shape, strict=True))
    return LabelledImage(
        name=planned.name,
        labels_url=job.labels_url,
        axes=planned.output_axes,
        planes=(lengths.get("t", 1), lengths.get("z", 1)),
        channels=len(source.channels),
        classes=job.classes,
        places={axis: place_of(finest, level, source.axes.index(axis)) for axis in "tzyx" if axis in source.axes},
    )
