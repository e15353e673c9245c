"""Buckets on loopback: real servers of both kinds, started by the tests, each behind a proxy that spoils requests.

``gcp-storage-emulator`` as published has one thread, reads uploads as e-mail (which changes line ends in binary data),
answers suffix ranges (by which the index of a shard is read) with other bytes, takes an upload that was cut for a
whole one, ignores exclusive creation, writes its index to disk on every change and lists everything in one page;
`_Handler` mends these.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import requests
from botocore.retries.standard import ExponentialBackoff
from gcp_storage_emulator import server as gcp
from gcp_storage_emulator import storage as gcp_storage
from gcp_storage_emulator.exceptions import NotFound
from moto.server import ThreadedMotoServer

from chorus.pipeline.io import object_stores as buckets
from chorus.pipeline.io import storage
from tests.support.faults import Proxy

SECRET = "s3cr3t-that-nobody-may-see"
BUCKET = "lab"


@dataclass(frozen=True)
class Bucket:
    """An empty bucket at `url` (``gs://lab`` or ``s3://lab``) and what stands before its server."""

    url: str
    proxy: Proxy

    def put(self, folder: Path, name: str) -> str:
        """Copy a local folder (or file) into the bucket; returns its URL."""
        url = storage.join(self.url, name)
        for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
            if path.is_file():
                below = "" if path == folder else path.relative_to(folder).as_posix()
                storage.write_bytes(storage.join(url, below), path.read_bytes())
        self.proxy.requests.clear()
        return url

    def objects(self, name: str) -> dict[str, bytes]:
        """All objects below `name`, by what comes after it."""
        fs, path = storage.filesystem(storage.join(self.url, name))
        return {file.removeprefix(path).lstrip("/"): fs.cat_file(file) for file in fs.find(path)}


@contextmanager
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket of Google's storage."""
    with _emulator() as target:
        proxy = Proxy(target)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")
        yield from _opened("gs", proxy)


@contextmanager
def amazon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket of S3, with credentials in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    requests.post(f"http://{host}:{port}/moto-api/reset", timeout=10)  # its buckets are those of the process
    proxy = Proxy(f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "lab-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    try:
        yield from _opened("s3", proxy)
    finally:
        server.stop()


KINDS = {"gs": google, "s3": amazon}


def _opened(scheme: str, proxy: Proxy) -> Iterator[Bucket]:
    fs, _ = storage.filesystem(f"{scheme}://{BUCKET}")
    if not fs.exists(BUCKET):
        fs.mkdir(BUCKET)
    proxy.requests.clear()
    try:
        yield Bucket(f"{scheme}://{BUCKET}", proxy)
    finally:
        proxy.close()


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts of this process follow one another at once; how many there are stays."""
    short = replace(buckets.RETRIES, request_first_wait=0.01, request_longest_wait=0.02)
    monkeypatch.setattr(buckets, "RETRIES", short)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0.01)


@contextmanager
def _emulator() -> Iterator[str]:
    with (
        mock.patch.object(gcp_storage.Storage, "_write_config_to_file"),
        mock.patch.object(gcp.server, "HTTPServer", _Server),
        mock.patch.object(gcp, "RequestHandler", _Handler),
        mock.patch.object(gcp, "_read_data", _read_data),
    ):
        logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
        running = gcp.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
        running.start()
        try:
            yield f"http://127.0.0.1:{running._api._httpd.server_port}"
        finally:
            running.stop()


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are what is tested here."""


_LOCK = threading.RLock()
_READ_AS_PUBLISHED = gcp._read_data


def _read_data(handler: Any, query: dict[str, list[str]]) -> Any:
    """An upload of metadata and content in one body, byte for byte; other requests as published."""
    kind = handler.headers.get("Content-Type", "")
    if not kind.startswith("multipart/related"):
        return _READ_AS_PUBLISHED(handler, query)
    boundary = re.search(r'boundary="?([^";]+)', kind)
    assert boundary
    mark = b"--" + boundary[1].encode()
    _, meta, rest = handler.rfile.read().split(mark, 2)
    content = rest[: rest.rindex(mark)].partition(b"\n\n")
    types = re.search(rb"Content-Type: (\S+)", content[0])
    return {
        "meta": json.loads(meta.partition(b"\n\n")[2]),
        "content": content[2].removesuffix(b"\n"),
        "content-type": types[1].decode() if types else "application/octet-stream",
    }


class _Handler(gcp.RequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_: Any) -> None:
        pass

    def _route(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # an upload that was cut is none
            self.close_connection = True
            return
        self.rfile, connection = _Body(body), self.rfile
        try:
            with _LOCK:
                if self._refused(body):
                    return
                self._suffix()
                if not self._listed():
                    gcp.Router(self).handle(self.command)
        finally:
            self.rfile = connection
            self.wfile.flush()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _route  # noqa: N815 - as the library calls them

    def _refused(self, body: bytes) -> bool:
        """A change of an object of another generation than ``ifGenerationMatch``; 0 is one that is not there."""
        expected = parse_qs(urlsplit(self.path).query).get("ifGenerationMatch")
        if expected is None:
            return False
        found = re.search(r"/b/([^/]+)/o(?:/([^?]+))?", self.path)
        assert found
        if self.command == "DELETE":
            key = unquote(found[2])
        else:
            name = re.search(rb'"name": ("[^"]+")', body)
            assert name
            key = json.loads(name[1])
        generation = self._generation(found[1], key)
        if generation == expected[0] or (generation == "0" and self.command == "DELETE"):
            return False  # of what is not there, it says so itself
        self.send_response(HTTPStatus.PRECONDITION_FAILED)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def _listed(self) -> bool:
        """A page of a listing that is asked for in pages: names in order, from ``pageToken`` or ``startOffset`` on."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        found = re.search(r"/b/([^/]+)/o$", urlsplit(self.path).path)
        if self.command != "GET" or not found or "fields" not in asked:
            return False
        files, _ = self.storage.get_file_list(unquote(found[1]), asked.get("prefix"))
        start, end = max(asked.get("startOffset", ""), asked.get("pageToken", "")), asked.get("endOffset")
        wanted = sorted((one for one in files if one["name"] >= start), key=lambda one: str(one["name"]))
        wanted = [one for one in wanted if end is None or one["name"] < end]
        size = int(asked["maxResults"])
        content: dict[str, Any] = {
            "items": [{key: one[key] for key in ("name", "size", "generation")} for one in wanted]
        }
        content["items"] = content["items"][:size]
        if len(wanted) > size:
            content["nextPageToken"] = wanted[size]["name"]
        data = json.dumps(content).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return True

    def _suffix(self) -> None:
        """The last bytes of an object, asked for as the bytes from there on."""
        suffix = re.fullmatch(r"bytes=-(\d+)", (self.headers.get("range") or "").strip())
        target = re.search(r"/b/([^/]+)/o/([^?]+)", self.path)
        if suffix and target:
            size = self._size(unquote(target[1]), unquote(target[2]))
            if size is not None:
                self.headers.replace_header("range", f"bytes={max(0, size - int(suffix[1]))}-")

    def _generation(self, bucket: str, name: str) -> str:
        try:
            return str(self.storage.get_file_obj(bucket, name)["generation"])
        except NotFound:
            return "0"

    def _size(self, bucket: str, name: str) -> int | None:
        try:
            return len(self.storage.get_file(bucket, name))
        except NotFound:
            return None


class _Body:
    """A request's body, read before: what is asked for beyond it is nothing."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int = -1) -> bytes:
        taken, self._data = (self._data, b"") if size < 0 else (self._data[:size], self._data[size:])
        return taken

    def readline(self) -> bytes:
        return self.read()

    def close(self) -> None:
        pass
