"""On Ray Serve: the same answers, a death that nobody notices, and another ensemble without a failed request."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ray import serve

from chorus.cluster.runtime import session
from chorus.serving.app import NAME, build
from tests.support.making import pixels, write_light_ensemble
from tests.support.servers import NPY, npy, server, slow_answer

pytestmark = pytest.mark.ray
IMAGE = pixels((90, 80))


@contextmanager
def serving(**arguments: Any) -> Iterator[tuple[httpx.Client, Callable[..., None]]]:
    """A client of a server on Ray Serve, and what deploys it again with other arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    session.start(None, staged=False)

    def deploy(**changed: Any) -> None:
        serve.run(build(arguments | changed), name=NAME, route_prefix="/")

    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        deploy()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield client, deploy
    finally:
        serve.shutdown()
        session.stop()


@contextmanager
def under_load(client: httpx.Client, clients: int) -> Iterator[list[httpx.Response]]:
    """Clients that send one image after the other while what is inside goes on."""
    answers: list[httpx.Response] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answers.append(client.post("/v1/predict", content=npy(IMAGE), headers=NPY))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def wait(until: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)


def replicas(deployment: str) -> list[int]:
    """Processes of a deployment's replicas."""

    def words(process: psutil.Process) -> str:
        try:
            return " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):  # it went meanwhile
            return ""

    own = psutil.Process().children(recursive=True)
    return [process.pid for process in own if f"ServeReplica:{NAME}:{deployment}" in words(process)]


@pytest.fixture
def ensembles(tmp_path: Path) -> list[str]:
    return [str(write_light_ensemble(tmp_path / f"e{m}", members=m, width=4)) for m in (2, 3)]


def test_serve_answers_as_a_server_without_ray_does(ensembles: list[str]) -> None:
    with server(ensemble=ensembles[0]) as (here, _):
        expected = here.post("/v1/predict", content=npy(IMAGE), headers=NPY).json()
    with serving(ensembles={"e2": ensembles[0]}, limits={"upload_seconds": 2}) as (client, _):
        assert client.get("/v1/ready").json() == {"status": "ok", "ensembles": {"e2": True}}
        answer = client.post("/v1/predict", content=npy(IMAGE), headers=NPY)
        assert answer.json()["scores"] == expected["scores"]
        assert len(answer.headers.get_list("x-request-id")) == 1
        assert client.get("/v1/ensembles", headers={"Host": "evil.example"}).status_code == 403
        slow, seconds = slow_answer((client.base_url.host, client.base_url.port or 0), 0.1)
        assert slow.startswith(b"HTTP/1.1 408 ")
        assert 1.5 < seconds < 15


@pytest.mark.long
def test_a_replica_that_is_killed_under_load_fails_no_request(ensembles: list[str]) -> None:
    with serving(ensembles={"e2": ensembles[0]}, min_replicas=2, max_replicas=2) as (client, _):
        wait(lambda: len(replicas("ensemble-e2")) == 2)
        with under_load(client, 4) as answers:
            wait(lambda: len(answers) > 10)
            os.kill(replicas("ensemble-e2")[0], signal.SIGKILL)
            count = len(answers)
            wait(lambda: len(answers) > count + 20)
        assert {answer.status_code for answer in answers} == {200}
        assert len({str(answer.json()["scores"]) for answer in answers}) == 1


@pytest.mark.long
def test_another_ensemble_under_load_fails_no_request(ensembles: list[str]) -> None:
    with serving(ensembles={"e": ensembles[0]}) as (client, deploy):
        with under_load(client, 3) as answers:
            wait(lambda: len(answers) > 5)
            deploy(ensembles={"e": ensembles[1]})
            count = len(answers)
            wait(lambda: len(answers) > count + 10)
        assert {answer.status_code for answer in answers} == {200}
        hashes = [answer.json()["ensemble"]["hash"] for answer in answers]
        assert len(set(hashes)) == 2
        assert hashes[0] != hashes[-1]


@pytest.mark.long
def test_more_requests_than_fit_are_refused_and_the_rest_is_answered(ensembles: list[str]) -> None:
    limits = {"ongoing": 2, "queued": 2}
    with serving(ensembles={"e": ensembles[0]}, limits=limits) as (client, _):
        with under_load(client, 24) as answers:
            wait(lambda: len(answers) > 60)
        found = {answer.status_code for answer in answers}
        assert found <= {200, 429, 503}
        assert {200, 429} <= found
        assert all("retry-after" in answer.headers for answer in answers if answer.status_code != 200)
        assert client.post("/v1/predict", content=npy(IMAGE), headers=NPY).status_code == 200


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_second_replica_comes_with_the_load_and_goes_without_a_failed_request(ensembles: list[str]) -> None:
    scaled = {"min_replicas": 1, "max_replicas": 2, "target_ongoing": 1, "idle_seconds": 5}
    with serving(ensembles={"e2": ensembles[0]}, **scaled) as (client, _):
        assert len(replicas("ensemble-e2")) == 1
        with under_load(client, 6) as answers:
            wait(lambda: len(replicas("ensemble-e2")) == 2, 240)
            count = len(answers)
            wait(lambda: len(answers) > count + 20)
        with under_load(client, 1) as few:  # one goes on while the other one is let go of
            wait(lambda: len(replicas("ensemble-e2")) == 1, 240)
        assert {answer.status_code for answer in answers + few} == {200}
        assert len({str(answer.json()["scores"]) for answer in answers + few}) == 1
