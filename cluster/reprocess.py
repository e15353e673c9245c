"""A whole run: plan, resume, stream, finish, scores. What it leaves does not depend on how often it was cut short."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import psutil

from cluster import session
from cluster.calibration import Calibration, calibrate
from cluster.executor import Executor, TaskResult
from cluster.finishing import base_row, finish_image
from cluster.images import ImageTable, PlannedImage
from cluster.ledger import Finished, Ledger, clear_attempts
from cluster.lock import output_lock
from cluster.placement import estimate_memory, place, require_devices
from cluster.plan import ResolvedSettings, RunContext, cost, layout_of, plan_images, resolve
from cluster.predicted_objects import add_objects, with_objects
from cluster.record import RunRecord, clear_output, open_output, write_features, write_scores
from cluster.request import Forecast, Outcome, PredictRequest, Reporter, Silent
from cluster.sentinels import check_sentinels
from cluster.serial import SerialExecutor
from cluster.statistics import measure_image, measures_of
from cluster.stopping import STOPPED, stoppable
from cluster.survey import survey_dataset
from cluster.worker import RegionStatus
from pipeline import storage
from pipeline.allocation import keep_freed_memory
from pipeline.containers import prepare_collection, prepare_plate
from pipeline.ensemble import Ensemble, read_ensemble
from pipeline.errors import CutShortError, OutputError, RefusedError
from pipeline.layout import FailedImage
from pipeline.ngff import collection_series, plate_metadata, well_metadata
from pipeline.outputs import labels_present, remove_labels


@dataclass
class _Job:
    """A planned run."""

    request: PredictRequest
    ensemble: Ensemble
    settings: ResolvedSettings
    table: ImageTable
    failures: list[FailedImage]


@stoppable()
def predict(request: PredictRequest, reporter: Reporter, of_objects: Reporter | None = None) -> Outcome:
    """Run an ensemble over sources; the same call again goes on where an earlier one was cut short.

    Objects, where they are asked for, are made when all images are done; `of_objects` is told how that goes on.

    Raises
    ------
    RefusedError
        Before any work: ensemble, sources, settings or machine do not fit, or `out` is taken.
    CutShortError
        If the process is told to stop before the first region.
    """
    started = time.time()
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    job = _plan(request, reporter)
    name = uuid.uuid4().hex[:12]
    with output_lock(request.out, name):
        record, fresh = _open(job, started)
        with _executor(job, reporter) as (executor, _):
            # Nothing is removed before the ensemble was tried.
            run = _begin(job, record, name, executor, reporter, fresh=fresh)
            check_sentinels(request, job.ensemble, job.settings, reporter, lambda inner: _within(inner, name, executor))
            outcome = run.carry_out()
            if job.request.objects != "none" and outcome.state != "interrupted":
                add_objects(job.request, outcome, record, of_objects or Silent())
            return outcome


def forecast(request: PredictRequest, reporter: Reporter) -> Forecast:
    """What `predict` would do and cost, without doing it."""
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    job = _plan(request, reporter)
    with _executor(job, reporter) as (_, made):
        return made


def _plan(request: PredictRequest, reporter: Reporter) -> _Job:
    storage.check_writable(request.out)
    ensemble = read_ensemble(request.ensemble, trust_code=request.run.trust_code)
    request = with_objects(request, ensemble)
    settings = resolve(request.settings, ensemble)
    reporter.phase("looking for images")
    failures: list[FailedImage] = []

    def planned() -> Iterator[PlannedImage]:
        for image in plan_images(request.sources, ensemble, settings):
            if isinstance(image, FailedImage):
                failures.append(image)
            else:
                yield image

    return _Job(request, ensemble, settings, ImageTable.collect(planned()), failures)


def _open(job: _Job, started: float) -> tuple[RunRecord, bool]:
    """The record of a run, and whether its output is new; raises RefusedError where that holds other results."""
    failed = [image.name for image in job.failures]
    record = RunRecord.of(job.request, job.ensemble, job.settings, job.table, failed, started)
    return record, open_output(record, job.request.out, overwrite=job.request.overwrite)


def _begin(job: _Job, record: RunRecord, name: str, executor: Executor, reporter: Reporter, *, fresh: bool) -> _Run:
    """Make the output that of this run."""
    out = job.request.out
    if fresh:
        clear_output(out)
    _check_in_place(job, fresh=fresh)
    context = _context(job, name)
    # The record first: an output with anything in it is known as ours however soon the run ends.
    record.write(out)
    job.table.write(context.table_url)
    clear_attempts(out)
    return _Run(job, context, executor, reporter, record)


def _within(request: PredictRequest, name: str, executor: Executor) -> Outcome:
    """A small run on what carries out another one, in a folder of its output."""
    job = _plan(request, Silent())
    record, fresh = _open(job, time.time())
    return _begin(job, record, name, executor, Silent(), fresh=fresh).carry_out()


def _context(job: _Job, name: str) -> RunContext:
    return RunContext(
        out=job.request.out,
        ensemble=job.ensemble.url,
        ensemble_hash=job.ensemble.hash,
        settings=job.settings,
        session=name,
        trust_code=job.ensemble.trust_code,
        thumbnails=job.request.run.thumbnails,
    )


@contextmanager
def _executor(job: _Job, reporter: Reporter) -> Iterator[tuple[Executor, Forecast]]:
    """What carries the run out, once the ensemble was tried and a placement found that fits."""
    run = job.request.run
    if run.executor == "serial":
        stages = run.stages if run.placement == "staged" else 1
        keep_freed_memory()
        # As many places for members as there are stages, though one after the other.
        resources = session.Resources(stages, 0, 1, psutil.virtual_memory().total)
        measured = calibrate(job.ensemble, job.settings, 1)
        yield SerialExecutor(stages), _forecast(job, resources, measured, reporter)
        return
    from cluster.stream import RayExecutor, calibrate_on_ray

    reporter.phase("starting Ray" if run.address is None else f"connecting to Ray at {run.address}")
    resources = session.start(run.address, staged=run.placement == "staged")
    try:
        reporter.phase("trying the ensemble")
        require_devices(job.settings, resources)
        measured = calibrate_on_ray(job.ensemble, job.settings)
        made = _forecast(job, resources, measured, reporter)
        longest = made.cost.most_tiles * measured.seconds_per_tile
        yield RayExecutor(made.placement, longest, resources.logs), made
    finally:
        session.stop()


def _forecast(job: _Job, resources: session.Resources, measured: Calibration, reporter: Reporter) -> Forecast:
    expected = cost(job.table, job.ensemble, job.settings)
    memory = estimate_memory(job.table, job.ensemble, job.settings, measured)
    placement = place(job.ensemble, job.settings, job.request.run, resources, memory, expected, measured.device_memory)
    seconds = expected.tiles * measured.seconds_per_tile / placement.actors
    failures = [(failed.name, failed.message) for failed in job.failures]
    made = Forecast(expected, measured, memory, placement, seconds, failures)
    reporter.forecast(made)
    return made


def _check_in_place(job: _Job, *, fresh: bool) -> None:
    """Labels in a source that are not this run's are never written over, unless asked."""
    if not job.settings.in_place or not fresh:
        return
    for index in range(len(job.table)):
        layout = layout_of(job.table.image(index), job.ensemble, job.settings, job.request.out)
        if labels_present(layout):
            if not job.request.overwrite:
                raise RefusedError(
                    f"{layout.labels_url}: has labels/semantic already; use --overwrite to replace them, or leave "
                    f"--in-place out"
                )
            remove_labels(layout)


def _prepare_container(root: str, kind: str, url: str) -> None:
    """The groups around the images of a plate or of a collection, as in the source."""
    if kind == "plate":
        plate = plate_metadata(root)
        prepare_plate(url, plate, {well.path: well_metadata(root, well.path) for well in plate.wells})
    else:
        prepare_collection(url, collection_series(root))


class _Run:
    """One session of a run: what is still open is streamed, what is complete is finished."""

    def __init__(
        self, job: _Job, context: RunContext, executor: Executor, reporter: Reporter, record: RunRecord
    ) -> None:
        self._job, self._context, self._executor = job, context, executor
        self._reporter, self._record = reporter, record
        self._table = job.table
        self._ledger = Ledger(context.out)
        self._finished: Finished = self._ledger.scan(self._table)
        self._remaining = self._finished.remaining(self._table)
        self._rows: dict[int, dict[str, object]] = {}
        self._errors: dict[int, tuple[int, str]] = {}

    def carry_out(self) -> Outcome:
        state, message = "complete", ""
        try:
            self._containers()
            self._statistics()
            self._stream()
        except CutShortError as error:
            state, message = "interrupted", str(error)
        except KeyboardInterrupt:
            state, message = "interrupted", STOPPED
        rows = self._collect()
        if state == "complete" and any(row["status"] == "failed" for row in rows):
            state = "failures"
        outcome = Outcome(self._context.out, state, message, rows)
        outcome.summary = self._record.close(outcome, self._job.table)
        if state != "interrupted":
            write_features(self._context.out, rows)
            write_scores(self._context.out, rows)
            clear_attempts(self._context.out)
            self._record.write(self._context.out)
        return outcome

    def _containers(self) -> None:
        """Plates stay plates, collections stay collections."""
        for root, index in self._table.containers(np.flatnonzero(~self._finished.images)).items():
            image = self._table.image(index)
            url = storage.join(self._context.out, "images", image.name.removesuffix(image.path).rstrip("/"))
            _prepare_container(root, image.kind, url)

    def _statistics(self) -> None:
        ensemble, tile = self._job.ensemble, self._context.settings.tile
        if measures_of(ensemble, tile, "dataset") and not self._finished.images.all():
            self._reporter.phase("measuring the data set")
            for result in survey_dataset(self._executor, self._context, self._table, ensemble):
                self._fail(result.key, -1, result)
        if not measures_of(ensemble, tile, "image"):
            return
        self._reporter.phase("measuring the images")
        for index in np.flatnonzero(~self._finished.images).tolist():
            self._executor.submit(index, measure_image, self._context, self._table.image(index), ensemble)
        for result in self._executor.results(wait=True):
            if result.error is not None:
                self._fail(result.key, -1, result)

    def _stream(self) -> None:
        for index in np.flatnonzero((self._remaining == 0) & ~self._finished.images).tolist():
            self._finish(index)
        todo = self._finished.todo(self._table)
        broken = np.zeros(len(self._table), bool)
        broken[list(self._errors)] = True
        todo = todo[~np.repeat(broken, self._table.region_counts)[todo]]
        self._reporter.begin(len(todo), self._pixels(todo), self._executor.actors)
        try:
            for status in self._executor.regions(self._context, todo):
                self._reporter.region(status)
                self._take(status)
                self._take_results(wait=False)
            self._take_results(wait=True)
        finally:
            self._reporter.end()

    def _take(self, status: RegionStatus) -> None:
        if status.state == "unwritable":
            raise OutputError(status.message)
        self._remaining[status.image] -= 1
        if status.state != "done":
            known = self._errors.get(status.image)
            if known is None or status.place < known[0]:
                self._errors[status.image] = (status.place, status.message)
        elif self._remaining[status.image] == 0 and status.image not in self._errors:
            self._finish(status.image)

    def _finish(self, index: int) -> None:
        self._executor.submit(index, finish_image, self._context, self._table.image(index), self._job.ensemble)

    def _take_results(self, *, wait: bool) -> None:
        for result in self._executor.results(wait=wait):
            if result.error is None:
                self._rows[result.key] = result.value
            else:
                self._fail(result.key, -1, result)

    def _fail(self, image: int, place: int, result: TaskResult) -> None:
        if result.unwritable:
            raise OutputError(result.error or "")
        self._errors[image] = (place, result.error or "")

    def _pixels(self, todo: np.ndarray) -> int:
        """Pixels of the open regions, those of an image taken to be equal: for the rate that is shown."""
        images = np.searchsorted(np.cumsum(self._table.region_counts), todo, side="right")
        return int((self._table.pixels / self._table.region_counts)[images].sum())

    def _collect(self) -> list[dict[str, object]]:
        """A row per image in the order of the plan, then those that could not be planned."""
        names = self._table.names
        earlier = [int(index) for index in np.flatnonzero(self._finished.images)]
        records = self._ledger.image_records([names[index] for index in earlier])
        rows = dict(self._rows) | {i: record.row for i, record in zip(earlier, records, strict=True)}
        for index, (_, message) in self._errors.items():
            image = self._table.image(index)
            rows[index] = base_row(image.path, image.root, image.name, self._job.ensemble) | {"message": message}
        planned = [rows[index] for index in sorted(rows)]
        for failed in self._job.failures:
            row = base_row(failed.path, failed.root, failed.name, self._job.ensemble)
            planned.append(row | {"message": failed.message})
        return planned
