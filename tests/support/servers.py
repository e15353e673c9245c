"""What tests of the server share: one in this process, and images as clients send them."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from chorus.serving.contract.metrics import ApplicationMetrics
from chorus.serving.contract.predictors import LargeTask, PredictorOutcome, Refusal, Task
from chorus.serving.contract.schemas import EnsembleInfo
from chorus.serving.contract.settings import parse_settings
from chorus.serving.web.api import create_app
from tests.support.local_predictors import LocalPredictors

NPY = {"Content-Type": "application/x-npy"}


def npy(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def npz(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


@contextmanager
def server(**arguments: Any) -> Iterator[tuple[TestClient, LocalPredictors]]:
    """A client of this machine, and the ensembles behind its server."""
    settings = parse_settings(arguments)
    predictors = LocalPredictors(settings)
    app = create_app(settings, predictors, ApplicationMetrics())
    try:
        with TestClient(
            app, base_url="http://localhost", client=("127.0.0.1", 40000), raise_server_exceptions=False
        ) as client:
            yield client, predictors
    finally:
        predictors.close()


class Nothing:
    """No ensemble is ever ready."""

    names = ("nuclei",)

    async def predict(self, name: str, task: Task) -> PredictorOutcome:
        return Refusal(503, "not ready", 7)

    async def start(self, name: str, large: LargeTask) -> Refusal | None:
        return Refusal(503, "not ready", 7)

    async def info(self, name: str) -> EnsembleInfo:
        raise Refusal(503, "not ready", 7).error()


def client_of(address: str = "127.0.0.1", base: str = "http://localhost", **arguments: object) -> TestClient:
    settings = parse_settings({"ensembles": {"nuclei": "nowhere/"}, **arguments})
    app = create_app(settings, Nothing(), ApplicationMetrics())
    return TestClient(app, base_url=base, client=(address, 40000), raise_server_exceptions=False)


def slow_answer(address: tuple[str, int], drop: float | None) -> tuple[bytes, float]:
    """What comes to a client that promises a body and sends a byte every `drop` seconds, or none; and when."""
    head = f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1:{address[1]}\r\nContent-Type: application/x-npy\r\n"
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(f"{head}Content-Length: 50000\r\n\r\n".encode())
        began = time.monotonic()
        ended = threading.Event()

        def trickle() -> None:
            while drop is not None and not ended.wait(drop):
                try:
                    connection.send(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            return connection.recv(65536), time.monotonic() - began
        finally:
            ended.set()
            thread.join()
