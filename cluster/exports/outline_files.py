"""The files of objects of some images: a worker's task of ``chorus export rois`` and ``geojson``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from chorus.cluster.exports.objects import file_name
from chorus.cluster.exports.records import ExportedImage
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.runtime.started_tasks import Executor
from chorus.cluster.runtime.tasks import TaskResult, attempt
from chorus.cluster.state.items import ItemLedger
from chorus.pipeline.errors import ImageError, OutputError
from chorus.pipeline.exports.files import remove_file
from chorus.pipeline.exports.geojson import write_geojson
from chorus.pipeline.exports.outlines import LabelledImage, ObjectTable, outlines
from chorus.pipeline.exports.rois import write_rois
from chorus.pipeline.io.models import ClassInfo
from chorus.pipeline.io.sources.level_geometry import place_of
from chorus.pipeline.io.sources.ngff import open_image

SUFFIX = {"rois": ".zip", "geojson": ".geojson"}
# Maximum of rows of a task that are read at once.
_HELD = 1 << 17


class ExportRequest(BaseModel):
    """Objects to export.

    Attributes
    ----------
    out : URL of the results of a run, after `chorus objects`
    to : URL of the folder that gets a file per image
    kind : of the files
    color : of objects; None is by uncertainty (``uncertainty``) if the run saved it, else by class
    object_type : of QuPath
    executor, address : as in `chorus.cluster.planning.settings.RunSettings`
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    to: str
    kind: Literal["rois", "geojson"]
    color: Literal["class", "uncertainty"] | None = None
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


def export_batch(jobs: Sequence[ExportJob], ledger: ItemLedger[ExportedImage]) -> tuple[list[TaskResult], float]:
    """Export images one after the other, and record each.

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
        part = replace(job, table=shared.part(job.table.start, job.table.stop))
        end = attempt(index, _export_and_record, part, ledger)
        if end.unwritable:
            raise OutputError(end.error or "")
        if end.error is not None:
            remove_file(job.url)  # of an earlier export; it no longer matches the table
        ends.append(end)
    return ends, time.perf_counter() - started


def _export_and_record(job: ExportJob, ledger: ItemLedger[ExportedImage]) -> ExportedImage:
    export_image(job)
    kept = job.request.kind == "geojson" or len(job.table)
    file = file_name(job.image.name, SUFFIX[job.request.kind]) if kept else None
    exported = ExportedImage(file=file, objects=len(job.table))
    ledger.record(job.image.name, exported)
    return exported


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
    image_outlines = outlines(image, job.table, job.column, request.color or "class")
    if request.kind == "rois":
        write_rois(image, image_outlines, count, job.url)
    else:
        painted = request.color == "uncertainty"
        write_geojson(image, image_outlines, count, job.url, object_type=request.object_type, painted=painted)


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
