"""Runs that are asked for over HTTP: on a real Ray cluster, from a bucket into a bucket; and what is refused."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from ray.cluster_utils import Cluster
from starlette.responses import Response

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.job_command import SubmittedCommand, SubmittedJob
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.serving.contract.problems import RequestError, problem_response
from chorus.serving.contract.settings import parse_settings
from chorus.serving.run import serve
from chorus.serving.web.reprocess_routes import add_reprocess_routes
from tests.support.buckets import Bucket, google
from tests.support.making import pixels, write_image, write_light_ensemble

IMAGES = 16
LONGEST_SECONDS = 300.0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as patch, google(patch) as found:
        yield found


@pytest.fixture
def cluster(bucket: Bucket) -> Iterator[Cluster]:
    """A head with a dashboard whose jobs find the programs of this environment, and the bucket."""
    folder = tempfile.mkdtemp(prefix="cs-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
        patch.setenv("RAY_TMPDIR", folder)
        arguments: dict[str, Any] = {"num_cpus": 4, "include_dashboard": True, "object_store_memory": 128 << 20}
        arguments |= {"dashboard_port": free_port(), "dashboard_agent_listen_port": free_port()}
        made = Cluster(initialize_head=True, head_node_args=arguments)
        try:
            yield made
        finally:
            made.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def chorus_serve(*words: str) -> Iterator[httpx.Client]:
    """A client of ``chorus serve``, as a process of its own, when it answers."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "chorus"), "serve", "--port", str(port), *words]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stderr is not None
        said = ""
        while "answers" not in said:
            line = running.stderr.readline()
            assert line, said
            said += line
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LONGEST_SECONDS) as client:
            yield client
    finally:
        running.terminate()
        running.communicate(timeout=60)


def follow(client: httpx.Client, name: str, until: Any) -> dict[str, Any]:
    end = time.monotonic() + LONGEST_SECONDS
    while True:
        state: dict[str, Any] = client.get(f"/v1/jobs/{name}").json()
        if until(state):
            return state
        assert time.monotonic() < end, state
        assert state["state"] in ("waiting", "running"), (state, logs(name))
        time.sleep(0.3)


def logs(name: str) -> str:
    """What a run said on the cluster."""
    found = Path(os.environ["RAY_TMPDIR"]).glob(f"ray/session_latest/logs/job-driver-{name}.log")
    return "".join(path.read_text() for path in found)


def results(bucket: Bucket, name: str) -> tuple[dict[str, bytes], pd.DataFrame]:
    table = io.BytesIO(storage.read_bytes(f"{bucket.url}/{name}/scores.parquet"))
    scores = pd.read_parquet(table).drop(columns="seconds")
    return bucket.objects(f"{name}/images"), scores


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_over_http_is_stopped_goes_on_and_ends_with_the_bytes_of_chorus_predict(
    bucket: Bucket, cluster: Cluster, tmp_path: Path
) -> None:
    ensemble = write_light_ensemble(tmp_path / "e", members=2, width=32)
    for index in range(IMAGES):
        write_image(tmp_path / f"in/{index:02d}.ome.zarr", pixels((128, 256), seed=index))
    source = bucket.put(tmp_path / "in", "runs/in")
    expected = PredictRequest(
        sources=[source], ensemble=str(ensemble), out=f"{bucket.url}/runs/here",
        run=RunSettings(executor="serial", thumbnails=False), objects="auto",
    )  # fmt: skip
    assert predict(expected, Silent()).state == "complete"
    asked = {"sources": [source], "out": f"{bucket.url}/runs/there"}
    options = ["--ensemble", f"light={ensemble}", "--reprocess", f"{bucket.url}/runs/", "--address", cluster.address]
    with chorus_serve(*options) as client:
        began = client.post("/v1/jobs", json=asked)
        assert began.status_code == 202, began.text
        name = began.json()["name"]
        assert client.post("/v1/jobs", json=asked).status_code == 409
        on = follow(client, name, lambda state: (state["regions_done"] or 0) >= 3)
        assert (on["images"], on["regions"]) == (IMAGES, IMAGES)

        stopped = client.request("DELETE", f"/v1/jobs/{name}").json()
        assert stopped["state"] == "stopped"
        assert 3 <= stopped["regions_done"] < IMAGES
        assert client.request("DELETE", f"/v1/jobs/{name}").status_code == 409
        recorded = len(bucket.objects("runs/there/ledger"))
        assert recorded > 0

        again = client.post("/v1/jobs", json=asked).json()["name"]
        assert again != name
        done = follow(client, again, lambda state: state["state"] == "done")
        assert (done["images_done"], done["failed"]) == (IMAGES, 0)
        assert client.get(f"/v1/jobs/{name}").json()["state"] == "stopped"

        images, scores = results(bucket, "runs/there")
        wanted, wanted_scores = results(bucket, "runs/here")
        assert images == wanted
        pd.testing.assert_frame_equal(scores, wanted_scores)

        storage.write_bytes(f"{bucket.url}/runs/taken/other.txt", b"not ours")
        refused = client.post("/v1/jobs", json=asked | {"out": f"{bucket.url}/runs/taken"}).json()["name"]
        said = follow(client, refused, lambda state: state["state"] == "refused")["detail"]
        assert said
        assert str(tmp_path) not in said


class FakeJobs:
    """A cluster that has one run of this server, one of somebody else, and takes no other."""

    def __init__(self) -> None:
        own = SubmittedJob("own-1", "running", "predict", "gs://lab/runs/a", "e", "", None, 1.0, None, "")
        other = SubmittedJob("other-1", "running", "predict", "gs://other/secret", "e", "", None, 1.0, None, "")
        self.known, self.sent, self.stopped = [own, other], [], []

    def submitted(self) -> list[SubmittedJob]:
        return self.known

    def submit(self, command: SubmittedCommand) -> SubmittedJob:
        self.sent.append(command)
        raise RefusedError("--address 10.0.0.7:8265: no cluster answers there")

    def stop(self, name: str) -> SubmittedJob:
        self.stopped.append(name)
        return self.known[0]


@pytest.fixture
def faked(tmp_path: Path) -> tuple[TestClient, FakeJobs]:
    settings = parse_settings({"ensembles": {"a": "/models/a", "b": "gs://models/b"}, "reprocess": ["gs://lab/runs/"]})
    api, jobs = FastAPI(), FakeJobs()

    @api.exception_handler(RequestError)
    async def refused(_: object, error: RequestError) -> Response:
        return problem_response(error)

    add_reprocess_routes(api, settings, lambda: jobs)  # type: ignore[arg-type, return-value]
    return TestClient(api, raise_server_exceptions=False), jobs


IN, OUT = "gs://lab/runs/in", "gs://lab/runs/out"


@pytest.mark.parametrize(
    "asked, status",
    [
        ({"sources": ["gs://other/in"], "out": OUT}, 403),
        ({"sources": ["gs://lab/runs/../secret"], "out": OUT}, 403),
        ({"sources": ["--trust-code"], "out": OUT}, 403),
        ({"sources": ["/etc"], "out": OUT}, 403),
        ({"sources": ["https://lab/runs/in"], "out": OUT}, 403),
        ({"sources": [IN], "out": "gs://lab/run"}, 403),
        ({"sources": [IN], "out": "/tmp/out"}, 403),
        ({"sources": [], "out": OUT}, 422),
        ({"sources": [IN], "out": OUT, "ensemble": "/models/c"}, 404),
        ({"sources": [IN], "out": OUT, "executor": "serial"}, 422),
        ({"sources": [IN], "out": "gs://lab/runs/a"}, 409),
    ],
)
def test_only_what_the_operator_allows_becomes_a_command(
    faked: tuple[TestClient, FakeJobs], asked: dict[str, Any], status: int
) -> None:
    client, jobs = faked
    assert client.post("/v1/jobs", json=asked).status_code == status
    assert jobs.sent == []


def test_the_command_is_that_of_a_person_and_a_cluster_that_refuses_is_not_shown(
    faked: tuple[TestClient, FakeJobs],
) -> None:
    client, jobs = faked
    answer = client.post("/v1/jobs", json={"sources": [IN, f"{IN}2"], "out": OUT, "ensemble": "b"})
    assert answer.status_code == 503
    assert "10.0.0.7" not in answer.text
    (command,) = jobs.sent
    words = f"exec chorus predict --address auto {IN} {IN}2 --ensemble gs://models/b --out {OUT}"
    assert command.entrypoint == words


def test_runs_of_others_on_the_cluster_are_neither_shown_nor_stopped(faked: tuple[TestClient, FakeJobs]) -> None:
    client, jobs = faked
    for name in ("other-1", "none-1", "%2e%2e"):
        assert client.get(f"/v1/jobs/{name}").status_code == 404
        assert client.delete(f"/v1/jobs/{name}").status_code == 404
    assert jobs.stopped == []


def test_runs_need_buckets_and_a_cluster() -> None:
    with pytest.raises(RefusedError, match="give a gs://, s3:// or az:// URL"):
        parse_settings({"ensemble": "e", "reprocess": ["https://example.org/public/"]})
    settings = parse_settings({"ensemble": "e", "reprocess": ["gs://lab/runs"]})
    with pytest.raises(RefusedError, match="give its --address"):
        serve(settings, 8000, None, lambda *_: None)
