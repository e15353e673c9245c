"""Errors as messages (``application/problem+json``, RFC 9457), and headers that restrict the page to its own server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from chorus.pipeline.errors import ChorusError, ImageError, OutputError
from chorus.pipeline.io.storage_failures import one_line
from chorus.serving.contract.problems import GUARDS, RequestError, problem_response, request_id, unexpected
from chorus.serving.review.run import ReviewedRun

# Hash of the one inline style that OpenSeadragon adds (no outline without a mouse).
_STYLE = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
HEADERS = GUARDS | {
    "Content-Security-Policy": f"default-src 'self'; style-src 'self' {_STYLE}; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


def explain_problems(app: FastAPI, run: ReviewedRun) -> None:
    """Make `app` answer errors as problems, with messages for the reviewers of `run`."""

    def chorus_error(request: Request, error: Exception) -> Response:
        status = 422 if isinstance(error, ImageError) else 503 if isinstance(error, OutputError) else 400
        return problem(status, run.said(one_line(error), str(request.path_params.get("name", ""))))

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return problem_response(error, request_id(request))

    def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem(error.status_code, str(error.detail), dict(error.headers or {}))

    def not_valid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return problem(422, f"{field}: {first['msg'].removeprefix('Value error, ')}; correct the request")

    app.add_exception_handler(Exception, unexpected)
    app.add_exception_handler(ChorusError, chorus_error)
    app.add_exception_handler(RequestError, refused)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, not_valid)

    @app.middleware("http")
    async def headers(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error response with a message."""
    return problem_response(RequestError(status, detail), headers=headers)
