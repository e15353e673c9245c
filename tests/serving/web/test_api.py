"""Forms of requests and answers, jobs, and the client."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tifffile
from starlette.testclient import TestClient

from chorus import Client
from chorus.serving.client import ServerError
from chorus.serving.contract.metrics import APPLICATION, REPLICA
from tests.support.local_predictors import LocalPredictors
from tests.support.making import pixels, write_light_ensemble
from tests.support.paths import ROOT
from tests.support.servers import NPY, npy, npz, server

IMAGE = pixels((70, 60))
Served = tuple[TestClient, LocalPredictors]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("ensembles")
    urls = {name: str(write_light_ensemble(folder / name, members=2, width=4, name=name)) for name in ("one", "two")}
    limits = {"at_once_pixels": 8000}
    with server(ensembles=urls, limits=limits, jobs_url=str(folder / "jobs")) as found:
        yield found


class _Through(httpx.BaseTransport):
    """What the client sends goes to an application in this process."""

    def __init__(self, client: TestClient) -> None:
        self._client = client

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._client.request(
            request.method, str(request.url), content=request.read(), headers=dict(request.headers)
        )
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def test_a_body_a_form_and_the_client_get_the_same_answer(served: Served) -> None:
    client, _ = served
    headers = {"Accept": "application/x-npz"}
    body = client.post("/v1/predict?outputs=labels&outputs=epistemic", content=npy(IMAGE), headers=NPY | headers)
    form = client.post(
        "/v1/predict",
        files={"image": ("a.npy", npy(IMAGE))},
        data={"outputs": ["labels", "epistemic"]},
        headers=headers,
    )
    assert body.status_code == form.status_code == 200
    by_client = Client("http://localhost", transport=_Through(client)).segment(IMAGE, ["labels", "epistemic"])
    first, second = npz(body.content), npz(form.content)
    for name in ("labels", "epistemic"):
        assert first[name].tobytes() == second[name].tobytes() == by_client.arrays[name].tobytes()
    assert by_client.prediction.scores == json.loads(str(first["prediction"]))["scores"]
    assert by_client.prediction.shape == IMAGE.shape


def test_answers_come_in_the_form_that_is_asked_for(served: Served) -> None:
    client, _ = served

    def ask(accept: str, outputs: str = "labels") -> httpx.Response:
        headers = NPY | {"Accept": accept}
        return client.post(f"/v1/predict?outputs={outputs}", content=npy(IMAGE), headers=headers)

    assert ask("*/*").headers["content-type"] == "application/json"
    assert ask("application/json;q=0.1, application/x-npz").headers["content-type"] == "application/x-npz"
    tiff = ask("image/tiff", "uncertainty")
    assert tifffile.imread(io.BytesIO(tiff.content)).shape == IMAGE.shape
    assert ask("image/tiff", "labels&outputs=uncertainty").status_code == 406
    assert ask("text/html").status_code == 406
    assert ask("*/*", "flows").status_code == 422
    assert ask("*/*", "everything").status_code == 422


def test_ensembles_answer_by_their_names(served: Served) -> None:
    client, _ = served
    listed = client.get("/v1/ensembles").json()["ensembles"]
    assert [one["name"] for one in listed] == ["one", "two"]
    assert client.get("/v1/ensemble").json() == listed[0]
    assert client.get("/v1/ensemble?name=two").json() == listed[1]
    answer = client.post("/v1/predict?ensemble=two", content=npy(IMAGE), headers=NPY).json()
    assert answer["ensemble"] == {"name": "two", "hash": listed[1]["hash"]}
    assert client.post("/v1/predict?ensemble=no", content=npy(IMAGE), headers=NPY).status_code == 404


def test_an_answer_that_would_be_late_is_given_up(served: Served) -> None:
    client, _ = served
    headers = NPY | {"X-Deadline-Seconds": "0.001"}
    assert client.post("/v1/predict", content=npy(IMAGE), headers=headers).status_code == 504
    for wrong in ("0", "-1", "nan", "soon", "inf"):
        answer = client.post("/v1/predict", content=npy(IMAGE), headers=NPY | {"X-Deadline-Seconds": wrong})
        assert answer.status_code == 422, wrong


def test_a_large_image_becomes_a_job_with_the_scores_of_one_that_is_not(served: Served) -> None:
    client, _ = served
    own = Client("http://localhost", transport=_Through(client))
    large = pixels((100, 110), seed=5)
    begun = client.post("/v1/predict?augmentations=identity", content=npy(large), headers=NPY)
    assert begun.status_code == 202, begun.text
    assert begun.headers["location"] == begun.json()["links"]["self"]
    with client.stream("GET", begun.json()["links"]["events"]) as events:
        states = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: ")]
    assert states[-1]["state"] == "done", states[-1]
    ended = own.job(begun.json()["id"])
    assert ended.prediction is not None
    parts = [own.predict(large, augmentations=["identity"], window=w) for w in ("0:50,0:110", "50:100,0:110")]
    fractions = [part.scores["area_fraction:nucleus"] for part in parts]
    assert ended.prediction.scores["area_fraction:nucleus"] == pytest.approx(sum(fractions) / 2, abs=1e-12)
    results = ended.links["results"]
    assert client.get(f"{results}/zarr.json").status_code == 200
    shard = client.get(f"{results}/labels/semantic/s0/c/0/0")
    part = client.get(f"{results}/labels/semantic/s0/c/0/0", headers={"Range": "bytes=-20"})
    assert (part.status_code, part.content) == (206, shard.content[-20:])
    for outside in ("/../../run.json", "/%2e%2e/%2e%2e/run.json", "/../../../state.json", "/no"):
        assert client.get(f"{results}{outside}").status_code in (404, 405), outside
    own.cancel(ended.id)
    with pytest.raises(ServerError) as gone:
        own.job(ended.id)
    assert gone.value.status == 404
    with pytest.raises(ServerError, match="submit"):
        own.predict(large)


def test_a_change_of_the_ensemble_fails_no_request(served: Served, tmp_path: Path) -> None:
    """Requests go on all the while; each is answered by the one or the other, as it says."""
    client, predictors = served
    host = predictors.hosts["two"]
    before = host.info.hash
    other = str(write_light_ensemble(tmp_path / "other", members=3, width=4, name="other"))

    answers: list[httpx.Response] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answers.append(client.post("/v1/predict?ensemble=two", content=npy(IMAGE), headers=NPY))

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    host.change(other)
    count = len(answers)
    while len(answers) < count + 3:
        time.sleep(0.05)
    ended.set()
    thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert answers[-1].json()["ensemble"]["hash"] == host.info.hash != before


def test_errors_name_the_request_and_say_what_to_do(served: Served) -> None:
    client, _ = served
    answer = client.post("/v1/predict?channels=er", content=npy(IMAGE), headers=NPY | {"X-Request-ID": "mine-1"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (422, "mine-1")
    assert answer.json()["request_id"] == "mine-1"
    assert "er" in answer.json()["detail"]
    assert client.post("/v1/predict?t=3", content=npy(IMAGE), headers=NPY).status_code == 422
    assert client.post("/v1/predict?window=0:10,50:99", content=npy(IMAGE), headers=NPY).status_code == 422
    assert client.post("/v1/predict?nothing=1", content=npy(IMAGE), headers=NPY).status_code == 422
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/v1/predict").status_code == 405
    with pytest.raises(ServerError, match="cannot be reached"):
        Client("http://127.0.0.1:9", retries=0).ensembles()


def test_what_is_counted_is_shown_once(served: Served) -> None:
    client, _ = served
    client.post("/v1/predict", content=npy(np.zeros((40, 40), np.uint16)), headers=NPY)
    lines = client.get("/metrics").text.splitlines()
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    assert 'chorus_http_requests_total{method="POST",route="/v1/predict",status="200"}' in "\n".join(lines)


def test_the_page_of_metrics_has_every_one_of_the_server_and_no_other() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(chorus_(?:http|serve)_\w+)` \|([^|]*)\|", page, re.MULTILINE)
    described = {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert described == {metric.name: metric.labels for metric in (*APPLICATION, *REPLICA)}


def test_an_error_that_nobody_knew_of_is_a_problem_with_the_requests_id_and_the_server_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = served
    body = npy(IMAGE)
    with monkeypatch.context() as patch:
        patch.setattr("chorus.serving.prediction.predictor.conclude", lambda *_: 1 // 0)
        answer = client.post("/v1/predict", content=body, headers=NPY | {"X-Request-ID": "strange-1"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["request_id"]) == (500, "strange-1")
    assert "division" not in answer.text
    assert "request strange-1: POST /v1/predict: ZeroDivisionError" in caplog.text
    assert client.post("/v1/predict", content=body, headers=NPY).status_code == 200


def test_a_job_that_ends_by_an_error_that_nobody_knew_of_has_failed(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = served
    monkeypatch.setattr("chorus.serving.prediction.large_images._run", lambda *_: 1 // 0)
    accepted = client.post("/v1/predict", content=npy(pixels((100, 90))), headers=NPY)
    assert accepted.status_code == 202
    for _ in range(100):
        job = client.get(accepted.headers["Location"]).json()
        if job["state"] not in ("queued", "running"):
            break
        time.sleep(0.1)
    assert job["state"] == "failed"
    assert "the logs of the server name it" in job["detail"]
    assert "ZeroDivisionError" in caplog.text
