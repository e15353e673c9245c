"""The server on Ray Serve: one deployment per ensemble on its devices, and the web application before them.

``serve run chorus.serving.app:build ensemble=nuclei/`` or, in a config file for ``serve deploy`` and RayService::

    applications:
      - name: chorus
        route_prefix: /
        import_path: chorus.serving.app:build
        args: {ensembles: {nuclei: gs://bucket/nuclei/}, token_file: /etc/chorus/tokens.json}

The arguments are those of `chorus.serving.contract.settings.ServeSettings`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from chorus.cluster.runtime.tasks import begin_in_ray
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.retries import RETRIES
from chorus.serving.contract.metrics import ApplicationMetrics, ReplicaMetrics
from chorus.serving.contract.predictors import LargeTask, PredictorOutcome, Refusal, Task
from chorus.serving.contract.problems import UNEXPECTED, RequestError
from chorus.serving.contract.schemas import EnsembleInfo
from chorus.serving.contract.settings import ServeSettings, parse_settings
from chorus.serving.prediction.hosting import read_served
from chorus.serving.prediction.predictor import Predictor
from chorus.serving.web.api import create_app
from chorus.serving.web.tokens import read_tokens

log = logging.getLogger("chorus")
NAME = "chorus"
# Seconds in which a replaced replica may finish its requests.
_GRACE = 30.0


class EnsembleReplica:
    """An ensemble on one device.

    Parameters
    ----------
    name : of the ensemble
    settings : `ServeSettings` as JSON
    """

    def __init__(self, name: str, settings: str) -> None:
        begin_in_ray()
        self._name, self._settings = name, ServeSettings.model_validate_json(settings)
        self._predictor: Predictor | None = None

    async def reconfigure(self, config: dict[str, str]) -> None:
        """Host the ensemble at ``config["url"]``: at the start, and again when it changed.

        Meanwhile the earlier ensemble answers requests.
        """
        if self._predictor is None:
            self._predictor = await asyncio.to_thread(self._load, config["url"])
        else:
            await asyncio.to_thread(self._predictor.change, config["url"])

    def _load(self, url: str) -> Predictor:
        return Predictor(self._name, url, self._settings, ReplicaMetrics(self._name, in_ray=True))

    @property
    def _ready(self) -> Predictor:
        if self._predictor is None:
            raise RequestError(503, "the ensemble is not ready", 5)
        return self._predictor

    async def predict(self, task: Task) -> PredictorOutcome:
        """See `chorus.serving.prediction.predictor.Predictor.predict`."""
        return await self._ready.predict(task)

    async def start(self, large: LargeTask) -> Refusal | None:
        """See `chorus.serving.prediction.predictor.Predictor.start`."""
        return await self._ready.start(large)

    async def info(self) -> EnsembleInfo:
        """Return the description of the ensemble."""
        return self._ready.info

    def check_health(self) -> None:
        """Raise where the device no longer answers, so that Serve replaces the replica."""
        if self._predictor is not None and not self._predictor.device.alive:
            raise RuntimeError("the thread of the device has ended")


class ServePredictors:
    """See `chorus.serving.contract.predictors.Predictors`: implemented on Ray Serve.

    Predictions can be repeated, so one whose replica dies is retried on another.
    """

    def __init__(
        self, handles: dict[str, DeploymentHandle[Any]], retry_after: int, metrics: ApplicationMetrics
    ) -> None:
        self._handles, self._retry_after, self._metrics = handles, retry_after, metrics

    @property
    def names(self) -> list[str]:
        """Return the names of the ensembles."""
        return list(self._handles)

    async def predict(self, name: str, task: Task) -> PredictorOutcome:
        """Predict one image with ensemble `name`; retry on another replica if one dies, within the time allowed."""
        until = time.monotonic() + task.seconds
        for death in range(RETRIES.replica_deaths):
            left = until - time.monotonic()
            if left <= 0:
                return Refusal(504, "the image was not done in time; ask for less, or allow more")
            try:
                outcome: PredictorOutcome = await self._handles[name].predict.remote(replace(task, seconds=left))
                return outcome
            except BackPressureError:
                return Refusal(429, "too many requests wait for this ensemble", self._retry_after)
            except (RayActorError, DeploymentUnavailableError) as error:
                log.warning("request %s: a replica was lost (%s)", task.id, type(error).__name__)
                self._metrics.retried()
                await asyncio.sleep(RETRIES.replica_pause * 2**death)
            except RequestCancelledError:
                return Refusal(503, "the request was called off", self._retry_after)
            except RayTaskError:
                log.exception("request %s", task.id)
                return Refusal(500, UNEXPECTED)
        return Refusal(503, "replicas that work on this image are lost again and again", self._retry_after)

    async def start(self, name: str, large: LargeTask) -> Refusal | None:
        """Start a large image on ensemble `name`; return a Refusal if it cannot start."""
        try:
            refusal: Refusal | None = await self._handles[name].start.remote(large)
        except (RayActorError, RayTaskError, DeploymentUnavailableError, BackPressureError) as error:
            log.warning("job %s: %s", large.record.job.id, type(error).__name__)
            return Refusal(503, "the ensemble is not ready", self._retry_after)
        return refusal

    async def info(self, name: str) -> EnsembleInfo:
        """Return the description of ensemble `name`; raise RequestError 503 while it is not ready."""
        try:
            about: EnsembleInfo = await self._handles[name].info.remote()
        except (RayActorError, RayTaskError, DeploymentUnavailableError, BackPressureError) as error:
            raise RequestError(503, "the ensemble is not ready", self._retry_after) from error
        return about


@serve.ingress()
class WebApplication:
    """The web application before the ensembles.

    Parameters
    ----------
    settings : `ServeSettings` as JSON
    handles : of the ensembles' deployments, by name
    """

    def __init__(self, settings: str, handles: dict[str, DeploymentHandle[Any]]) -> None:
        begin_in_ray()
        self._settings, self._handles = ServeSettings.model_validate_json(settings), handles

    def __serve_build_asgi_app__(self) -> Any:
        metrics = ApplicationMetrics()
        predictors = ServePredictors(self._handles, self._settings.retry_after, metrics)
        return create_app(self._settings, predictors, metrics, names_requests=False)


def build(args: dict[str, object]) -> Application:
    """Build the application for Ray Serve.

    Parameters
    ----------
    args : the fields of `chorus.serving.contract.settings.ServeSettings`, or ``ensemble``, the URL of a single one

    Raises
    ------
    RefusedError : an argument is wrong, an ensemble cannot be read, or other machines could ask without tokens
    """
    settings = parse_settings(args)
    if settings.token_file is not None:
        read_tokens(settings.token_file)
    told = settings.model_dump_json()
    handles = {name: _replicas(name, url, settings, told) for name, url in settings.ensembles.items()}
    limits = settings.limits
    # It reads bodies and passes them on, and mostly waits. Serve refuses requests beyond its queue.
    deployment: Any = serve.deployment(WebApplication)  # whose types know only how it decorates
    web: Application = deployment.options(
        name="web",
        num_replicas=1,
        max_ongoing_requests=limits.ongoing + limits.queued + 16,
        max_queued_requests=limits.queued + 1,
        backpressure_config={"status_code": 429, "retry_after_s": settings.retry_after},
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=_GRACE + limits.deadline_seconds,
    ).bind(told, handles)
    return web


def _replicas(name: str, url: str, settings: ServeSettings, told: str) -> Application:
    """Return the deployment of one ensemble; another hash at the same URL makes its replicas load it again."""
    ensemble = read_served(url, settings)  # before Ray begins, so that a refusal is a sentence
    scale: dict[str, object] = {"num_replicas": settings.min_replicas}
    if settings.max_replicas > settings.min_replicas:
        bounds = {"min_replicas": settings.min_replicas, "max_replicas": settings.max_replicas}
        wanted = {"target_ongoing_requests": settings.target_ongoing, "downscale_delay_s": settings.idle_seconds}
        scale = {"autoscaling_config": bounds | wanted}
    limits = settings.limits
    deployment: Any = serve.deployment(EnsembleReplica)
    replicas: Application = deployment.options(
        name=f"ensemble-{name}",
        max_ongoing_requests=limits.ongoing,
        max_queued_requests=limits.queued,
        user_config={"url": ensemble.url, "hash": ensemble.hash},
        ray_actor_options=device_of(settings.device).ray_options(settings.threads),
        graceful_shutdown_timeout_s=_GRACE + limits.deadline_seconds,
        health_check_period_s=5,
        **scale,
    ).bind(name, told)
    return replicas
