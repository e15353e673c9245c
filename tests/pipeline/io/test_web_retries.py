"""Files of a web server through a bad connection, and a server that fails beside one that has no such file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import zarr

from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence
from tests.support.buckets import without_waiting
from tests.support.faults import Fault, Proxy, first, share


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Before a web server of the files in `tmp_path`, the first part of a path standing for a bucket."""
    without_waiting(monkeypatch)
    (tmp_path / "web").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
    yield proxy
    proxy.close()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("fault", ["busy", "throttled", "truncated"])
def test_a_web_file_is_read_whole_whatever_happens_on_the_way(proxy: Proxy, tmp_path: Path, fault: Fault) -> None:
    data = np.random.default_rng(0).bytes(200_000)
    (tmp_path / "web" / "file").write_bytes(data)
    proxy.choose = first(3, fault, "GET", "file")
    assert storage.read_bytes(f"{proxy.url}/web/file") == data
    assert proxy.faults() == {fault: 3}


def test_an_array_on_the_web_is_read_right_through_a_bad_connection(proxy: Proxy, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 1000, (256, 256), np.uint16)
    zarr.create_array(str(tmp_path / "web" / "array"), data=values, chunks=(32, 32))
    proxy.choose = share(0.2, ("busy", "throttled", "truncated"), seed=3)
    array = zarr.open_array(storage.store(f"{proxy.url}/web/array", read_only=True), mode="r")
    assert (array[40:200, 30:250] == values[40:200, 30:250]).all()
    assert len(proxy.faults()) > 1


def test_a_server_that_fails_is_not_taken_for_a_missing_file(proxy: Proxy, tmp_path: Path) -> None:
    (tmp_path / "web" / "file").write_bytes(b"x")
    proxy.choose = first(3, "busy", "GET")
    assert storage.exists(f"{proxy.url}/web/file")
    assert not storage.exists(f"{proxy.url}/web/other")
    proxy.choose = first(10_000, "busy", "GET")
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of the library
        storage.exists(f"{proxy.url}/web/file")
    assert "the server answered 503" in (failure_sentence(caught.value, f"{proxy.url}/web/file") or "")
