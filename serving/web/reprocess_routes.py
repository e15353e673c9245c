"""Routes that start, show and stop runs of `chorus predict` on the cluster that the server is part of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel

from chorus.cluster.runtime.job_command import SubmittedCommand, SubmittedJob
from chorus.cluster.state.progress import run_state
from chorus.pipeline.errors import CutShortError, OutputError, RefusedError
from chorus.pipeline.io import storage
from chorus.serving.contract.problems import RequestError, said
from chorus.serving.contract.schemas import ReprocessRequest
from chorus.serving.contract.settings import ServeSettings
from chorus.serving.contract.sources import check_source
from chorus.serving.web.documents import problem
from chorus.serving.web.requests import json_body

if TYPE_CHECKING:
    from chorus.cluster.runtime.ray_jobs import Jobs

log = logging.getLogger("chorus")
T = TypeVar("T")


class ReprocessState(BaseModel):
    """A run on the cluster.

    Attributes
    ----------
    state : ``waiting``, ``running``, ``done``, ``failures`` (done, some images failed), ``refused``, ``cut short`` or
        ``stopped``; after the last two the same request resumes the run
    started, ended : seconds since the epoch
    images, regions : planned, null before the plan is made
    images_done, regions_done : finished ones; null if they were not counted
    failed : images that cannot be processed
    detail : why it was refused
    """

    name: str
    state: str
    out: str
    started: float | None
    ended: float | None
    images: int | None = None
    regions: int | None = None
    images_done: int | None = None
    regions_done: int | None = None
    failed: int | None = None
    detail: str = ""

    @classmethod
    def of(cls, job: SubmittedJob) -> ReprocessState:
        """Convert a job of the cluster."""
        return cls(name=job.name, state=job.state, out=job.out, started=job.started, ended=job.ended)


def connect() -> Jobs:
    """Return the jobs of the cluster that this process is part of; raise RefusedError if they cannot be reached."""
    import ray

    from chorus.cluster.runtime.ray_jobs import Jobs

    # By this cluster's own address: another one may have been started later on this machine.
    return Jobs(ray.get_runtime_context().gcs_address)


def add_reprocess_routes(api: FastAPI, settings: ServeSettings, jobs: Callable[[], Jobs] = connect) -> None:
    """Add the routes of runs over images below `settings.reprocess`; other runs are neither shown nor stopped.

    Parameters
    ----------
    jobs : returns those of the cluster
    """
    body = {"content": {"application/json": {"schema": ReprocessRequest.model_json_schema()}}, "required": True}
    answers: dict[int | str, dict[str, Any]] = {status: problem(status) for status in (400, 403, 404, 409, 422, 502)}

    @api.post(
        "/v1/jobs", tags=["jobs"], summary="Begin a run over many images, or go on with one", status_code=202,
        responses=answers, openapi_extra={"requestBody": body},
    )  # fmt: skip
    async def submit(request: Request) -> ReprocessState:
        asked: ReprocessRequest = await json_body(request, ReprocessRequest)
        command = _command(asked, settings)

        def begin() -> ReprocessState:
            known = jobs()
            if any(job.alive and job.out == command.out for job in known.submitted()):
                raise RequestError(409, "another run is at work on that output; look at it, or stop it first")
            return ReprocessState.of(known.submit(command))

        return await _ask(begin)

    @api.get("/v1/jobs/{name}", tags=["jobs"], summary="How a run goes on", responses=answers)
    async def state(name: str, count: bool = True) -> ReprocessState:
        """Return the progress; counting finished regions takes about a second per 10,000."""

        def look() -> ReprocessState:
            known = jobs()
            job = _known(known, name, settings)
            if job.state == "refused":
                return ReprocessState.of(job).model_copy(update={"detail": _last_words(known.log(name), job)})
            return _progress(job, count=count)

        return await _ask(look)

    @api.delete("/v1/jobs/{name}", tags=["jobs"], summary="Stop a run; what is done stays", responses=answers)
    async def stop(name: str) -> ReprocessState:
        def end() -> ReprocessState:
            known = jobs()
            if not _known(known, name, settings).alive:
                raise RequestError(409, "the run has ended already")
            return _progress(known.stop(name), count=True)

        return await _ask(end)


def _command(asked: ReprocessRequest, settings: ServeSettings) -> SubmittedCommand:
    """Return the command for the cluster; raise RequestError for URLs and ensembles that are not allowed."""
    name = asked.ensemble or next(iter(settings.ensembles))
    if name not in settings.ensembles:
        raise RequestError(404, f"there is no ensemble of that name; choose one of {', '.join(settings.ensembles)}")
    sources = [check_source(url, settings.reprocess, "sources") for url in asked.sources]
    out, ensemble = check_source(asked.out, settings.reprocess, "out"), storage.normalise(settings.ensembles[name])
    trust = ["--trust-code"] if settings.trust_code else []
    return SubmittedCommand(("predict", *sources, "--ensemble", ensemble, "--out", out, *trust), 1, out, ensemble)


def _known(jobs: Jobs, name: str, settings: ServeSettings) -> SubmittedJob:
    """Return a run whose results are where this server may write; raise RequestError 404 if there is none."""
    for job in jobs.submitted():
        if job.name == name and job.command == "predict" and f"{job.out}/".startswith(tuple(settings.reprocess)):
            return job
    raise RequestError(404, "there is no such run; the cluster forgets runs when its head goes")


def _progress(job: SubmittedJob, *, count: bool) -> ReprocessState:
    """Return the state of a run with the progress that its results show."""
    state = run_state(job.out, count=count)
    if state is None:
        return ReprocessState.of(job)
    done = {"images_done": state.images_done, "regions_done": state.regions_done, "failed": state.failed}
    return ReprocessState.of(job).model_copy(update={"images": state.images, "regions": state.regions} | done)


def _last_words(text: str, job: SubmittedJob) -> str:
    """Return the last message of a run, without paths of the cluster."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return said(lines[-1].removeprefix("chorus: "), job.out) if lines else ""


async def _ask(question: Callable[[], T]) -> T:
    """Run a slow question to the cluster or storage in a thread, and turn its errors into RequestError."""
    try:
        return await asyncio.to_thread(question)
    except OutputError as error:
        log.warning("%s", error)
        raise RequestError(502, "the storage of the results does not answer") from error
    except (RefusedError, CutShortError) as error:
        log.warning("%s", error)
        raise RequestError(503, "the cluster does not take or tell of runs now", 10) from error
