"""The web application: routes and their documentation, independent of Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, RedirectResponse, Response

from chorus.serving.contract.jobs import JobStore
from chorus.serving.contract.metrics import ApplicationMetrics
from chorus.serving.contract.predictors import Answer, Predictors, Refusal, Task
from chorus.serving.contract.problems import RequestError, problem_response, request_id, unexpected
from chorus.serving.contract.schemas import EnsembleInfo, EnsembleList, Health
from chorus.serving.contract.settings import ServeSettings
from chorus.serving.web.documents import PREDICT, PROBLEMS, TAGS
from chorus.serving.web.job_routes import add_job_routes, begin_job
from chorus.serving.web.reprocess_routes import add_reprocess_routes
from chorus.serving.web.request_gate import RequestGate
from chorus.serving.web.requests import answer_media, deadline, read_request
from chorus.serving.web.sign_in import REVIEW, add_sign_in
from chorus.serving.web.tokens import Gatekeeper, read_tokens

log = logging.getLogger("chorus")
T = TypeVar("T")
# Interval of the checks whether a waiting client is still connected.
_LOOK_SECONDS = 0.2


def create_app(
    settings: ServeSettings, predictors: Predictors, metrics: ApplicationMetrics, *, names_requests: bool = True
) -> Any:
    """Create the ASGI application of a server.

    Parameters
    ----------
    predictors : the ensembles, wherever they are
    metrics : of this process
    names_requests : see `chorus.serving.web.request_gate.RequestGate`

    Raises
    ------
    RefusedError
        If the file of tokens cannot be read.
    """
    api = FastAPI(
        title="Chorus",
        version=version("chorus-bioimage"),
        summary="Deep-ensemble segmentation of microscopy images, with an honest measure of uncertainty",
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        openapi_tags=TAGS,
        responses=PROBLEMS,
        redirect_slashes=False,
    )
    _add_errors(api)
    _add_about(api, settings, predictors, metrics)
    store = JobStore(settings.jobs_url, settings.limits.kept_seconds) if settings.jobs_url else None
    _add_predict(api, settings, predictors, store)
    if store is not None:
        add_job_routes(api, store)
    if settings.reprocess:
        add_reprocess_routes(api, settings)
    gatekeeper = Gatekeeper(None if settings.token_file is None else read_tokens(settings.token_file))
    if settings.results is not None:
        _add_review(api, settings.results, gatekeeper)
    door = RequestGate(api, settings, gatekeeper, metrics, names_requests=names_requests)
    if not settings.cors:
        return door
    return CORSMiddleware(
        door,
        allow_origins=settings.cors,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "Accept", "X-Request-ID", "X-Deadline-Seconds"],
        expose_headers=["X-Request-ID", "Retry-After"],
    )


def _add_review(api: FastAPI, results: str, gatekeeper: Gatekeeper) -> None:
    from chorus.serving.review.app import review_app

    add_sign_in(api, gatekeeper)
    api.mount(REVIEW, review_app(results))

    @api.get(REVIEW, include_in_schema=False)
    async def to_review() -> Response:
        return RedirectResponse(f"{REVIEW}/")


def _add_errors(api: FastAPI) -> None:
    api.add_exception_handler(Exception, unexpected)

    @api.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return problem_response(error, request_id(request))

    @api.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> Response:
        details = {404: "there is nothing at this path", 405: "this path does not take that method"}
        detail = details.get(error.status_code, "the request cannot be understood")
        return problem_response(RequestError(error.status_code, detail), request_id(request), dict(error.headers or {}))

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        return problem_response(RequestError(422, f"{field}: {first['msg']}"), request_id(request))


def _add_about(api: FastAPI, settings: ServeSettings, predictors: Predictors, metrics: ApplicationMetrics) -> None:
    @api.get("/v1/health", tags=["server"], summary="Whether the server is there")
    async def health() -> Health:
        return Health(status="ok")

    @api.get(
        "/v1/ready", tags=["server"], summary="Whether every ensemble is ready",
        responses={503: {"model": Health, "description": "Not yet"}},
    )  # fmt: skip
    async def ready() -> Response:
        async def is_ready(name: str) -> bool:
            try:
                await asyncio.wait_for(predictors.info(name), 2)
            except (RequestError, TimeoutError):
                return False
            return True

        names = predictors.names
        by_name = dict(zip(names, await asyncio.gather(*map(is_ready, names)), strict=True))
        content = Health(status="ok" if all(by_name.values()) else "starting", ensembles=by_name)
        return JSONResponse(content.model_dump(), 200 if all(by_name.values()) else 503)

    @api.get("/v1/ensembles", tags=["ensembles"], summary="The ensembles that answer here")
    async def ensembles() -> EnsembleList:
        return EnsembleList(ensembles=[await predictors.info(name) for name in predictors.names])

    @api.get("/v1/ensemble", tags=["ensembles"], summary="The ensemble that answers where none is named, or `name`")
    async def ensemble(name: str | None = None) -> EnsembleInfo:
        return await predictors.info(known_name(predictors, name))

    @api.get(
        "/metrics", tags=["server"], summary="What this process counts, for Prometheus", response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
    )  # fmt: skip
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def known_name(predictors: Predictors, name: str | None) -> str:
    """Return the name of the ensemble that is meant; raise RequestError 404 if there is none of that name."""
    names = predictors.names
    if name is not None and name not in names:
        raise RequestError(404, f"there is no ensemble of that name; choose one of {', '.join(names)}")
    return name or names[0]


def _add_predict(api: FastAPI, settings: ServeSettings, predictors: Predictors, store: JobStore | None) -> None:
    @api.post("/v1/predict", tags=["predict"], summary="Segment an image", response_class=Response, **PREDICT)
    async def predict(request: Request) -> Response:
        media, seconds = answer_media(request), deadline(request, settings)
        source, options = await read_request(request, settings)
        name = known_name(predictors, options.ensemble)
        task = Task(request_id(request), source, options, media, seconds)
        outcome = await while_there(request, predictors.predict(name, task))
        if isinstance(outcome, Refusal):
            raise outcome.error()
        if isinstance(outcome, Answer):
            return Response(outcome.body, media_type=outcome.media)
        if store is None or options.window is not None:
            most = settings.limits.at_once_pixels
            raise RequestError(413, f"more than {most} pixels are not answered at once; ask for a smaller window")
        state = await begin_job(predictors, store, name, source, options, outcome, request.state.client)
        return JSONResponse(state.model_dump(), 202, {"Location": state.links["self"], "Retry-After": "1"})


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`; cancel it if the client disconnects."""
    task = asyncio.ensure_future(work)
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=_LOOK_SECONDS)
            if done:
                return task.result()
            if await request.is_disconnected():
                log.info("request %s: the client went away", request_id(request))
                raise RequestError(499, "the client went away")
    finally:
        task.cancel()
