"""A reverse proxy on loopback that counts requests by kind and spoils some of them on the way."""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

Fault = Literal["busy", "throttled", "slow", "truncated", "cut", "lost"]
"""503; 429; an answer that comes late; half an answer, then a closed connection; half an upload, then the same; a
request that is carried out, and the connection closed instead of an answer."""

_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-connection"}


class Request(NamedTuple):
    """What was asked: its kind (GET, HEAD, LIST, PUT, DELETE, OTHER), the object's key, the fault that it met, and the
    text of its target and headers."""

    kind: str
    key: str
    fault: Fault | None
    text: str


Choice = Callable[[str, str], Fault | None]
"""Of a request's kind and key, the fault that it meets."""


def no_fault(kind: str, key: str) -> Fault | None:
    return None


def share(part: float, faults: tuple[Fault, ...], seed: int) -> Choice:
    """Any request meets one of `faults` with the probability `part`; equal seeds draw the same row of faults."""
    draw, lock = random.Random(seed), threading.Lock()

    def choose(kind: str, key: str) -> Fault | None:
        with lock:
            hit, which = draw.random() < part, draw.choice(faults)
        if not hit:
            return None
        return "busy" if which == "cut" and kind != "PUT" else which

    return choose


def first(number: int, fault: Fault, kind: str, part_of_key: str = "") -> Choice:
    """The first `number` requests of a kind, for keys that hold `part_of_key`, meet `fault`."""
    left, lock = [number], threading.Lock()

    def choose(asked: str, key: str) -> Fault | None:
        with lock:
            if asked != kind or part_of_key not in key or not left[0]:
                return None
            left[0] -= 1
            return fault

    return choose


class Proxy:
    """Stands before the server at `target` (``http://host:port``); `url` is where clients go.

    Attributes
    ----------
    choose : what spoils requests, `no_fault` at first
    delay : seconds by which a ``slow`` answer comes late
    requests : all that came, in order
    """

    def __init__(self, target: str) -> None:
        address = urlsplit(target)
        assert address.hostname
        assert address.port
        self.target = (address.hostname, address.port)
        self.choose: Choice = no_fault
        self.delay = 0.3
        self.requests: list[Request] = []
        proxy = self

        class Handler(_Handler):
            door = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def counts(self, part_of_key: str = "") -> Counter[str]:
        """How many requests of each kind came for keys that hold `part_of_key`."""
        return Counter(request.kind for request in self.requests if part_of_key in request.key)

    def faults(self) -> Counter[str]:
        """How many requests met each fault."""
        return Counter(request.fault for request in self.requests if request.fault)


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are what is tested here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    door: Proxy
    _upstream: http.client.HTTPConnection | None = None

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_expect_100(self) -> bool:
        return True  # the answer of the server behind is enough

    def finish(self) -> None:
        super().finish()
        if self._upstream:
            self._upstream.close()

    def _pass(self) -> None:
        if self.headers.get("Expect") == "100-continue":
            self.send_response_only(100)
            self.end_headers()
            self.wfile.flush()
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        length = int(self.headers.get("Content-Length") or 0)
        # At least so much that an upload's name is in it.
        half = self._chunks() if chunked else self.rfile.read(max(length // 2, min(length, 1024)))
        kind, key = kind_of(self.command, self.path, half)
        fault = self.door.choose(kind, key)
        self.door.requests.append(Request(kind, key, fault, f"{self.path}\n{self.headers}"))
        if fault == "cut":
            self._cut(half[: length // 2])
            return
        body = half if chunked else half + self.rfile.read(length - len(half))
        if fault in ("busy", "throttled"):
            self._answer(503 if fault == "busy" else 429, {"Content-Type": "text/plain"}, b"try again later")
            return
        if fault == "slow":
            time.sleep(self.door.delay)
        status, headers, data = self._ask(body)
        if fault == "lost":
            self._leave()
        elif fault == "truncated" and self.command == "GET" and len(data) > 1:
            self._head(status, headers, len(data))
            self.wfile.write(data[: len(data) // 2])
            self._leave()
        else:
            self._answer(status, headers, data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _pass  # noqa: N815 - as the library calls them

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {key: value for key, value in self.headers.items() if key.lower() not in _HOP | {"expect"}}
        headers["Content-Length"] = str(len(body))
        if self._upstream is None:
            self._upstream = http.client.HTTPConnection(*self.door.target, timeout=60)
        try:
            self._upstream.request(self.command, self.path, body, headers)
            answer = self._upstream.getresponse()
        except (http.client.HTTPException, OSError):  # the server closed a connection that was idle
            self._upstream.close()
            self._upstream.request(self.command, self.path, body, headers)
            answer = self._upstream.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()

    def _cut(self, half: bytes) -> None:
        """Half of an upload reaches the server behind, then both connections close."""
        with suppress(OSError), socket.create_connection(self.door.target) as upstream:
            lines = [
                f"{self.command} {self.path} HTTP/1.1",
                *(f"{key}: {value}" for key, value in self.headers.items()),
            ]
            upstream.sendall("\r\n".join([*lines, "", ""]).encode() + half)
        self._leave()

    def _leave(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            if key.lower() not in _HOP | {"content-length"}:
                self.send_header(key, value)
        if self.command == "HEAD":
            length = int(headers.get("Content-Length", headers.get("content-length", 0)))
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self._head(status, headers, len(data))
        if self.command != "HEAD":
            self.wfile.write(data)


def kind_of(method: str, target: str, body: bytes) -> tuple[str, str]:
    """What a request of Google's JSON API or of S3 is, and the key that it is for (of a listing, the prefix).

    Google's uploads may name the object at the beginning of their body.
    """
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    path = parts.path
    google = path.startswith(("/storage/v1/", "/upload/", "/download/", "/batch/"))
    prefix = query.get("prefix", [""])[0]
    if google:
        _, _, key = path.partition("/o/")
        key = unquote(key)
        if method in ("POST", "PUT"):
            named = re.search(rb'"name": ("[^"]+")', body[:4096])
            return "PUT", json.loads(named[1]) if named else query.get("name", [key])[0]
        if method == "GET" and not key:
            return ("LIST" if path.endswith("/o") else "OTHER"), prefix
        meta = method == "GET" and "media" not in query.get("alt", [])
        return ("HEAD" if meta else method), key
    _, _, key = unquote(path).lstrip("/").partition("/")
    if method == "GET" and not key:
        return ("LIST" if "list-type" in query else "OTHER"), prefix
    if method == "POST" and "delete" in query:
        return "DELETE", key
    return ("PUT" if method == "POST" else method), key
