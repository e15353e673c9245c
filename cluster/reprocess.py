"""A whole run: plan, resume, stream, finish, scores. What it leaves does not depend on how often it was cut short."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import psutil

from cluster import session
from cluster.accounting import Account, calibration_content, earlier_calibration
from cluster.calibration import Calibration, calibrate
from cluster.executor import Executor
from cluster.images import ImageTable, PlannedImage
from cluster.ledger import clear_attempts, unended_regions
from cluster.lock import output_lock
from cluster.machines import with_gpu_memory
from cluster.metrics import driver_recorder, served
from cluster.placement import estimate_memory, may_grow, place, require_devices
from cluster.plan import RunContext, cost, layout_of, plan_images, resolve
from cluster.predicted_objects import add_objects, with_objects
from cluster.prices import ClusterFile
from cluster.pricing import CostForecast, forecast_costs
from cluster.record import RunRecord, clear_output, earlier_backend, open_output
from cluster.request import Forecast, Outcome, PredictRequest, Reporter, Silent
from cluster.run import Job, Run
from cluster.sentinels import check_sentinels
from cluster.serial import SerialExecutor
from cluster.stopping import stoppable
from cluster.timeline import profiled, span
from cluster.volumes import VolumeRun, planes_only
from pipeline import storage
from pipeline.allocation import keep_freed_memory
from pipeline.backends.choice import usable
from pipeline.ensemble import read_ensemble
from pipeline.errors import RefusedError
from pipeline.layout import FailedImage
from pipeline.outputs import labels_present, remove_labels

# Seconds from which on it is worth measuring first what makes a run fast.
_LONG = 600.0


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
    started, begun = time.time(), time.monotonic()
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    name = uuid.uuid4().hex[:12]
    with profiled(request.out, name, request.run.profile):
        with span("plan"):
            job = _plan(request, reporter)
        if request.run.cluster is not None:
            request.run.cluster.price_of_a_device(job.settings.device)
        with output_lock(request.out, name), served(request.run.metrics_port):
            record, fresh = _open(job, started)
            with _executor(job, reporter) as (executor, made):
                record.content["calibration"] = calibration_content(made.calibration, job.settings)
                account = _account(job, made, reporter, begun)
                # Nothing is removed before the ensemble was tried.
                run = _begin(job, record, name, executor, account, fresh=fresh)
                check_sentinels(
                    request,
                    job.ensemble,
                    job.settings,
                    reporter,
                    lambda inner: _within(planes_only(inner), name, executor, Silent()),
                )
                outcome = run.carry_out()
                _close_account(account, record, outcome)
                if job.request.objects != "none" and outcome.state != "interrupted":
                    with span("objects"):
                        add_objects(job.request, outcome, record, of_objects or Silent())
                return outcome


def forecast(request: PredictRequest, reporter: Reporter) -> Forecast:
    """What `predict` would do and cost, without doing it."""
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    job = _plan(request, reporter)
    with _executor(job, reporter) as (_, made):
        return made


def forecast_cost(
    request: PredictRequest, cluster: ClusterFile, calibration: str | None, reporter: Reporter
) -> CostForecast:
    """What `predict` would take and cost on nodes that need not be at hand.

    Parameters
    ----------
    calibration : an output whose run measured the ensemble; by default it is tried here and now

    Raises
    ------
    RefusedError
        If ensemble, sources or settings do not fit, or that run was another one.
    """
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    job = _plan(request, reporter)
    if calibration is not None:
        measured = earlier_calibration(calibration, job.ensemble.hash, job.settings)
        return forecast_costs(job, cost(job.table, job.ensemble, job.settings), measured, cluster)
    with _executor(job, reporter) as (_, made):
        return forecast_costs(job, made.cost, made.calibration, cluster)


def _account(job: Job, made: Forecast, reporter: Reporter, begun: float) -> Account:
    recorder = driver_recorder(job.request.out, job.ensemble.spec.name)
    return Account(reporter, made, job.settings.device, job.request.run.cluster, recorder, begun)


def _close_account(account: Account, record: RunRecord, outcome: Outcome) -> None:
    """Note beside the outcome what the session took and cost."""
    outcome.summary |= account.summary()
    if outcome.state != "interrupted":
        record.content["summary"] = outcome.summary
        record.write(outcome.out)


def _plan(request: PredictRequest, reporter: Reporter) -> Job:
    storage.check_writable(request.out)
    ensemble = read_ensemble(request.ensemble, trust_code=request.run.trust_code)
    request = _with_backend(with_objects(request, ensemble))
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


def _with_backend(request: PredictRequest) -> PredictRequest:
    """The request as the run in its output was, where it does not choose: what was measured since changes nothing."""
    if request.settings.backend != "auto" or request.overwrite:
        return request
    backend = earlier_backend(request.out) or "auto"
    return request.model_copy(update={"settings": request.settings.model_copy(update={"backend": backend})})


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
    if not fresh:
        record.repeat(len(unended_regions(out)))
    # The record first: an output with anything in it is known as ours however soon the run ends.
    record.write(out)
    job.table.write(context.table_url)
    clear_attempts(out)
    if job.settings.volumes == "all":
        of_view = partial(_within, name=name, executor=executor, reporter=reporter)
        return VolumeRun(job, context, executor, reporter, record, of_view)
    return Run(job, context, executor, reporter, record)


def _within(request: PredictRequest, name: str, executor: Executor, reporter: Reporter) -> Outcome:
    """A part of a run on what carries out the whole, in a folder of its output."""
    job = _plan(request, Silent())
    record, fresh = _open(job, time.time())
    return _begin(job, record, name, executor, reporter, fresh=fresh).carry_out()


def predict_jobs(jobs: Sequence[Job], reporter: Reporter) -> list[Outcome]:
    """Planned runs of one ensemble over the same images, in folders of an output that the caller holds.

    One after the other, until one is cut short.
    """
    outcomes: list[Outcome] = []
    with _executor(jobs[0], reporter) as (executor, _):
        for job in jobs:
            record, fresh = _open(job, time.time())
            run = _begin(job, record, uuid.uuid4().hex[:12], executor, reporter, fresh=fresh)
            outcomes.append(run.carry_out())
            if outcomes[-1].state == "interrupted":
                break
    return outcomes


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
        profile=job.request.run.profile,
    )


@contextmanager
def _executor(job: Job, reporter: Reporter) -> Iterator[tuple[Executor, Forecast]]:
    """What carries the run out, once the ensemble was tried and a placement found that fits."""
    run = job.request.run
    if run.executor == "serial":
        stages = run.stages if run.placement == "staged" else 1
        keep_freed_memory()
        # As many places for members as there are stages, though one after the other.
        resources = session.Resources(stages * job.settings.threads, 0, 1, psutil.virtual_memory().total)
        measured = calibrate(job.ensemble, job.settings)
        yield SerialExecutor(stages), _forecast(job, resources, measured, reporter)
        return
    from cluster.stream import FREE_SECONDS, MACHINE_SECONDS, RayExecutor, calibrate_on_ray

    reporter.phase("starting Ray" if run.address is None else f"connecting to Ray at {run.address}")
    own_port = None if run.metrics_port is None else run.metrics_port + 1
    with span("start Ray"):
        resources = session.start(run.address, staged=run.placement == "staged", metrics_port=own_port)
    try:
        reporter.phase("trying the ensemble")
        require_devices(job.settings, run, resources)
        if job.settings.device == "cuda" and not resources.gpus:
            reporter.phase("waiting for a machine with a GPU")
        patience = MACHINE_SECONDS if may_grow(run) else FREE_SECONDS
        with span("try the ensemble"):
            measured = calibrate_on_ray(job.ensemble, job.settings, patience)
        resources = session.found(resources.logs)
        if job.settings.device == "cuda":
            resources = replace(resources, machines=with_gpu_memory(resources.machines))
        made = _forecast(job, resources, measured, reporter)
        longest = made.cost.most_tiles * measured.seconds_per_tile
        yield RayExecutor(made.placement, longest, resources.logs), made
    finally:
        with span("stop Ray"):
            session.stop()


def _forecast(job: Job, resources: session.Resources, measured: Calibration, reporter: Reporter) -> Forecast:
    expected = cost(job.table, job.ensemble, job.settings)
    memory = estimate_memory(job.table, job.ensemble, job.settings, measured)
    placement = place(job.ensemble, job.settings, job.request.run, resources, memory, expected, measured.device_memory)
    seconds = expected.tiles * measured.seconds_per_tile / placement.actors
    failures = [(failed.name, failed.message) for failed in job.failures]
    advice = _advice(job) if seconds > _LONG else ""
    made = Forecast(expected, measured, memory, placement, seconds, failures, advice)
    reporter.forecast(made)
    return made


def _advice(job: Job) -> str:
    """What would make a run faster, where nobody chose how the networks are carried out and nothing was measured."""
    if job.request.settings.backend != "auto" or job.settings.backend != "eager" or job.settings.device != "cpu":
        return ""
    if len(usable(job.settings.precision, "cpu")) < 3:  # PyTorch alone, whole or compiled
        return "`pip install 'chorus-bioimage[openvino]'` and `chorus bench engine` may make this run twice as fast"
    return "`chorus bench engine` with this ensemble may make this run twice as fast: it finds the best backend"


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
