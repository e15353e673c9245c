"""What tests of the server share: one in this process, and images as clients send them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from chorus.serving.api import create_app
from chorus.serving.local import LocalPredictors
from chorus.serving.metrics import ApplicationMetrics
from chorus.serving.settings import parse_settings

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
