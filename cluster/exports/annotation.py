"""``chorus export annotation``: a folder of the images that most need correction, which ``chorus train`` reads."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from chorus.cluster.exports.objects import Objects, check_apart, file_name
from chorus.cluster.exports.package import (
    PACKAGE,
    README,
    AnnotationRequest,
    draft_and_record,
    readme_of,
    write_package,
    write_text,
)
from chorus.cluster.exports.records import (
    RECORD,
    ExportAsked,
    ExportedRun,
    ExportRecord,
    PackagedImage,
    PackageRow,
    PackageSummary,
    begun,
    command_of,
    ledger_of,
)
from chorus.cluster.exports.tables import image_table
from chorus.cluster.objects.records import read_objects_record
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.signals import stoppable
from chorus.cluster.runtime.started_tasks import Ending, ItemEnd, Items
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.command import Execution, earlier_record
from chorus.cluster.state.items import ItemLedger
from chorus.cluster.state.outcome import Outcome, count, failures_of, state_of
from chorus.cluster.state.results import finished_run, planned_images
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.exports.files import remove_file
from chorus.pipeline.exports.spreadsheet import original
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.outputs.arrays import LABEL_NAME
from chorus.pipeline.io.storage_failures import one_line, storage_errors
from chorus.pipeline.scores.judgement_scores import RISK as RISK_SCORE
from chorus.pipeline.scores.ranking import rank
from chorus.pipeline.scores.registry import columns_in

RISK = RISK_SCORE.name
_IMAGES = 20


@stoppable()
def export_annotation(request: AnnotationRequest, reporter: Reporter) -> Outcome[PackageRow, PackageSummary]:
    """Write ``images``, ``labels``, ``package.csv`` and ``README.txt``; the same call again resumes an interrupted one.

    Raises
    ------
    RefusedError
        Before any work: there is no such score, or a package exists already, which may hold corrections.
    CutShortError
        If the process is told to stop before the first image.
    """
    request = request.model_copy(update={"out": storage.normalise(request.out), "to": storage.normalise(request.to)})
    check_apart(request.out, request.to)
    run, table = finished_run(request.out), image_table(request.out)
    by, chosen = _worst(table, read_scores(request.out).columns, request)
    classes = [entry.name for entry in run.ensemble.classes]
    as_objects = len(classes) == 2 and read_objects_record(request.out) is not None
    objects = Objects(request.out) if as_objects else None
    label = classes[1] if as_objects else LABEL_NAME
    rows = {row.name: row for row in (_row(score, label) for score in chosen.to_dict("records"))}
    made = None if objects is None else f"{objects.record.started} to {objects.record.finished}"
    record = ExportRecord(
        settings=ExportAsked(kind="annotation", only=list(rows), by=by, size=request.size),
        source_run=ExportedRun(out=request.out, started=run.started, objects=made),
        run=Execution(executor="serial"),
    )
    command, ledger = command_of(request.to, record), ledger_of(request.to, PackagedImage)
    with command.held():
        running = begun(command, earlier_record(command), clear=lambda: _clear(request, ledger))
        ending = _carry_out(request, run.settings.in_place, objects, rows, ledger, reporter)
        listed = list(rows.values())
        if ending.state == "complete":
            kept = [index for index, row in enumerate(listed) if row.origin is not None]
            write_package(request, chosen, listed, kept)
            flows = "flows" in run.settings.save
            readme = readme_of(classes, [listed[index] for index in kept], as_objects=as_objects, flows=flows)
            write_text(request, README, readme)
        state, summary = state_of(ending.state, listed), _summary(listed, by, running.seconds)
        running.close(state, summary=summary, failures=failures_of(listed))
        if state != "interrupted":
            ledger.clear()
        return Outcome(request.to, state, ending.message, listed, summary)


def _carry_out(
    request: AnnotationRequest,
    in_place: bool,
    objects: Objects | None,
    rows: dict[str, PackageRow],
    ledger: ItemLedger[PackagedImage],
    reporter: Reporter,
) -> Ending:
    """Write the files of the images that are not recorded, and fill in the rows, by name."""
    finished, todo = ledger.read(), []
    drawn = None if objects is None else {row.name for row in objects.images if row.status == "done"}
    for name, row in rows.items():
        if name in finished:
            rows[name] = row.model_copy(update={"status": "done", "origin": finished[name]})
        elif drawn is not None and name not in drawn:
            reason = f"{name}: has no objects; run `chorus objects` again"
            rows[name] = row.model_copy(update={"status": "failed", "message": reason})
        else:
            todo.append(name)

    def take(name: str, result: TaskResult) -> ItemEnd:
        if result.error is not None:
            rows[name] = rows[name].without_result(result)
            return ItemEnd(failure=result.error)
        origin: PackagedImage = result.value
        rows[name] = rows[name].model_copy(update={"status": "done", "origin": origin})
        return ItemEnd(origin.pixels, origin.seconds)

    plan = planned_images(request.out)
    places = {name: index for index, name in enumerate(plan.names)}

    def call(name: str) -> tuple[Callable[..., object], tuple[object, ...]]:
        return draft_and_record, (request, in_place, plan.image(places[name]), rows[name], ledger)

    return Items(todo, call, take).carry_out("serial", None, reporter)


def _summary(rows: Sequence[PackageRow], by: str, seconds: float) -> PackageSummary:
    return PackageSummary(
        images=len(rows),
        done=count(rows, "done"),
        failed=count(rows, "failed"),
        open=count(rows, "open"),
        by=by,
        seconds=seconds,
    )


def _worst(table: pd.DataFrame, scores: Collection[str], request: AnnotationRequest) -> tuple[str, pd.DataFrame]:
    """Return the score by which images are chosen, and their rows, the most urgent first.

    Parameters
    ----------
    scores : columns of ``scores.parquet``; of other columns it is unknown whether high or low is bad
    """
    flagged = "flags" in table.columns
    by = request.by or (RISK if flagged else "uncertainty")
    if request.only is not None:
        table = table[table["name"].isin(request.only)]
    if by == RISK:
        if not flagged:
            raise RefusedError(
                f"{request.out}: has no flags; run `chorus flag {request.out} --ensemble ...`, or use another --by"
            )
        ordered = table[table["status"] != "failed"].sort_values("rank")
    else:
        known = {column.key for column in columns_in(table)}
        scored = [name for name in table.columns if name in known or name in scores]
        names = rank(table[scored], by).ranked["name"]
        ordered = table.set_index("name", drop=False).loc[names]
        if request.only is not None:  # a person asked for them, including those without a score
            rest = table[~table["name"].isin(names) & (table["status"] != "failed")]
            ordered = pd.concat([ordered, rest])
    if not len(ordered):
        raise RefusedError(f"{request.out}: no image has the score {by!r}; nothing can be chosen by it")
    count = request.images or (_IMAGES if request.only is None else len(ordered))
    return by, ordered.head(count).reset_index(drop=True)


def _clear(request: AnnotationRequest, ledger: ItemLedger[PackagedImage]) -> None:
    """Remove an earlier package if `overwrite` is set; else raise RefusedError."""
    with storage_errors(request.to):
        present = set(storage.entries(request.to)) - {"run.lock", RECORD}
    if not present:
        return
    if not request.overwrite:
        raise RefusedError(
            f"{request.to}: is not empty and may hold corrections; choose another --out, or --overwrite to replace "
            f"its files"
        )
    files = [file_name(name, ".tif") for name in ledger.read()]  # of one that was not finished
    if PACKAGE in present:
        files += _packaged(storage.join(request.to, PACKAGE))
    for file in files:
        for folder in ("images", "labels"):
            remove_file(inside(storage.join(request.to, folder), file))


def _packaged(url: str) -> list[str]:
    """Return the files of a package."""
    with storage_errors(url):
        data = storage.read_bytes(url)
    try:
        return [original(name) for name in pd.read_csv(io.BytesIO(data))["file"].astype(str)]
    except (ValueError, KeyError) as error:
        reason = f"is damaged ({one_line(error)}), and says which files are of a package"
        raise RefusedError(f"{url}: {reason}; choose another --out, or remove this folder") from error


def _row(score: Mapping[Any, Any], label: str) -> PackageRow:
    name = str(score["name"])
    return PackageRow(
        name=name,
        file=file_name(name, ".tif"),
        source=storage.join(score["source"], score["image"]),
        labels=label,
    )
