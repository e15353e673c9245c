"""A large image, processed as a run of `chorus predict` inside a replica, on the device shared with other requests."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from chorus.cluster.objects.after_predict import add_objects
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import RunContext
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.resolved_settings import ResolvedSettings
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.regions.batching import SharedDevice, SharedEngine
from chorus.cluster.regions.worker import Answering, RegionWorker
from chorus.cluster.runs.run import PlannedRun, Run
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.runtime.started_tasks import SerialTasks
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.state.ledger import Ledger
from chorus.cluster.state.run_record import RunRecord, open_output
from chorus.pipeline.core.outputs import FLOWS
from chorus.pipeline.errors import ChorusError, CutShortError
from chorus.pipeline.io import storage
from chorus.serving.contract.jobs import BEAT, JobRecord, JobStore
from chorus.serving.contract.problems import UNEXPECTED, answered
from chorus.serving.prediction.hosting import Hosted
from chorus.serving.prediction.steps import Planned, result_of_row

log = logging.getLogger("chorus")
# Seconds for which a region may wait for the shared device.
_PATIENCE = 3600.0


@dataclass(frozen=True)
class LargeImage:
    """The job of a large image.

    Attributes
    ----------
    source : URL of the OME-Zarr
    """

    planned: Planned
    source: str
    record: JobRecord


class _StoppedError(CutShortError):
    """The job was stopped on request."""


class _Executor(SerialTasks):
    """See `chorus.cluster.regions.executor.Executor`: processes regions one by one, on a shared device."""

    actors = 1

    def __init__(self, answering: Answering, device: torch.device, store: JobStore, job: str) -> None:
        super().__init__()
        self._answering, self._device, self._store, self._job = answering, device, store, job

    def regions(self, context: RunContext, todo: np.ndarray) -> Generator[RegionStatus]:
        worker = RegionWorker(context, self._device, answering=self._answering)
        for region in todo.tolist():
            if self._store.is_stopped(self._job):
                raise _StoppedError("stopped")
            yield worker.process(region)


class _Progress(Silent):
    """Counts the regions that are done."""

    def __init__(self) -> None:
        self.done = 0

    def region(self, status: RegionStatus) -> None:
        self.done += 1


def carry_out(large: LargeImage, device: SharedDevice, store: JobStore) -> JobRecord:
    """Process a large image, and record its progress in `store`; return the last record.

    An unexpected error is raised again after the job is recorded as failed.
    """
    began, progress = time.monotonic(), _Progress()
    hosted, job = large.planned.hosted, large.record.job
    record = large.record.model_copy(update={"job": job.model_copy(update={"state": "running"})})
    ended: dict[str, object] = {"state": "failed", "detail": UNEXPECTED}
    try:
        with _beating(store, record, progress):
            outcome = _run(large, device, store, progress)
            ended = _ended(outcome, large, store, began)
    except _StoppedError:
        ended = {"state": "cancelled"}
    except ChorusError as error:
        log.info("job %s: %s", job.id, error)
        ended = {"state": "failed", "detail": answered(str(error).replace(hosted.ensemble.url, hosted.name))}
    finally:
        last = record.job.model_copy(update={"done": progress.done} | ended)
        record = record.model_copy(update={"job": last, "updated": time.time()})
        store.write(record)
    return record


def _run(large: LargeImage, device: SharedDevice, store: JobStore, progress: _Progress) -> PredictOutcome:
    planned, out = large.planned, store.place(large.record.job.id, "out")
    hosted: Hosted = planned.hosted
    settings: ResolvedSettings = planned.settings
    image: PlannedImage = planned.image
    request = PredictRequest(
        sources=[large.source],
        ensemble=hosted.ensemble.url,
        out=out,
        settings=ResultSettings.model_validate(settings.model_dump(include=set(ResultSettings.model_fields))),
        run=RunSettings(executor="serial", thumbnails=False, sentinels="skip", trust_code=hosted.ensemble.trust_code),
        objects="flows" if FLOWS in hosted.ensemble.outputs else "none",
    )
    table = ImageTable.collect([image])
    record = RunRecord.of(request, hosted.ensemble, settings, table, [], time.time())
    open_output(record, out, overwrite=False)
    context = RunContext(
        out=out,
        ensemble=hosted.ensemble.url,
        ensemble_hash=hosted.ensemble.hash,
        ensemble_name=hosted.ensemble.spec.name,
        settings=settings,
        session=uuid.uuid4().hex[:12],
        trust_code=hosted.ensemble.trust_code,
        thumbnails=False,
    )
    record.write(out)
    table.write(context.table_url)
    answering = SharedEngine(device, hosted.engine(settings), _PATIENCE)
    executor = _Executor(answering, hosted.device, store, large.record.job.id)
    outcome = Run(
        PlannedRun(request, hosted.ensemble, settings, table, []), context, executor, progress, record
    ).carry_out()
    if outcome.state == "interrupted":
        raise (
            _StoppedError(outcome.message) if store.is_stopped(large.record.job.id) else CutShortError(outcome.message)
        )
    if request.objects != "none" and outcome.state == "complete":
        return add_objects(request, outcome, record, Silent())
    return outcome


def _ended(outcome: PredictOutcome, large: LargeImage, store: JobStore, began: float) -> dict[str, object]:
    row, planned = outcome.rows[0], large.planned
    if row.status == "failed":
        return {"state": "failed", "detail": answered(row.message.replace(large.source, "source.url"))}
    job, out = large.record.job, outcome.out
    (known,) = Ledger(out).image_records([planned.image.name])
    objects = None if outcome.summary.objects is None else outcome.summary.objects.counts
    prediction = result_of_row(planned, known, job.id, time.monotonic() - began, objects)
    where = storage.join("images", planned.image.name)
    links = job.links | {"results": f"/v1/predictions/{job.id}/files/{where}"}
    if "://" in store.url:
        links["storage"] = storage.join(out, where)
    return {"state": "done", "prediction": prediction, "links": links}


@contextmanager
def _beating(store: JobStore, record: JobRecord, progress: _Progress) -> Iterator[None]:
    """Record every few seconds that the job is alive."""
    ended = threading.Event()

    def beat() -> None:
        while True:
            job = record.job.model_copy(update={"done": progress.done})
            try:
                store.write(record.model_copy(update={"job": job, "updated": time.time()}))
            except ChorusError as error:
                log.warning("job %s: %s", job.id, error)
            if ended.wait(BEAT):
                return

    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
