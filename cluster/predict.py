"""A whole run: plan, resume, stream, finish, scores. Its results do not depend on how often it was interrupted."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from chorus.cluster.costs.accounting import Account, earlier_calibration
from chorus.cluster.costs.forecast import CostForecast, forecast_costs
from chorus.cluster.evaluation.sentinels import check_sentinels
from chorus.cluster.objects.after_predict import add_objects, with_objects
from chorus.cluster.planning.cost import cost
from chorus.cluster.planning.devices.cluster_file import ClusterFile
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import plan_images
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.planning.requests import Forecast, PlanReporter, PredictRequest
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.regions.executor import Executor
from chorus.cluster.runs.flagging import flag_run, record_flags
from chorus.cluster.runs.run import PlannedRun, Run
from chorus.cluster.runs.setup import executor_of, make_ready, open_record
from chorus.cluster.runs.volume_run import VolumeRun, planes_only
from chorus.cluster.runtime.output_lock import output_lock
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.runtime.signals import stoppable
from chorus.cluster.state.documents import Calibration, PredictOutcome
from chorus.cluster.state.run_record import RunRecord, earlier_choice
from chorus.cluster.telemetry.metrics import driver_recorder, served
from chorus.cluster.telemetry.timeline import profiled, span
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import FailedImage
from chorus.pipeline.reference.storage import find_reference


@stoppable()
def predict(
    request: PredictRequest,
    reporter: PlanReporter,
    of_objects: PlanReporter | None = None,
    *,
    judge: bool = True,
) -> PredictOutcome:
    """Run an ensemble over sources; the same call again resumes.

    When all images are done, those of an ensemble with a reference set are judged by it, unless `judge` is false. Then
    objects are segmented, if requested; `of_objects` receives that progress.

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
            job = plan_job(request, reporter)
        if request.run.cluster is not None:
            request.run.cluster.price_of_a_device(job.settings.device)
        with output_lock(request.out, name), served(request.run.metrics_port):
            record, fresh = open_record(job, started)
            with executor_of(job, reporter) as (executor, made):
                record.execute(made.executor, Calibration.of(made.calibration, job.settings.device))
                account = _account(job, made, reporter, begun)
                # Nothing is removed before the ensemble was tried.
                run = _begin(job, record, name, executor, account, fresh=fresh)
                check_sentinels(
                    request,
                    job.ensemble,
                    job.settings,
                    reporter,
                    lambda inner: _within(planes_only(inner), name, executor, Silent(), request.out),
                )
                outcome = _accounted(run.carry_out(), account, record)
                if judge and outcome.state != "interrupted":
                    with span("flags"):
                        outcome = _judged(job, outcome, record)
                if job.request.objects != "none" and outcome.state != "interrupted":
                    with span("objects"):
                        outcome = add_objects(job.request, outcome, record, of_objects or Silent())
                return outcome


def _judged(job: PlannedRun, outcome: PredictOutcome, record: RunRecord) -> PredictOutcome:
    """Return the outcome with the counts of flags, which are written with them; itself without a reference set."""
    if job.found.reference is None:
        return outcome
    flagged = flag_run(job.request.out, job.found.reference)
    record_flags(job.request.out, job.ensemble.spec.name, flagged)
    whole = replace(outcome, summary=outcome.summary.model_copy(update={"flags": flagged.counts}))
    record.end(whole.state, whole.summary)
    record.write(whole.out)
    return whole


def forecast(request: PredictRequest, reporter: PlanReporter) -> Forecast:
    """Forecast the work and cost of `predict`, without running it."""
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    job = plan_job(request, reporter)
    with executor_of(job, reporter) as (_, made):
        return made


def forecast_cost(
    request: PredictRequest, cluster: ClusterFile, calibration: str | None, reporter: PlanReporter
) -> CostForecast:
    """Forecast the time and cost of `predict` on nodes that need not be available.

    Parameters
    ----------
    calibration : an output whose run measured the ensemble; by default it is tried here and now

    Raises
    ------
    RefusedError
        If ensemble, sources or settings do not fit, or that run was another one.
    """
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    job = plan_job(request, reporter)
    if calibration is not None:
        measured = earlier_calibration(calibration, job.ensemble.hash, job.settings)
        return forecast_costs(job, cost(job.table, job.ensemble, job.settings), measured, cluster)
    with executor_of(job, reporter) as (_, made):
        return forecast_costs(job, made.cost, made.calibration, cluster)


def _account(job: PlannedRun, made: Forecast, reporter: PlanReporter, begun: float) -> Account:
    recorder = driver_recorder(job.request.out, job.ensemble.spec.name)
    return Account(reporter, made, job.settings.device, job.request.run.cluster, recorder, begun)


def _accounted(outcome: PredictOutcome, account: Account, record: RunRecord) -> PredictOutcome:
    """Return the outcome with the session's time and cost, which are recorded."""
    whole = replace(outcome, summary=outcome.summary.accounted(account.summary()))
    if whole.state != "interrupted":
        record.end(whole.state, whole.summary)
        record.write(whole.out)
    return whole


def plan_job(request: PredictRequest, reporter: PlanReporter, *, without: str | None = None) -> PlannedRun:
    """Plan images, settings and what cannot be done; raises RefusedError as `predict` does.

    `without` is a folder that is not searched for images, by default the output.
    """
    storage.check_writable(request.out)
    ensemble = read_ensemble(request.ensemble, trust_code=request.run.trust_code)
    request = _as_before(with_objects(request, ensemble))
    settings = resolve(request.settings, ensemble)
    reporter.phase("looking for images")
    failures: list[FailedImage] = []

    def planned() -> Iterator[PlannedImage]:
        for image in plan_images(request.sources, ensemble, settings, without or request.out):
            if isinstance(image, FailedImage):
                failures.append(image)
            else:
                yield image

    table = ImageTable.collect(planned())
    return PlannedRun(request, ensemble, settings, table, failures, find_reference(ensemble))


def _as_before(request: PredictRequest) -> PredictRequest:
    """Return the request with the backend and batch that the run in its output took, unless it names a backend."""
    if request.settings.backend != "auto" or request.overwrite:
        return request
    if (earlier := earlier_choice(request.out)) is None:
        return request
    backend, batch = earlier
    chosen = {"backend": backend, "batch": request.settings.batch or batch}
    return request.model_copy(update={"settings": request.settings.model_copy(update=chosen)})


def _begin(
    job: PlannedRun, record: RunRecord, name: str, executor: Executor, reporter: PlanReporter, *, fresh: bool
) -> Run:
    """Prepare the output for this run."""
    context = make_ready(job, record, name, fresh=fresh)
    if job.settings.volumes == "all":
        of_view = partial(_within, name=name, executor=executor, reporter=reporter, whole=job.request.out)
        return VolumeRun(job, context, executor, reporter, record, of_view)
    return Run(job, context, executor, reporter, record)


def _within(
    request: PredictRequest, name: str, executor: Executor, reporter: PlanReporter, whole: str
) -> PredictOutcome:
    """Return a part of a run on what carries out the whole, in a folder of its output `whole`."""
    job = plan_job(request, Silent(), without=whole)
    record, fresh = open_record(job, time.time())
    return _begin(job, record, name, executor, reporter, fresh=fresh).carry_out()
