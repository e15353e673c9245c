"""A run of ``chorus export rois`` or ``geojson``: the objects of every image in a file of their own, in parallel."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from chorus.cluster.exports.objects import Objects, check_apart, file_name
from chorus.cluster.exports.outline_files import SUFFIX, ExportJob, ExportRequest, export_batch
from chorus.cluster.exports.records import (
    ExportAsked,
    ExportedImage,
    ExportedRun,
    ExportRecord,
    ExportRow,
    ExportSummary,
    begun,
    command_of,
    ledger_of,
)
from chorus.cluster.objects.records import ObjectsRow
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.signals import stoppable
from chorus.cluster.runtime.started_tasks import Ending, ItemEnd, Items
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.command import Execution, earlier_record
from chorus.cluster.state.documents import PredictRecord
from chorus.cluster.state.items import ItemLedger
from chorus.cluster.state.outcome import Outcome, count, failures_of, state_of
from chorus.cluster.state.results import finished_run, planned_images
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.exports.tables import write_by_uncertainty, write_table
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.report.documents import classes_of

IMAGES, BY_UNCERTAINTY = "images.csv", "by_uncertainty.csv"
_COLUMNS = ["image", "file", "status", "objects", "message"]
# Maximum of images per task: they share what is read of the table.
_MOST = 64


@stoppable()
def export_objects(
    request: ExportRequest, reporter: Reporter, only: Collection[str] | None = None
) -> Outcome[ExportRow, ExportSummary]:
    """Write a file per image, ``images.csv``, and ``by_uncertainty.csv``, a list of all objects.

    The same call again resumes an interrupted one.

    Parameters
    ----------
    only : names of the images to export, without ``by_uncertainty.csv``; None is all

    Raises
    ------
    RefusedError
        Before any work: `out` has no objects, or not the uncertainty that is asked for, or another export is writing to
        this folder.
    CutShortError
        If the process is told to stop before the first image.
    """
    request = request.model_copy(update={"out": storage.normalise(request.out), "to": storage.normalise(request.to)})
    check_apart(request.out, request.to)
    run, objects = finished_run(request.out), Objects(request.out)
    if "volume" in objects.schema.names:
        raise RefusedError(
            f"{request.out}: its objects are volumes, and outlines are of planes; look at the label images, or "
            f"use `chorus export tables`"
        )
    if request.color == "uncertainty" and objects.column is None:
        raise RefusedError(
            f"{request.out}: saved no uncertainty; use --color class, or run predict with --save uncertainty"
        )
    if request.color is None:
        request = request.model_copy(update={"color": "uncertainty" if objects.column else "class"})
    if only is not None:
        wanted = set(only)
        objects.images = [row for row in objects.images if row.name in wanted]
    record = _record(request, run, objects, only)
    command, ledger = command_of(request.to, record), ledger_of(request.to, ExportedImage)
    with command.held():
        running = begun(command, earlier_record(command))
        rows, ending = _carry_out(request, _jobs(request, run, objects), objects.images, ledger, reporter)
        if ending.state == "complete" and only is None:
            reporter.phase(f"writing {BY_UNCERTAINTY}")
            to = storage.join(request.to, BY_UNCERTAINTY)
            write_by_uncertainty(objects.all, objects.schema, objects.counts, objects.column, to)
        listed = pd.DataFrame([row.model_dump() for row in rows], columns=_COLUMNS)
        write_table(listed, storage.join(request.to, IMAGES))
        state, summary = state_of(ending.state, rows), _summary(rows, running.seconds)
        running.close(state, summary=summary, failures=failures_of(rows))
        if state != "interrupted":
            ledger.clear()
        return Outcome(request.to, state, ending.message, rows, summary)


def _record(request: ExportRequest, run: PredictRecord, objects: Objects, only: Collection[str] | None) -> ExportRecord:
    made = f"{objects.record.started} to {objects.record.finished}"
    return ExportRecord(
        settings=ExportAsked(
            kind=request.kind,
            only=None if only is None else sorted(only),
            color=request.color,
            object_type=request.object_type,
        ),
        source_run=ExportedRun(out=request.out, started=run.started, objects=made),
        run=Execution(executor=request.executor, address=request.address),
    )


def _summary(rows: Sequence[ExportRow], seconds: float) -> ExportSummary:
    return ExportSummary(
        images=len(rows),
        done=count(rows, "done"),
        empty=count(rows, "empty"),
        failed=count(rows, "failed"),
        open=count(rows, "open"),
        objects=sum(row.objects for row in rows),
        seconds=seconds,
    )


def _jobs(request: ExportRequest, run: PredictRecord, objects: Objects) -> list[ExportJob]:
    plan = planned_images(request.out)
    places = {name: index for index, name in enumerate(plan.names)}
    classes = tuple(classes_of(run))
    jobs = []
    for row in objects.images:
        name = row.name
        if row.status == "done":
            labels = inside(storage.join(request.out, "images"), name)
            url = inside(request.to, file_name(name, SUFFIX[request.kind]))
            image = plan.image(places[name])
            jobs.append(ExportJob(image, classes, objects.of(name), objects.column, labels, url, request))
    return jobs


def _carry_out(
    request: ExportRequest,
    jobs: Sequence[ExportJob],
    images: Sequence[ObjectsRow],
    ledger: ItemLedger[ExportedImage],
    reporter: Reporter,
) -> tuple[list[ExportRow], Ending]:
    """Export the images that are not recorded; return a row per image of `images`."""
    rows = {row.name: ExportRow(name=row.name) for row in images}
    for row in images:
        if row.status != "done":
            rows[row.name] = ExportRow(name=row.name, status="failed", message=row.message)
    todo = {job.image.name: job for job in jobs}
    for name, known in ledger.records():
        if todo.pop(name, None) is not None:
            rows[name] = _done(name, known)

    def take(batch: Sequence[ExportJob], result: TaskResult) -> ItemEnd:
        ends: list[TaskResult] = result.value[0] if result.error is None else [result] * len(batch)
        for job, end in zip(batch, ends, strict=True):
            name = job.image.name
            rows[name] = rows[name].without_result(end) if end.error is not None else _done(name, end.value)
        failed = [rows[job.image.name].message for job in batch if rows[job.image.name].status == "failed"]
        seconds = result.value[1] if result.error is None else 0.0
        return ItemEnd(sum(job.image.pixels for job in batch), seconds, "; ".join(failed))

    left = list(todo.values())
    size = min(max(len(left) // _MOST, 1), _MOST)
    batches = [left[start : start + size] for start in range(0, len(left), size)]
    items = Items(batches, lambda batch: (export_batch, (batch, ledger)), take)
    ending = items.carry_out(request.executor, request.address, reporter)
    return list(rows.values()), ending


def _done(name: str, exported: ExportedImage) -> ExportRow:
    status = "done" if exported.objects else "empty"
    return ExportRow(name=name, status=status, file=exported.file, objects=exported.objects)
