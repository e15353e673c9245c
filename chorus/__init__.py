"""Chorus: deep-ensemble segmentation of microscopy images at cloud scale, with an honest measure of uncertainty.

An image that is in memory::

    import chorus
    ensemble = chorus.load("nuclei-fluo")
    result = ensemble.segment(image, pixel_size=0.65)  # NumPy, xarray, dask or zarr
    result.labels, result.probability, result.uncertainty, result.scores
    result.objects["nucleus"], result.objects.table

Whole data sets, as ``chorus predict`` does, here or on a cluster::

    results = chorus.predict("plate.ome.zarr", "nuclei-fluo", "results")
    results.rank()                                       # images, the most uncertain first
    results.image("plate.ome.zarr/A/01/0").uncertainty   # opened, and read when it is used
    chorus.open_results("results")                       # what an earlier run has left

A server of ``chorus serve``::

    prediction = chorus.Client("http://127.0.0.1:8000").predict(image)

Errors are a `ChorusError` with one sentence.
"""

# The public interface: the command line (`chorus.cli`) and the names for programs; no logic of its own. Every import of
# a part of Chorus runs this file first, so it imports nothing before first use (PEP 562).
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chorus.api import load, open_results, predict
    from chorus.cluster.arrays.loaded import LoadedEnsemble
    from chorus.cluster.arrays.segmentation import Segmentation
    from chorus.cluster.objects.labels import ObjectLabels
    from chorus.cluster.planning.requests import PredictRequest
    from chorus.cluster.planning.settings import ResultSettings, RunSettings
    from chorus.cluster.results.image_results import ImageResults
    from chorus.cluster.results.run_results import RunResults
    from chorus.cluster.state.outcome import Outcome
    from chorus.pipeline.errors import ChorusError
    from chorus.serving.client import Client

    __version__: str

# Operations that Apple's GPUs lack run on the CPU; torch reads this once, when it is imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__all__ = [
    "ChorusError",
    "Client",
    "ImageResults",
    "LoadedEnsemble",
    "ObjectLabels",
    "Outcome",
    "PredictRequest",
    "ResultSettings",
    "RunResults",
    "RunSettings",
    "Segmentation",
    "__version__",
    "load",
    "open_results",
    "predict",
]

_HOMES = {
    "ChorusError": "chorus.pipeline.errors",
    "Client": "chorus.serving.client",
    "ImageResults": "chorus.cluster.results.image_results",
    "LoadedEnsemble": "chorus.cluster.arrays.loaded",
    "ObjectLabels": "chorus.cluster.objects.labels",
    "Outcome": "chorus.cluster.state.outcome",
    "PredictRequest": "chorus.cluster.planning.requests",
    "ResultSettings": "chorus.cluster.planning.settings",
    "RunResults": "chorus.cluster.results.run_results",
    "RunSettings": "chorus.cluster.planning.settings",
    "Segmentation": "chorus.cluster.arrays.segmentation",
    "load": "chorus.api",
    "open_results": "chorus.api",
    "predict": "chorus.api",
}


def __getattr__(name: str) -> Any:
    """Import a name from its module on first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("chorus-bioimage")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List what can be imported from here."""
    return sorted([*globals(), *__all__])
