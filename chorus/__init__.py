"""Chorus: deep-ensemble segmentation of microscopy images at cloud scale, with an honest measure of doubt.

The face: what a person types (`chorus.cli`) and imports. No logic of its own::

    from chorus import PredictRequest, predict
    outcome = predict(PredictRequest(sources=["plate.ome.zarr"], ensemble="nuclei/ensemble.yaml", out="results"))

    from chorus import Client  # of a server of `chorus serve`
    prediction = Client("http://127.0.0.1:8000").predict(pixels)

Every import of a part of Chorus runs this file first, so it imports nothing before it is asked for (PEP 562).
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from chorus.api import predict
    from chorus.cluster.planning.requests import Outcome, PredictRequest
    from chorus.cluster.planning.settings import ResultSettings, RunSettings
    from chorus.pipeline.errors import ChorusError
    from chorus.serving.client import Client

# Operations that Apple's GPUs lack run on the cores; torch reads this once, when it is imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__all__ = ["ChorusError", "Client", "Outcome", "PredictRequest", "ResultSettings", "RunSettings", "predict"]

_HOMES = {
    "ChorusError": "chorus.pipeline.errors",
    "Client": "chorus.serving.client",
    "Outcome": "chorus.cluster.planning.requests",
    "PredictRequest": "chorus.cluster.planning.requests",
    "ResultSettings": "chorus.cluster.planning.settings",
    "RunSettings": "chorus.cluster.planning.settings",
    "predict": "chorus.api",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for from its home."""
    if name == "__version__":
        from importlib.metadata import version

        return version("chorus-bioimage")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """What can be imported from here."""
    return sorted([*globals(), *_HOMES, "__version__"])
