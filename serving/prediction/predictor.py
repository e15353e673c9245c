"""Answers requests for predictions of one ensemble on one device. Knows neither HTTP nor Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from chorus.cluster.regions.batch_queue import BusyError, LateError
from chorus.cluster.regions.batching import SharedDevice
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.errors import ChorusError, OutputError, RefusedError
from chorus.pipeline.inference.oom_splitting import is_out_of_memory
from chorus.pipeline.io import storage
from chorus.serving.contract.jobs import JobRecord, JobStore
from chorus.serving.contract.metrics import ReplicaMetrics
from chorus.serving.contract.predictors import Answer, LargeTask, PredictorOutcome, Refusal, Task, TooLarge
from chorus.serving.contract.problems import UNEXPECTED, RequestError, answered
from chorus.serving.contract.schemas import EnsembleInfo
from chorus.serving.contract.settings import ServeSettings
from chorus.serving.contract.sources import Stored
from chorus.serving.prediction.encoding import encode
from chorus.serving.prediction.hosting import Hosted
from chorus.serving.prediction.large_images import LargeImage, carry_out
from chorus.serving.prediction.steps import Planned, Result, conclude, cost_pixels, plan, prepare

log = logging.getLogger("chorus")
T = TypeVar("T")
_LATE = "the image was not done in time; ask for less, or allow more"
# Threads that read, measure and encode while another request is on the device.
_BESIDE = 4


class Predictor:
    """One ensemble on one device.

    Parameters
    ----------
    name : of the ensemble
    url : of its ``ensemble.yaml``
    metrics : counts what is done
    """

    def __init__(self, name: str, url: str, settings: ServeSettings, metrics: ReplicaMetrics) -> None:
        device_of(settings.device).use_threads(settings.threads)
        self._name, self._settings, self._metrics = name, settings, metrics
        self._device = SharedDevice(settings.limits.waiting_tiles)
        self._pool = ThreadPoolExecutor(_BESIDE, thread_name_prefix="predict")
        self._jobs, self._jobs_open = ThreadPoolExecutor(1, thread_name_prefix="jobs"), 0
        self._hosted = Hosted.load(name, url, settings)

    @property
    def info(self) -> EnsembleInfo:
        """Return the description of the ensemble."""
        return self._hosted.info

    @property
    def device(self) -> SharedDevice:
        """Return the device shared by all requests."""
        return self._device

    def change(self, url: str) -> None:
        """Switch to another ensemble for new requests; requests in progress end with the one that they began with.

        Raises
        ------
        RefusedError : it cannot be used; the one before stays
        """
        self._hosted = Hosted.load(self._name, url, self._settings)

    async def predict(self, task: Task) -> PredictorOutcome:
        """Predict an image; when the caller is cancelled, all work on it is cancelled too."""
        began = time.monotonic()
        self._metrics.began()
        outcome: PredictorOutcome = Refusal(500, UNEXPECTED)
        try:
            outcome = await asyncio.wait_for(self._answer(task, began), task.seconds)
        except TimeoutError:
            outcome = Refusal(504, _LATE)
        except RequestError as error:
            outcome = Refusal(error.status, error.detail, error.retry_after)
        except OutputError as error:
            log.warning("request %s: %s", task.id, error)
            outcome = Refusal(503, "the storage of the server does not take the result", self._settings.retry_after)
        except ChorusError as error:
            outcome = self._refused(task, error)
        except MemoryError:
            outcome = Refusal(413, "the image takes more memory than there is")
        finally:
            self._metrics.ended(outcome, time.monotonic() - began, self._device.load)
        return outcome

    async def _answer(self, task: Task, began: float) -> PredictorOutcome:
        hosted, limits = self._hosted, self._settings.limits
        planned = await self._beside(plan, hosted, task.source, task.options, limits)
        if cost_pixels(planned) > limits.at_once_pixels:
            return TooLarge(planned.image.regions, planned.image.pixels)
        result = await self._result(planned, task, began)
        body = await self._beside(encode, result, task.media, task.options.outputs)
        return Answer(task.media, body)

    async def _result(self, planned: Planned, task: Task, began: float) -> Result:
        prepared = await self._beside(prepare, planned)
        work, engine = prepared.work, planned.hosted.engine(planned.settings)
        until = began + task.seconds
        try:
            answer = self._device.submit(engine, work.plane, work.target, work.features, until)
        except BusyError as error:
            raise RequestError(503, "too many images are waiting", error.retry_after) from error
        try:
            posterior, _ = await asyncio.wrap_future(answer)
        except LateError as error:
            raise RequestError(504, _LATE) from error
        except Exception as error:
            if is_out_of_memory(error):
                raise RequestError(503, "the device is out of memory", 10) from error
            raise
        finally:
            answer.cancel()  # does nothing when it is there
        return await self._beside(conclude, prepared, posterior, task.id, began)

    async def _beside(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def start(self, large: LargeTask) -> Refusal | None:
        """Start a job; jobs run one after the other, while single images are still answered."""
        limits = self._settings.limits
        if self._settings.jobs_url is None:
            return Refusal(413, "the image is too large to be answered at once, and this server does no jobs")
        if self._jobs_open >= limits.jobs:
            return Refusal(429, "too many large images are waiting", self._settings.retry_after)
        try:
            planned = await self._beside(plan, self._hosted, large.source, large.options, limits)
        except (RequestError, ChorusError) as error:
            return Refusal(getattr(error, "status", 422), answered(str(error), large.source.url))
        image = LargeImage(planned, storage.join(large.source.url, large.source.path), large.record)
        store = JobStore(self._settings.jobs_url, limits.kept_seconds)
        self._jobs_open += 1
        done = asyncio.get_running_loop().run_in_executor(self._jobs, carry_out, image, self._device, store)
        done.add_done_callback(partial(self._job_ended, large.record.job.id))
        return None

    def _job_ended(self, name: str, done: asyncio.Future[JobRecord]) -> None:
        self._jobs_open -= 1
        if not done.cancelled() and done.exception() is not None:
            log.error("job %s", name, exc_info=done.exception())

    def _refused(self, task: Task, error: ChorusError) -> Refusal:
        """Turn an error from the rooms below into a Refusal, without internal details."""
        log.info("request %s: %s", task.id, error)
        known = [task.source.url, task.source.path] if isinstance(task.source, Stored) else [task.source.image.root]
        if isinstance(error, RefusedError) and self._hosted.ensemble.url in str(error):
            known.append(self._name)
        sentence = str(error).replace(self._hosted.ensemble.url, self._name)
        return Refusal(422, answered(sentence, *known))

    def close(self) -> None:
        """Wait for the requests in progress."""
        for pool in (self._jobs, self._pool):
            pool.shutdown()
        self._device.close()
