"""Chorus: deep-ensemble segmentation of microscopy images at cloud scale, with an honest measure of doubt.

The face: what a person types (`chorus.cli`) and imports. No logic of its own::

    from chorus import PredictRequest, predict
    outcome = predict(PredictRequest(sources=["plate.ome.zarr"], ensemble="nuclei/ensemble.yaml", out="results"))

    from chorus import Client  # of a server of `chorus serve`
    prediction = Client("http://127.0.0.1:8000").predict(pixels)
"""

from typing import TYPE_CHECKING, Any

from cluster.request import Outcome, PredictRequest, Silent
from cluster.settings import ResultSettings, RunSettings
from pipeline.errors import ChorusError

if TYPE_CHECKING:
    from serving.client import Client

__all__ = ["ChorusError", "Client", "Outcome", "PredictRequest", "ResultSettings", "RunSettings", "predict"]


def predict(request: PredictRequest) -> Outcome:
    """Run an ensemble over sources, as ``chorus predict`` does; raises ChorusError with one sentence."""
    from cluster.reprocess import predict as run

    return run(request, Silent())


def __getattr__(name: str) -> Any:
    """`Client` is imported when it is asked for: commands do not need it."""
    if name == "Client":
        from serving.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
