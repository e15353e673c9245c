"""Checks that every request passes before its route: client, rate, size; and headers of every answer."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response

from chorus.serving.contract.metrics import ApplicationMetrics
from chorus.serving.contract.problems import GUARDS, RequestError, problem_response
from chorus.serving.contract.settings import ServeSettings, is_loopback
from chorus.serving.web.sign_in import REVIEW, SIGN_IN, SIGN_OUT, token_in
from chorus.serving.web.tokens import Gatekeeper

log = logging.getLogger("chorus")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Answered without a token: they tell only that the server is running.
_PUBLIC = ("/v1/health", "/v1/ready", SIGN_IN, SIGN_OUT)
_PUBLIC_FILES = f"{REVIEW}/static/"
# The page itself, which a browser first requests without a token.
_PAGE = (REVIEW, f"{REVIEW}/")
# A viewer requests hundreds of tiles: GET requests of the review page have this many times the rate limit.
_TIMES = 20
_CLOSED = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Cache-Control": "no-store"}


class RequestGate:
    """An ASGI application around another one.

    Parameters
    ----------
    app : the application behind
    gatekeeper : knows the tokens
    metrics : counts requests
    names_requests : whether answers get ``X-Request-ID`` here; Ray Serve does that itself
    """

    def __init__(
        self,
        app: Any,
        settings: ServeSettings,
        gatekeeper: Gatekeeper,
        metrics: ApplicationMetrics,
        *,
        names_requests: bool,
    ) -> None:
        self._app, self._limits, self._origins = app, settings.limits, settings.cors
        self._gatekeeper, self._metrics, self.names_requests = gatekeeper, metrics, names_requests

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request after its checks."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Visit(self, scope, receive, send).carry_out()

    @property
    def is_open(self) -> bool:
        """Whether the server works without tokens."""
        return self._gatekeeper.open

    def admit(self, scope: Message, headers: Headers) -> str:
        """Return the client's name; raise RequestError if it is not authorised."""
        path, method = scope["path"], scope["method"]
        if self.is_open:
            _require_this_machine(scope, headers)
        given, reviewing = headers.get("authorization"), f"{path}/".startswith(f"{REVIEW}/")
        cookie = token_in(headers) if reviewing and given is None else None
        if cookie is not None or path == SIGN_IN:
            _require_own_page(method, headers)
        _require_same_site(method, headers, self._origins)
        if path in _PUBLIC or path.startswith(_PUBLIC_FILES):
            return "anyone"
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limits.upload_bytes:
            raise RequestError(
                413, f"the body has {length} bytes, more than the {self._limits.upload_bytes} taken here"
            )
        given = given if cookie is None else f"Bearer {cookie}"
        return self._gatekeeper.check(given, _TIMES if reviewing and method == "GET" else 1)


class _Visit:
    """One request and its answer."""

    def __init__(self, door: RequestGate, scope: Message, receive: Receive, send: Send) -> None:
        self._door, self._scope, self._receive, self._send = door, scope, receive, send
        self._headers = Headers(scope=scope)
        given = self._headers.get("x-request-id", "")
        self._id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        self._began, self._bytes, self._status, self._who = time.monotonic(), 0, 500, "nobody"
        self._answered = self._complete = False
        scope.setdefault("state", {})["request_id"] = self._id

    async def carry_out(self) -> None:
        """Admit the request, pass it on, and count and log its answer."""
        door, path, method = self._door, self._scope["path"], self._scope["method"]
        door._metrics.began()
        try:
            self._who = door.admit(self._scope, self._headers)
            self._scope["state"]["client"] = self._who
            if not door.is_open:  # the review page then signs decisions with it
                self._scope["state"]["reviewer"] = self._who
            await door._app(self._scope, self._take, self._give)
        except RequestError as error:
            await self._refuse(error)
        finally:
            seconds = time.monotonic() - self._began
            route = getattr(self._scope.get("route"), "path", None)
            known = route if isinstance(route, str) else REVIEW if path.startswith(f"{REVIEW}/") else "other"
            door._metrics.ended(known, method, self._status, seconds)
            door._metrics.received(self._bytes)
            fields = {"request": self._id, "client": self._who, "route": known, "status": self._status}
            log.info(
                "%s %s %d %.3f s, request %s of %s", method, known, self._status, seconds, self._id, self._who,
                extra={"fields": fields | {"seconds": round(seconds, 3)}},
            )  # fmt: skip

    async def _refuse(self, error: RequestError) -> None:
        if self._answered:  # too late for another status
            return
        response: Response
        if error.status == 401 and self._scope["path"] in _PAGE and self._scope["method"] == "GET":
            response = RedirectResponse(SIGN_IN, 303)
        else:
            headers = {"WWW-Authenticate": 'Bearer realm="chorus"'} if error.status == 401 else {}
            response = problem_response(error, self._id, headers)
        await response(self._scope, self._receive, self._give)

    async def _take(self) -> Message:
        """Receive a part of the body; raise RequestError if it is too large or too slow."""
        limits = self._door._limits
        if self._complete:  # from here on only the client's disconnection is awaited
            return await self._receive()
        left = limits.upload_seconds - (time.monotonic() - self._began)
        try:
            message = await asyncio.wait_for(self._receive(), max(0.001, left))
        except TimeoutError:
            raise RequestError(408, f"the body did not arrive within {limits.upload_seconds:g} s") from None
        self._bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._bytes > limits.upload_bytes:
            raise RequestError(413, f"the body has more than the {limits.upload_bytes} bytes taken here")
        return message

    async def _give(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._answered, self._status = True, message["status"]
            headers = MutableHeaders(scope=message)
            own = GUARDS if self._scope["path"].startswith(REVIEW) else GUARDS | _CLOSED
            for name, value in own.items():
                headers.setdefault(name, value)
            if self._door.names_requests:
                headers["X-Request-ID"] = self._id
        await self._send(message)


def _require_this_machine(scope: Message, headers: Headers) -> None:
    """Without tokens, answer only this machine, and only under a local host name.

    The name matters: a page elsewhere may use a host name that resolves to this machine (DNS rebinding).
    """
    client = (scope.get("client") or ("", 0))[0]
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    if not is_loopback(client) or not is_loopback(host):
        raise RequestError(403, "without tokens this server answers its own machine only, as http://localhost")


def _require_same_site(method: str, headers: Headers, allowed: list[str]) -> None:
    """Refuse changes from pages of other sites, which could use the sign-in of a browser."""
    origin, host = headers.get("origin"), headers.get("host", "")
    if method in ("GET", "HEAD", "OPTIONS") or origin in allowed:
        return
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") or (
        origin is not None and urlsplit(origin).netloc != host
    ):
        raise RequestError(403, "requests of other sites' pages are not answered")


def _require_own_page(method: str, headers: Headers) -> None:
    """Refuse changes that a browser makes with its cookie alone, unless they come from a page of this server."""
    if method in ("GET", "HEAD"):
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    own = urlsplit(origin).netloc == headers.get("host", "") if origin is not None else site == "same-origin"
    if not own or site not in (None, "same-origin"):
        raise RequestError(403, "only the page of this server may ask for that")
