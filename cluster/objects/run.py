"""A run of ``chorus objects``: the objects of a run of ``chorus predict``, on Ray or in this process.

``OUT/objects.json`` keeps settings and outcome; ``OUT/work`` exists until all images are done.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from chorus.cluster.objects.inputs import WORK, ObjectsRequest, Results
from chorus.cluster.objects.job import ObjectJob, VolumeJob
from chorus.cluster.objects.records import (
    RECORD,
    TABLE,
    ImageObjects,
    ObjectsRecord,
    ObjectsRow,
    ObjectsSummary,
    recorded_objects,
)
from chorus.cluster.objects.rows import object_schema, unite
from chorus.cluster.objects.second_ensemble import make_flows
from chorus.cluster.objects.tasks import (
    find_all,
    find_in_region,
    finish_objects,
    label_pixels,
    number_objects,
    timed,
)
from chorus.cluster.objects.volume_tasks import (
    find_all_in_volume,
    find_in_block,
    label_voxels,
    number_volume,
    volume_schema,
)
from chorus.cluster.planning.requests import PlanReporter
from chorus.cluster.runs.volume_merging import WORK as VOLUMES
from chorus.cluster.runtime.signals import stoppable
from chorus.cluster.runtime.started_tasks import Ending, carry_out, interruptible
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.runtime.tasks import TaskResult, Tasks
from chorus.cluster.state.command import Command, begin_inside, earlier_record
from chorus.cluster.state.outcome import Outcome, count, state_of
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage import remove_folder, storage_errors

ObjectsOutcome = Outcome[ObjectsRow, ObjectsSummary]
# An image of at most this many regions is one task.
_AT_ONCE = 4
_STAGES = ("regions", "numbers", "labels", "end")


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
        return Outcome(out, "complete", "", known.images, known.summary)
    running = begin_inside(command, known, lambda: [TABLE, *_unfinished(out)], resumes=("running", "failures"))
    rows, ending = _carry_out(results, reporter)
    state, summary = state_of(ending.state, rows), _summary(results, rows, running.seconds)
    running.close(state, summary=summary, images=rows)
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
    url = storage.join(results.request.out, TABLE)
    with storage_errors(url):
        return [row.name for row in known.images] == results.table.names and storage.exists(url)


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
    fs, path = storage.filesystem(storage.join(results.request.out, *WORK))
    with storage_errors(path), ThreadPoolExecutor(16) as pool:
        files = fs.find(path) if fs.exists(path) else []
        signs = {file[len(path) :].strip("/") for file in files if file.endswith("/done.json")}
        names = {i: name for i, name in enumerate(results.table.names) if f"{name}/done.json" in signs}
        finished = dict(zip(names, pool.map(recorded_objects, map(results.work, names.values())), strict=True))
        for index in [index for index, known in finished.items() if known is None]:
            remove_folder(results.work(names[index]))
        return {index: known for index, known in finished.items() if known is not None}


def _carry_out(results: Results, reporter: PlanReporter) -> tuple[list[ObjectsRow], Ending]:
    finished = _finished(results)
    todo = [index for index in np.flatnonzero(results.finished).tolist() if index not in finished]
    errors: dict[int, tuple[int, str]] = {}
    request = results.request
    with interruptible() as ending:
        without = make_flows(results.flow_jobs(todo), reporter)
        names = results.table.names
        errors |= {index: (0, without[names[index]]) for index in todo if names[index] in without}
        todo = [index for index in todo if index not in errors]
        stream = _Stream(results, todo, finished, errors)
        items, pixels = len(todo), int(results.table.pixels[todo].sum())
        steps = stream.steps()
        carry_out(stream, request.executor, request.address, reporter, items=items, steps=steps, pixels=pixels)
        reporter.phase(f"writing {TABLE}")
        _unite(results, finished)
    return _rows(results, finished, {index: text for index, (_, text) in errors.items()}), ending


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
    todo : indices of the images to process
    finished, errors : receive the result of each image; of several errors, that of the first region
    """

    _tasks: Tasks
    _cores: int

    def __init__(
        self,
        results: Results,
        todo: list[int],
        finished: dict[int, ImageObjects],
        errors: dict[int, tuple[int, str]],
    ) -> None:
        self._results, self._todo, self._waiting = results, todo, iter(todo)
        self._finished, self._errors = finished, errors
        self._images: dict[int, _Progress] = {}
        self._running: dict[int, tuple[int, str, int]] = {}
        self._submitted = 0

    def steps(self) -> int:
        """Count the tasks of all images; for planes arithmetically, since there may be very many."""
        if self._results.of_volumes:
            counts = [[job.tasks(stage) for stage in _STAGES] for job in map(self._results.job, self._todo)]
            return sum(1 if count[0] <= _AT_ONCE else sum(count) for count in counts)
        regions = self._results.table.region_counts[self._todo]
        return int(np.where(regions <= _AT_ONCE, 1, 2 * regions + 2).sum())

    def begin(self, tasks: Tasks, cores: int) -> None:
        """Begin the first images."""
        self._tasks, self._cores = tasks, cores
        self._fill()

    def take(self, result: TaskResult) -> RegionStatus:
        """Record the result of a task, and submit what follows."""
        status = self._taken(result)
        self._fill()
        return status

    def _fill(self) -> None:
        """Begin images until all cores have enough to do; the jobs of the others are not created yet."""
        while len(self._running) < 4 * self._cores and (index := next(self._waiting, None)) is not None:
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
        for task in range(image.running):
            self._running[self._submitted] = index, stage, task
            arguments = (image.job, task) if stage in ("regions", "labels") else (image.job,)
            self._tasks.submit(self._submitted, timed, function, *arguments)
            self._submitted += 1

    def _taken(self, result: TaskResult) -> RegionStatus:
        """Record the result of a task, and submit the next stage of its image if it was the last task of one."""
        index, stage, task = self._running.pop(result.key)
        image = self._images[index]
        image.running -= 1
        if result.error is not None:
            self._errors[index] = min(self._errors.get(index, (task, result.error)), (task, result.error))
        elif result.value.objects is not None:
            self._finished[index] = result.value.objects
        if not image.running:
            if image.stages and index not in self._errors:
                self._proceed(index)
            else:
                del self._images[index]
        if result.error is not None:
            return RegionStatus(result.key, index, task, "failed", result.error)
        seconds, pixels = result.value.seconds, image.job.pixels(stage, task)
        return RegionStatus(result.key, index, task, "done", pixels=pixels, device_seconds=seconds, seconds=seconds)
