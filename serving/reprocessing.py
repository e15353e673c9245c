"""Routes that begin, look at and stop runs of `chorus predict` on the cluster that the server is part of."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel

from cluster.submitted import Command, Job
from pipeline.errors import CutShortError, RefusedError
from serving.documents import problem
from serving.problems import RequestError
from serving.requests import json_body
from serving.schemas import ReprocessRequest
from serving.settings import ServeSettings
from serving.sources import check_source

if TYPE_CHECKING:
    from cluster.jobs import Jobs

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")


class RunState(BaseModel):
    """A run on the cluster.

    Attributes
    ----------
    state : ``waiting``, ``running``, ``done``, ``failures`` (done, some images failed), ``refused``, ``cut short`` (the
        same request goes on) or ``stopped``
    started, ended : seconds since the epoch
    """

    name: str
    state: str
    out: str
    started: float | None
    ended: float | None

    @classmethod
    def of(cls, job: Job) -> RunState:
        return cls(name=job.name, state=job.state, out=job.out, started=job.started, ended=job.ended)


def connect() -> Jobs:
    """The jobs of the cluster that this process is part of; raises RefusedError where they cannot be had."""
    from cluster.jobs import Jobs

    return Jobs("auto")


def add_reprocess_routes(api: FastAPI, settings: ServeSettings, jobs: Callable[[], Jobs] = connect) -> None:
    """Runs over images below `settings.reprocess`.

    Parameters
    ----------
    jobs : gives those of the cluster
    """
    body = {"content": {"application/json": {"schema": ReprocessRequest.model_json_schema()}}, "required": True}
    answers: dict[int | str, dict[str, Any]] = {status: problem(status) for status in (400, 403, 404, 409, 422)}

    @api.post(
        "/v1/jobs", tags=["jobs"], summary="Begin a run over many images", status_code=202, responses=answers,
        openapi_extra={"requestBody": body},
    )  # fmt: skip
    async def submit(request: Request) -> RunState:
        asked: ReprocessRequest = await json_body(request, ReprocessRequest)
        name = asked.ensemble or next(iter(settings.ensembles))
        if name not in settings.ensembles:
            raise RequestError(404, f"there is no ensemble of that name; choose one of {', '.join(settings.ensembles)}")

        def checked(url: str) -> str:
            return check_source(url, settings.reprocess)

        sources = [await asyncio.to_thread(checked, url) for url in asked.sources]
        out = await asyncio.to_thread(checked, asked.out)
        if not out.startswith(("gs://", "s3://")):
            raise RequestError(422, "out must be a gs:// or s3:// URL")
        ensemble = settings.ensembles[name]
        words = ("predict", *sources, "--ensemble", ensemble, "--out", out)
        return RunState.of(await _ask(lambda: jobs().submit(Command(words, 1, out, ensemble)), 409))

    @api.get("/v1/jobs/{name}", tags=["jobs"], summary="How a run goes on", responses=answers)
    async def state(name: str) -> RunState:
        _check_name(name)
        return RunState.of(await _ask(lambda: jobs().job(name), 404))

    @api.delete("/v1/jobs/{name}", tags=["jobs"], summary="Stop a run; what is done stays", responses=answers)
    async def stop(name: str) -> RunState:
        _check_name(name)
        await _ask(lambda: jobs().job(name), 404)
        return RunState.of(await _ask(lambda: jobs().stop(name), 409))


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise RequestError(404, "there is no such run")


async def _ask(question: Callable[[], T], refused: int) -> T:
    details = {404: "there is no such run", 409: "another run is at work there, or this one has ended"}
    try:
        return await asyncio.to_thread(question)
    except RefusedError as error:
        raise RequestError(refused, details[refused]) from error
    except CutShortError as error:
        raise RequestError(503, "the cluster does not answer", 10) from error
