"""The OpenAPI document and what it is asked with: nothing that a client can think of is an error of the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from starlette.testclient import TestClient

from chorus.serving.contract.metrics import ApplicationMetrics
from chorus.serving.contract.predictors import Answer, LargeTask, PredictorOutcome, Refusal, Task
from chorus.serving.contract.schemas import EnsembleInfo
from chorus.serving.contract.settings import parse_settings
from chorus.serving.web.api import create_app

INFO = EnsembleInfo(
    name="nuclei", hash="0" * 64, title="nuclei", classes=["background", "nucleus"], channels=["dna"],
    pixel_size_um=None, members=5, tile=256, augmentations=["identity"], flows=False, calibrated=False,
    outputs=["labels"],
)  # fmt: skip


class Ready:
    """An ensemble that answers whatever was decoded and allowed."""

    names = ("nuclei",)

    async def predict(self, name: str, task: Task) -> PredictorOutcome:
        return Answer(task.media, b"{}")

    async def start(self, name: str, large: LargeTask) -> Refusal | None:
        return Refusal(429, "full", 1)

    async def info(self, name: str) -> EnsembleInfo:
        return INFO


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    jobs = str(tmp_path_factory.mktemp("jobs"))
    arguments = {"ensembles": {"nuclei": "nowhere/"}, "jobs_url": jobs, "limits": {"pixels": 1 << 16}}
    return create_app(parse_settings(arguments), Ready(), ApplicationMetrics())


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[TestClient]:
    with TestClient(
        app, base_url="http://localhost", client=("127.0.0.1", 40000), raise_server_exceptions=False
    ) as found:
        yield found


def send(case: Any, client: TestClient) -> Any:
    """What schemathesis made up, as a client sends it."""
    prepared = requests.Request(**case.as_transport_kwargs(base_url="http://localhost")).prepare()
    return client.request(prepared.method, prepared.url, content=prepared.body, headers=dict(prepared.headers))


@pytest.mark.parametrize(
    "path", ["/v1/predict", "/v1/predictions", "/v1/ensemble", "/v1/health", "/v1/ready", "/metrics"]
)
def test_no_request_that_the_document_allows_is_an_error_of_the_server(path: str, client: TestClient) -> None:
    document = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    operations = [found.ok() for found in document.get_all_operations()]
    chosen = [operation for operation in operations if operation.path == path or operation.path.startswith(f"{path}/")]
    assert chosen
    for operation in chosen:

        @settings(max_examples=15, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            answer = send(case, client)
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert answer.headers["content-type"] == "application/problem+json"

        check()


def test_every_route_is_described_with_its_refusals(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) >= 10
    for operation in operations:
        assert operation["summary"]
        assert {"401", "403", "429", "503"} <= set(operation["responses"])
    predict = document["paths"]["/v1/predict"]["post"]
    assert "multipart/form-data" in predict["requestBody"]["content"]
    assert predict["requestBody"]["content"]["application/json"]["example"]
    assert {"200", "202", "413", "415", "422", "504"} <= set(predict["responses"])
