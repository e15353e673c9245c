"""A whole run: plan, resume, stream, finish, scores. What it leaves does not depend on how often it was cut short."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from cluster import session
from cluster.calibration import Calibration, calibrate
from cluster.executor import Executor
from cluster.images import ImageTable, PlannedImage
from cluster.ledger import clear_attempts
from cluster.lock import output_lock
from cluster.metrics import served
from cluster.placement import estimate_memory, place, require_devices
from cluster.plan import RunContext, cost, layout_of, plan_images, resolve
from cluster.predicted_objects import add_objects, with_objects
from cluster.record import RunRecord, clear_output, open_output
from cluster.request import Forecast, Outcome, PredictRequest, Reporter, Silent
from cluster.run import Job, Run
from cluster.sentinels import check_sentinels
from cluster.serial import SerialExecutor
from cluster.stopping import stoppable
from pipeline import storage
from pipeline.allocation import keep_freed_memory
from pipeline.ensemble import read_ensemble
from pipeline.errors import RefusedError
from pipeline.layout import FailedImage
from pipeline.outputs import labels_present, remove_labels


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
    with output_lock(request.out, name), served(request.run.metrics_port):
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


def _plan(request: PredictRequest, reporter: Reporter) -> Job:
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

    return Job(request, ensemble, settings, ImageTable.collect(planned()), failures)


def _open(job: Job, started: float) -> tuple[RunRecord, bool]:
    """The record of a run, and whether its output is new; raises RefusedError where that holds other results."""
    failed = [image.name for image in job.failures]
    record = RunRecord.of(job.request, job.ensemble, job.settings, job.table, failed, started)
    return record, open_output(record, job.request.out, overwrite=job.request.overwrite)


def _begin(job: Job, record: RunRecord, name: str, executor: Executor, reporter: Reporter, *, fresh: bool) -> Run:
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
    return Run(job, context, executor, reporter, record)


def _within(request: PredictRequest, name: str, executor: Executor) -> Outcome:
    """A small run on what carries out another one, in a folder of its output."""
    job = _plan(request, Silent())
    record, fresh = _open(job, time.time())
    return _begin(job, record, name, executor, Silent(), fresh=fresh).carry_out()


def _context(job: Job, name: str) -> RunContext:
    return RunContext(
        out=job.request.out,
        ensemble=job.ensemble.url,
        ensemble_hash=job.ensemble.hash,
        ensemble_name=job.ensemble.spec.name,
        settings=job.settings,
        session=name,
        trust_code=job.ensemble.trust_code,
        thumbnails=job.request.run.thumbnails,
    )


@contextmanager
def _executor(job: Job, reporter: Reporter) -> Iterator[tuple[Executor, Forecast]]:
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
    own_port = None if run.metrics_port is None else run.metrics_port + 1
    resources = session.start(run.address, staged=run.placement == "staged", metrics_port=own_port)
    try:
        reporter.phase("trying the ensemble")
        require_devices(job.settings, resources)
        measured = calibrate_on_ray(job.ensemble, job.settings)
        made = _forecast(job, resources, measured, reporter)
        longest = made.cost.most_tiles * measured.seconds_per_tile
        yield RayExecutor(made.placement, longest, resources.logs), made
    finally:
        session.stop()


def _forecast(job: Job, resources: session.Resources, measured: Calibration, reporter: Reporter) -> Forecast:
    expected = cost(job.table, job.ensemble, job.settings)
    memory = estimate_memory(job.table, job.ensemble, job.settings, measured)
    placement = place(job.ensemble, job.settings, job.request.run, resources, memory, expected, measured.device_memory)
    seconds = expected.tiles * measured.seconds_per_tile / placement.actors
    failures = [(failed.name, failed.message) for failed in job.failures]
    made = Forecast(expected, measured, memory, placement, seconds, failures)
    reporter.forecast(made)
    return made


def _check_in_place(job: Job, *, fresh: bool) -> None:
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
