"""Chorus: deep-ensemble segmentation of microscopy images at cloud scale, with an honest measure of doubt.

The face: what a person types (`chorus.cli`) and imports. No logic of its own::

    from chorus import PredictRequest, predict
    outcome = predict(PredictRequest(sources=["plate.ome.zarr"], ensemble="nuclei/ensemble.yaml", out="results"))
"""

from cluster.request import Outcome, PredictRequest, Silent
from cluster.settings import ResultSettings, RunSettings
from pipeline.errors import ChorusError

__all__ = ["ChorusError", "Outcome", "PredictRequest", "ResultSettings", "RunSettings", "predict"]


def predict(request: PredictRequest) -> Outcome:
    """Run an ensemble over sources, as ``chorus predict`` does; raises ChorusError with one sentence."""
    from cluster.reprocess import predict as run

    return run(request, Silent())
