"""Errors for clients: RFC 9457, without any internal path."""

from __future__ import annotations

import logging
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

log = logging.getLogger("chorus")

MEDIA = "application/problem+json"
TITLES = {
    400: "The request cannot be understood",
    401: "A token is needed",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    406: "No such form of answer",
    408: "The request took too long to arrive",
    409: "Not now",
    410: "No longer there",
    413: "Too large",
    415: "Not a kind of image that is read here",
    422: "The image or the options do not fit",
    429: "Too many requests",
    416: "Not a range of the file",
    500: "An error of the server",
    502: "The storage did not answer",
    503: "Too much to do",
    504: "Not done in time",
}
GUARDS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer: a browser must not guess its type, and must not share it with other sites."""
UNEXPECTED = "an unexpected error; the logs of the server name it by the request's id"
# Options of the command line that lower layers advise, and what a request calls them.
_FIELDS = {"--channel": "channels", "--level": "level", "--diameter": "diameter"}
_OPTIONS = re.compile(rf"({'|'.join(_FIELDS)})\b(?: NAME\b)?")
# Paths and URLs of this machine in messages of the lower layers.
_PATHS = re.compile(r"(?:(?:[a-z0-9]+:/)?/(?:[^\s/:;,'\"()]+/)+[^\s:;,'\"()]*)")


class Problem(BaseModel):
    """Why a request has no result.

    Attributes
    ----------
    title : the kind of problem
    status : of HTTP
    detail : one sentence on this request
    request_id : identifies the request in the logs
    """

    model_config = ConfigDict(frozen=True)

    type: str = "about:blank"
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = ""
    request_id: str = ""


class RequestError(Exception):
    """A request that ends without a result.

    Parameters
    ----------
    status : of HTTP
    detail : one sentence for the client
    retry_after : seconds after which it may try again
    """

    def __init__(self, status: int, detail: str = "", retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, self.detail, self.retry_after)


def problem_response(error: RequestError, request_id: str = "", headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the response to a request that ended with `error`."""
    problem = Problem(
        title=TITLES.get(error.status, "Not done"), status=error.status, detail=error.detail, request_id=request_id
    )
    own = dict(headers or {})
    if error.retry_after is not None:
        own["Retry-After"] = str(error.retry_after)
    return JSONResponse(problem.model_dump(), error.status, own, MEDIA)


def request_id(request: Request) -> str:
    """Return the id of a request in the logs; empty if it has none."""
    return str(getattr(request.state, "request_id", ""))


def unexpected(request: Request, error: Exception) -> Response:
    """Return the response to an unexpected error: for `Starlette.add_exception_handler`, and ``Exception``.

    Starlette raises the error again once this is sent, and the server that runs the application logs its traceback.
    """
    name = request_id(request)
    log.error("request %s: %s %s: %s", name, request.method, request.url.path, type(error).__name__)
    return problem_response(RequestError(500, UNEXPECTED), name)


def answered(sentence: str, *known: str) -> str:
    """Word a message of the lower layers for a client: `said`, with fields of a request in place of options."""
    return said(_OPTIONS.sub(lambda found: f"the field `{_FIELDS[found[1]]}`", sentence), *known)


def said(sentence: str, *known: str) -> str:
    """Remove paths of this machine from a message of the lower layers; keep `known`, which came from the client."""
    kept: dict[str, str] = {}
    for index, text in enumerate(sorted((one for one in known if one), key=len, reverse=True)):
        mark = f"\0{index}\0"
        kept[mark] = text
        sentence = sentence.replace(text, mark)
    sentence = _PATHS.sub("(a path)", sentence)
    for mark, text in kept.items():
        sentence = sentence.replace(mark, text)
    return sentence
