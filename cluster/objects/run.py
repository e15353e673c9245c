"""A run of ``chorus objects``: the objects of a run of ``chorus predict``, on Ray or in this process.

``OUT/objects.json`` keeps settings and outcome; ``OUT/work`` exists until all images are done.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from chorus.cluster.objects.finished_labels import lost_objects
from chorus.cluster.objects.inputs import WORK, Results
from chorus.cluster.objects.records import (
    RECORD,
    TABLE,
    ImageObjects,
    ObjectsRecord,
    ObjectsRow,
    ObjectsSummary,
    recorded_objects,
)
from chorus.cluster.objects.request import ObjectsRequest
from chorus.cluster.objects.second_ensemble import make_flows
from chorus.cluster.objects.stream import ObjectStream
from chorus.cluster.objects.tasks.rows import object_schema, unite, volume_schema
from chorus.cluster.planning.requests import PlanReporter
from chorus.cluster.runs.volume_merging import WORK as VOLUMES
from chorus.cluster.runtime.signals import stoppable
from chorus.cluster.runtime.started_tasks import Ending, carry_out, interruptible
from chorus.cluster.state.command import Command, begin_inside, earlier_record
from chorus.cluster.state.outcome import Outcome, count, state_of
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage import remove_folder
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.io.stored_files import sizes_of, stored_file

ObjectsOutcome = Outcome[ObjectsRow, ObjectsSummary]


@stoppable()
def find_objects(request: ObjectsRequest, reporter: PlanReporter) -> ObjectsOutcome:
    """Make label images and table of objects; the same call again resumes an interrupted one.

    Raises
    ------
    RefusedError
        Before any work: `out` has no results of `chorus predict`, or none from which objects can be made.
    CutShortError
        If the process is told to stop before the first region.
    """
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    storage.check_writable(request.out)
    results = Results(request)
    with _command(results).held():
        return make_objects(results, reporter)


def make_objects(results: Results, reporter: PlanReporter, *, keep_other: bool = False) -> ObjectsOutcome:
    """Do what `find_objects` does, for a caller that holds the output's lock.

    Parameters
    ----------
    keep_other : whether complete objects of this very run are kept, whatever their settings
    """
    out, command = results.request.out, _command(results)
    known = earlier_record(command)
    if (
        known is not None
        and known.summary is not None
        and _nothing_left(results, command, known, keep_other=keep_other)
    ):
        if not (lost := lost_objects(results)):
            return Outcome(out, "complete", "", known.images, known.summary)
        if command.differing(known):
            return _damaged(results, known.images, known.summary, lost)
        return _mend(results, known.images, known.summary, lost, reporter)
    running = begin_inside(command, known, lambda: [TABLE, *_unfinished(out)], resumes=("running", "failures"))
    rows, ending = _carry_out(results, reporter)
    state, summary = state_of(ending.state, rows), _summary(results, rows, running.seconds)
    running.close(state, summary=summary, images=rows, table=stored_file(storage.join(out, TABLE)))
    if state == "complete":  # otherwise another run resumes with the images that are open
        with storage_errors(out):
            remove_folder(storage.join(out, WORK[0]))
    return Outcome(out, state, ending.message, rows, summary)


def _command(results: Results) -> Command[ObjectsRecord]:
    return Command(results.request.out, results.record, RECORD, ("settings", "of"))


def _nothing_left(results: Results, command: Command[ObjectsRecord], known: ObjectsRecord, *, keep_other: bool) -> bool:
    """Return whether an earlier call has made all that is asked for."""
    if known.outcome != "complete" or set(command.differing(known)) - ({"settings"} if keep_other else set()):
        return False
    return [row.name for row in known.images] == results.table.names and _table_is_whole(results, known)


def _table_is_whole(results: Results, known: ObjectsRecord) -> bool:
    """Return whether the table is there, as long as it was written; with `verify` of the same content."""
    url = storage.join(results.request.out, TABLE)
    size = sizes_of({TABLE: url}).get(TABLE)
    if known.table is None or size is None:  # of an earlier version of Chorus, or gone
        return size is not None
    return size == known.table.size and (not results.request.verify or stored_file(url) == known.table)


def _mend(
    results: Results, rows: list[ObjectsRow], summary: ObjectsSummary, lost: Collection[int], reporter: PlanReporter
) -> ObjectsOutcome:
    """Make label images anew that are damaged; the table has the rows of their objects."""
    out, errors, names = results.request.out, dict[int, tuple[int, str]](), results.table.names
    for index in lost:
        remove_folder(results.work(names[index]))
    with interruptible() as ending:
        _stream(results, sorted(lost), {}, errors, reporter)
    rows = _with_failures(rows, {names[index]: message for index, (_, message) in errors.items()})
    state = state_of(ending.state, rows)
    if state == "complete":
        with storage_errors(out):
            remove_folder(storage.join(out, WORK[0]))
    return Outcome(out, state, ending.message, rows, summary)


def _damaged(
    results: Results, rows: list[ObjectsRow], summary: ObjectsSummary, lost: Collection[int]
) -> ObjectsOutcome:
    """Say of damaged objects that a call with other settings made: this one does not replace them."""
    reason = "label images of its objects are damaged; run the `chorus objects` that made them again"
    names = [results.table.names[index] for index in lost]
    whole = _with_failures(rows, {name: f"{name}: {reason}" for name in names})
    return Outcome(results.request.out, state_of("complete", whole), "", whole, summary)


def _with_failures(rows: list[ObjectsRow], failed: Mapping[str, str]) -> list[ObjectsRow]:
    return [
        ObjectsRow(name=row.name, status="failed", message=failed[row.name]) if row.name in failed else row
        for row in rows
    ]


def _unfinished(out: str) -> list[str]:
    """Return what there is of unfinished work on objects. Label images stay until new ones are written over them."""
    # Volumes are needed by images that `chorus predict` has not finished.
    return [storage.join(WORK[0], name) for name in storage.entries(storage.join(out, WORK[0])) if name != VOLUMES[-1]]


def _summary(results: Results, rows: list[ObjectsRow], seconds: float) -> ObjectsSummary:
    return ObjectsSummary(
        images=len(rows),
        done=count(rows, "done"),
        failed=count(rows, "failed"),
        open=count(rows, "open"),
        method=results.method,
        flows_from=results.second.ensemble.spec.name if results.second else None,
        objects={name: sum(row.objects.get(name, 0) for row in rows) for name in results.classes},
        seconds=seconds,
    )


def _finished(results: Results) -> dict[int, ImageObjects]:
    """Return the images whose objects are done, by their index; one whose record is damaged begins anew."""
    url = storage.join(results.request.out, *WORK)
    with storage_errors(url), ThreadPoolExecutor(16) as pool:
        signs = {file.name for file in storage.files_below(url) if file.name.endswith("/done.json")}
        names = {i: name for i, name in enumerate(results.table.names) if f"{name}/done.json" in signs}
        finished = dict(zip(names, pool.map(recorded_objects, map(results.work, names.values())), strict=True))
        for index in [index for index, known in finished.items() if known is None]:
            remove_folder(results.work(names[index]))
        return {index: known for index, known in finished.items() if known is not None}


def _carry_out(results: Results, reporter: PlanReporter) -> tuple[list[ObjectsRow], Ending]:
    finished = _finished(results)
    todo = [index for index in np.flatnonzero(results.finished).tolist() if index not in finished]
    errors: dict[int, tuple[int, str]] = {}
    with interruptible() as ending:
        _stream(results, todo, finished, errors, reporter)
        reporter.phase(f"writing {TABLE}")
        _unite(results, finished)
    return _rows(results, finished, {index: text for index, (_, text) in errors.items()}), ending


def _stream(
    results: Results,
    todo: list[int],
    finished: dict[int, ImageObjects],
    errors: dict[int, tuple[int, str]],
    reporter: PlanReporter,
) -> None:
    """Make the objects of the images `todo`; `finished` and `errors` receive the result of each."""
    request, names = results.request, results.table.names
    without = make_flows(results.flow_jobs(todo), reporter)
    errors |= {index: (0, without[names[index]]) for index in todo if names[index] in without}
    todo = [index for index in todo if index not in errors]
    stream = ObjectStream(results, todo, finished, errors)
    items, pixels = len(todo), int(results.table.pixels[todo].sum())
    steps = stream.steps()
    carry_out(stream, request.executor, request.address, reporter, items=items, steps=steps, pixels=pixels)


def _rows(results: Results, finished: dict[int, ImageObjects], errors: dict[int, str]) -> list[ObjectsRow]:
    """Return a row per image in the order of the plan, then those that could not be planned."""
    rows = []
    for index, name in enumerate(results.table.names):
        row = ObjectsRow(name=name)
        if index in finished:
            row = ObjectsRow(name=name, status="done", objects=finished[index].counts)
        elif index in errors:
            row = ObjectsRow(name=name, status="failed", message=errors[index])
        elif not results.finished[index]:
            reason = f"{name}: is not finished; run the same `chorus predict` again"
            row = ObjectsRow(name=name, status="failed", message=reason)
        rows.append(row)
    unplanned = "could not be planned by `chorus predict`; its scores.parquet says why"
    failed = results.run.inputs.failed
    return [*rows, *(ObjectsRow(name=n, status="failed", message=f"{n}: {unplanned}") for n in failed)]


def _unite(results: Results, finished: dict[int, ImageObjects]) -> None:
    """Write the table of all images that are done, in the order of the plan."""
    names = results.table.names
    images = sorted(finished)
    means = dict.fromkeys(
        column for index in images for column in finished[index].maps if column not in results.uncertainties
    )
    unite(
        [storage.join(results.work(names[index]), TABLE) for index in images],
        [finished[index].total for index in images],
        storage.join(results.request.out, TABLE),
        (volume_schema if results.of_volumes else object_schema)([*results.uncertainties, *means]),
    )
