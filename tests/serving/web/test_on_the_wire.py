"""What shows on real sockets alone: clients that are slow, and images that the server fetches itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec.config
import httpx
import pytest

from chorus.serving.contract import sources
from chorus.serving.contract.metrics import ApplicationMetrics
from chorus.serving.contract.settings import parse_settings
from chorus.serving.web.api import create_app
from tests.support.browsing import Served
from tests.support.buckets import KINDS
from tests.support.local_predictors import LocalPredictors
from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.servers import NPY, npy, npz, server, slow_answer

IMAGE = pixels((90, 80))
ASKED = {"outputs": ["labels", "uncertainty"]}


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_light_ensemble(tmp_path_factory.mktemp("light"), members=2, width=4))


@pytest.fixture(scope="module")
def address(ensemble: str) -> Iterator[tuple[str, int]]:
    """Of a server where bodies have a second to arrive."""
    settings = parse_settings({"ensemble": ensemble, "limits": {"upload_seconds": 1}})
    predictors = LocalPredictors(settings)
    served = Served(create_app(settings, predictors, ApplicationMetrics()))
    url = urlsplit(served.url)
    assert url.hostname
    assert url.port
    yield url.hostname, url.port
    served.stop()
    predictors.close()


@pytest.mark.parametrize("drop", [None, 0.1])
def test_a_slow_body_gets_408_in_time_and_the_server_goes_on(address: tuple[str, int], drop: float | None) -> None:
    answer, seconds = slow_answer(address, drop)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer
    assert b"did not arrive within 1 s" in answer
    assert 0.9 < seconds < 10
    url = f"http://{address[0]}:{address[1]}/v1/predict"
    assert httpx.post(url, content=npy(IMAGE), headers=NPY, timeout=60).status_code == 200


def test_many_slow_clients_at_once_do_not_keep_others_waiting(address: tuple[str, int]) -> None:
    held = [threading.Thread(target=slow_answer, args=(address, 0.2)) for _ in range(40)]
    for thread in held:
        thread.start()
    url = f"http://{address[0]}:{address[1]}/v1/predict"
    assert httpx.post(url, content=npy(IMAGE), headers=NPY, timeout=60).status_code == 200
    for thread in held:
        thread.join()
    open_now = httpx.get(f"http://{address[0]}:{address[1]}/metrics", timeout=60).text
    assert "chorus_http_requests_open 1.0" in open_now  # this one


def assert_as_uploaded(client: Any, url: str, path: str = "") -> None:
    """The image at `url` gets what the same pixels in a body get, bit for bit."""
    accept = {"Accept": "application/x-npz"}
    request = {"source": {"url": url, "image": path}, "options": ASKED}
    stored = client.post("/v1/predict", json=request, headers=accept)
    assert stored.status_code == 200, stored.text
    sent = client.post("/v1/predict", params=ASKED, content=npy(IMAGE), headers=NPY | accept)
    found, expected = npz(stored.content), npz(sent.content)
    for name in ASKED["outputs"]:
        assert found[name].tobytes() == expected[name].tobytes(), name
    scores = [json.loads(str(one["prediction"]))["scores"] for one in (found, expected)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_in_an_allowed_bucket_is_read_and_its_neighbours_are_not(
    kind: str, ensemble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "in" / "a.ome.zarr", IMAGE)
    with KINDS[kind](monkeypatch) as bucket:
        bucket.put(tmp_path / "in", "public")
        bucket.put(tmp_path / "in", "publicly/private")
        with server(ensemble=ensemble, allow=[f"{bucket.url}/public/"]) as (client, _):
            assert_as_uploaded(client, f"{bucket.url}/public/a.ome.zarr")
            bucket.proxy.requests.clear()
            for path in ("publicly/private/a.ome.zarr", "", "public/../publicly/private/a.ome.zarr"):
                refused = client.post("/v1/predict", json={"source": {"url": f"{bucket.url}/{path}"}})
                assert refused.status_code == 403, path
            assert bucket.proxy.requests == []
            for path in ("public/b.ome.zarr", "public"):
                missing = client.post("/v1/predict", json={"source": {"url": f"{bucket.url}/{path}"}})
                assert missing.status_code == 404, missing.text


class _Web(SimpleHTTPRequestHandler):
    """Files of a folder; below ``/public/elsewhere`` it sends clients on to what lies inside."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/public/elsewhere"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/public/elsewhere", "/private"))
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_an_image_on_an_allowed_host_is_read_and_redirects_lead_nowhere(
    ensemble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On loopback, which is let pass for public here and nowhere else."""
    for folder in ("public", "private"):
        write_image(tmp_path / "web" / folder / "a.ome.zarr", IMAGE)
    asked: list[str] = []
    handler = type("Handler", (_Web,), {"asked": asked})
    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "web")))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    base = f"http://localhost:{web.server_port}"
    for kind in ("http", "https"):
        monkeypatch.setitem(fsspec.config.conf, kind, {})
    sources.guard_web.__wrapped__()
    try:
        with server(ensemble=ensemble, allow=[f"{base}/public/"]) as (client, _):
            refused = client.post("/v1/predict", json={"source": {"url": f"{base}/public/a.ome.zarr"}})
            assert (refused.status_code, asked) == (403, [])
            monkeypatch.setattr(sources, "_is_public", lambda address: address == "127.0.0.1")
            assert_as_uploaded(client, f"{base}/public/a.ome.zarr")
            asked.clear()
            led = client.post("/v1/predict", json={"source": {"url": f"{base}/public/elsewhere/a.ome.zarr"}})
            assert led.status_code in (404, 422), led.text
            assert asked
            assert not [path for path in asked if path.startswith("/private")]
            assert client.post("/v1/predict", json={"source": {"url": f"{base}/private/a.ome.zarr"}}).status_code == 403
    finally:
        web.shutdown()
        web.server_close()
