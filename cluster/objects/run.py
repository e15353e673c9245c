"""A run of ``chorus objects``: the objects of a run of ``chorus predict``, on Ray or in this process.

``OUT/objects.json`` keeps settings and outcome; ``OUT/work`` exists until all images are done.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from chorus.cluster.objects.inputs import WORK, ObjectsRequest, Results
from chorus.cluster.objects.job import ImageObjects, ObjectJob
from chorus.cluster.objects.rows import object_schema, unite
from chorus.cluster.objects.second_ensemble import make_flows
from chorus.cluster.objects.tasks import (
    find_all,
    find_in_region,
    finish_objects,
    label_pixels,
    number_objects,
    read_objects,
    timed,
)
from chorus.cluster.objects.volume_job import VolumeJob
from chorus.cluster.objects.volume_tasks import (
    find_all_in_volume,
    find_in_block,
    label_voxels,
    number_volume,
    volume_schema,
)
from chorus.cluster.planning.requests import Outcome, PlanReporter
from chorus.cluster.runs.volume_merging import WORK as VOLUMES
from chorus.cluster.runtime.output_lock import output_lock
from chorus.cluster.runtime.signals import STOPPED, stoppable
from chorus.cluster.runtime.started_tasks import started_tasks
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.runtime.tasks import TaskResult, Tasks
from chorus.cluster.state.run_record import surroundings
from chorus.pipeline.errors import CutShortError, OutputError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage import remove_folder, storage_errors

RECORD = "objects.json"
TABLE = "objects.parquet"
# An image of at most this many regions is one task.
_AT_ONCE = 4
_STAGES = ("regions", "numbers", "labels", "end")


@stoppable()
def find_objects(request: ObjectsRequest, reporter: PlanReporter) -> Outcome:
    """Make label images and table of objects; the same call again resumes an interrupted one.

    A row of the outcome is an image: ``name``, ``status`` (``done``; ``failed``; ``open`` if the run was interrupted
    before it), ``message``, and ``objects``, their number per class.

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
    with output_lock(request.out, uuid.uuid4().hex[:12]):
        return make_objects(results, reporter)


def make_objects(results: Results, reporter: PlanReporter, *, keep_other: bool = False) -> Outcome:
    """Do what `find_objects` does, for a caller that holds the output's lock.

    Parameters
    ----------
    keep_other : whether complete objects of this very run are kept, whatever their settings
    """
    request = results.request
    content = _earlier(results, keep_other=keep_other)
    if content is None:
        _clear(request.out)
        content = results.defining | {"command": "objects", "started": datetime.now(UTC).isoformat()}
    elif content["outcome"] == "complete":
        return Outcome(request.out, "complete", "", content["images"], content["summary"])
    content |= {"finished": None, "outcome": "running"} | surroundings().model_dump(mode="json")
    content |= {"run": {"executor": request.executor, "address": request.address}}
    _write(request.out, content)
    outcome = _carry_out(results, reporter)
    outcome.summary = _summary(results, outcome.rows, content["started"])
    content |= {"finished": datetime.now(UTC).isoformat(), "outcome": outcome.state}
    if outcome.state != "interrupted":
        _write(request.out, content | {"summary": outcome.summary, "images": outcome.rows})
    if outcome.state == "complete":  # otherwise another run resumes with the images that are open
        with storage_errors(request.out):
            remove_folder(storage.join(request.out, WORK[0]))
    return outcome


def _earlier(results: Results, *, keep_other: bool) -> dict[str, Any] | None:
    """Return the record of an earlier run that this one resumes, or that leaves nothing to do."""
    out = results.request.out
    url = storage.join(out, RECORD)
    with storage_errors(url):
        if not storage.exists(url):
            return None
        known: dict[str, Any] = json.loads(storage.read_bytes(url))
        other = [key for key, value in results.defining.items() if known.get(key) != value]
        if other and not (keep_other and other == ["settings"] and known["outcome"] == "complete"):
            return None
        if known["outcome"] == "complete":
            same = [row["name"] for row in known["images"]] == results.table.names
            return known if same and storage.exists(storage.join(out, TABLE)) else None
        return known


def _clear(out: str) -> None:
    """Remove what an earlier run made, the record first: what it describes is never incomplete.

    Label images stay until new ones are written over them.
    """
    with storage_errors(out):
        for name in (RECORD, TABLE):
            storage.remove_file(storage.join(out, name))
        work = storage.join(out, WORK[0])
        for name in set(storage.entries(work)) - {VOLUMES[-1]}:  # needed by images that are not finished
            remove_folder(storage.join(work, name))


def _write(out: str, content: dict[str, Any]) -> None:
    url = storage.join(out, RECORD)
    with storage_errors(url):
        storage.write_bytes(url, json.dumps(content, indent=2).encode())


def _summary(results: Results, rows: list[dict[str, Any]], started: str) -> dict[str, Any]:
    counts = {state: sum(row["status"] == state for row in rows) for state in ("done", "failed", "open")}
    objects = {name: sum(row["objects"].get(name, 0) for row in rows) for name in results.classes}
    seconds = round(time.time() - datetime.fromisoformat(started).timestamp(), 1)
    by = {"method": results.method} | ({"flows_from": results.second.ensemble.spec.name} if results.second else {})
    return {"images": len(rows), **counts, **by, "objects": objects, "seconds": seconds}


def _finished(results: Results) -> dict[int, ImageObjects]:
    """Return the images whose objects are done, by their index."""
    fs, path = storage.filesystem(storage.join(results.request.out, *WORK))
    with storage_errors(path), ThreadPoolExecutor(16) as pool:
        files = fs.find(path) if fs.exists(path) else []
        signs = {file[len(path) :].strip("/") for file in files if file.endswith("/done.json")}
        names = {i: name for i, name in enumerate(results.table.names) if f"{name}/done.json" in signs}
        return dict(zip(names, pool.map(read_objects, map(results.work, names.values())), strict=True))


def _carry_out(results: Results, reporter: PlanReporter) -> Outcome:
    found = _finished(results)
    todo = [index for index in np.flatnonzero(results.finished).tolist() if index not in found]
    errors: dict[int, tuple[int, str]] = {}
    state, message = "complete", ""
    try:
        without = make_flows(results.flow_jobs(todo), reporter)
        names = results.table.names
        errors |= {index: (0, without[names[index]]) for index in todo if names[index] in without}
        todo = [index for index in todo if index not in errors]
        with started_tasks(results.request.executor, results.request.address, len(todo), reporter) as (tasks, cores):
            _Stream(results, tasks, cores, found, errors).carry_out(todo, reporter)
        reporter.phase(f"writing {TABLE}")
        _unite(results, found)
    except CutShortError as error:
        state, message = "interrupted", str(error)
    except KeyboardInterrupt:
        state, message = "interrupted", STOPPED
    rows = _rows(results, found, {index: text for index, (_, text) in errors.items()})
    if state == "complete" and any(row["status"] != "done" for row in rows):
        state = "failures"
    return Outcome(results.request.out, state, message, rows, {})


def _rows(results: Results, found: dict[int, ImageObjects], errors: dict[int, str]) -> list[dict[str, Any]]:
    """Return a row per image in the order of the plan, then those that could not be planned."""
    rows = []
    for index, name in enumerate(results.table.names):
        row: dict[str, Any] = {"name": name, "status": "open", "message": "", "objects": {}}
        if index in found:
            row |= {"status": "done", "objects": found[index].counts}
        elif index in errors:
            row |= {"status": "failed", "message": errors[index]}
        elif not results.finished[index]:
            row |= {"status": "failed", "message": f"{name}: is not finished; run the same `chorus predict` again"}
        rows.append(row)
    unplanned = "could not be planned by `chorus predict`; its scores.parquet says why"
    failed = results.run.inputs.failed
    return [*rows, *({"name": n, "status": "failed", "message": f"{n}: {unplanned}", "objects": {}} for n in failed)]


def _unite(results: Results, found: dict[int, ImageObjects]) -> None:
    """Write the table of all images that are done, in the order of the plan."""
    names = results.table.names
    images = sorted(found)
    means = dict.fromkeys(column for index in images for column in found[index].maps if column not in results.doubts)
    unite(
        [storage.join(results.work(names[index]), TABLE) for index in images],
        [found[index].total for index in images],
        storage.join(results.request.out, TABLE),
        (volume_schema if results.of_volumes else object_schema)([*results.doubts, *means]),
    )


def _functions(job: ObjectJob) -> dict[str, Callable[..., Any]]:
    """Return the worker's function of each stage."""
    stages = ("all", *_STAGES)
    if isinstance(job, VolumeJob):
        of_volumes = (find_all_in_volume, find_in_block, number_volume, label_voxels, finish_objects)
        return dict(zip(stages, of_volumes, strict=True))
    of_planes = (find_all, find_in_region, number_objects, label_pixels, finish_objects)
    return dict(zip(stages, of_planes, strict=True))


@dataclass
class _Progress:
    """Progress of an image: the number of unfinished tasks of its stage, and the stages that follow."""

    job: ObjectJob
    stages: list[str]
    running: int = 0


class _Stream:
    """Submits tasks image by image: first the regions of an image, then the stages that need all of them.

    Parameters
    ----------
    found, errors : receive the result of each image; of several errors, that of the first region
    """

    def __init__(
        self,
        results: Results,
        tasks: Tasks,
        cores: int,
        found: dict[int, ImageObjects],
        errors: dict[int, tuple[int, str]],
    ) -> None:
        self._results, self._tasks, self._cores = results, tasks, cores
        self._found, self._errors = found, errors
        self._images: dict[int, _Progress] = {}
        self._running: dict[int, tuple[int, str, int]] = {}
        self._submitted = 0

    def carry_out(self, todo: list[int], reporter: PlanReporter) -> None:
        """Process the images `todo`; raise OutputError if results cannot be written."""
        steps = self._steps(todo)
        reporter.begin(steps, int(self._results.table.pixels[todo].sum()), self._cores)
        waiting = iter(todo)
        try:
            self._fill(waiting)
            for result in self._tasks.results(wait=True):
                reporter.region(self._take(result))
                if result.unwritable:
                    raise OutputError(result.error or "")
                self._fill(waiting)
        finally:
            reporter.end()

    def _steps(self, todo: list[int]) -> int:
        """Count the tasks of all images `todo`; for planes arithmetically, since there may be very many."""
        if self._results.of_volumes:
            counts = [[job.tasks(stage) for stage in _STAGES] for job in map(self._results.job, todo)]
            return sum(1 if count[0] <= _AT_ONCE else sum(count) for count in counts)
        regions = self._results.table.region_counts[todo]
        return int(np.where(regions <= _AT_ONCE, 1, 2 * regions + 2).sum())

    def _fill(self, waiting: Iterator[int]) -> None:
        """Begin images until all cores have enough to do; the jobs of the others are not created yet."""
        while len(self._running) < 4 * self._cores and (index := next(waiting, None)) is not None:
            job = self._results.job(index)
            small = job.tasks("regions") <= _AT_ONCE
            self._images[index] = _Progress(job, ["all"] if small else list(_STAGES))
            self._proceed(index)

    def _proceed(self, index: int) -> None:
        """Submit the next stage of an image."""
        image = self._images[index]
        stage = image.stages.pop(0)
        function = _functions(image.job)[stage]
        image.running = image.job.tasks(stage)
        for place in range(image.running):
            self._running[self._submitted] = index, stage, place
            arguments = (image.job, place) if stage in ("regions", "labels") else (image.job,)
            self._tasks.submit(self._submitted, timed, function, *arguments)
            self._submitted += 1

    def _take(self, result: TaskResult) -> RegionStatus:
        """Record the result of a task, and submit the next stage of its image if it was the last task of one."""
        index, stage, place = self._running.pop(result.key)
        image = self._images[index]
        image.running -= 1
        if result.error is not None:
            self._errors[index] = min(self._errors.get(index, (place, result.error)), (place, result.error))
        elif result.value.objects is not None:
            self._found[index] = result.value.objects
        if not image.running:
            if image.stages and index not in self._errors:
                self._proceed(index)
            else:
                del self._images[index]
        if result.error is not None:
            return RegionStatus(result.key, index, place, "failed", result.error)
        seconds, pixels = result.value.seconds, image.job.pixels(stage, place)
        return RegionStatus(result.key, index, place, "done", pixels=pixels, device_seconds=seconds, seconds=seconds)
