"""What `chorus objects --tune` tries: for each way of making objects the options that matter, and values of each."""

from __future__ import annotations

from chorus.cluster.objects.inputs import Results
from chorus.cluster.objects.request import ObjectsRequest
from chorus.pipeline.core.fields import PROBABILITY
from chorus.pipeline.errors import RefusedError

Options = dict[str, float | int | None]
"""Fields of an `ObjectsRequest`, by name."""

_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)
_SIZES = (5, 15, 30, 60, 120, 250)
_FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)
# In the order in which they are tried; None is the default of the method.
_OF_METHOD: dict[str, dict[str, tuple[float | None, ...]]] = {
    "flows": {"flow_error": (None, 0.4, 0.6, 0.8, 1.2)},
    "stars": {"prob_threshold": (*_SHARES, 0.8), "nms_threshold": (0.2, 0.3, 0.4, 0.5)},
    "watershed": {},
    "components": {},
    "distances": {
        "center_distance_threshold": _SHARES,
        "boundary_distance_threshold": _SHARES,
        "distance_smoothing": (0.8, 1.6, 3.2),
    },
    "boundaries": {"seed_threshold": (0.2, 0.35, *_SHARES[2:], 0.8)},
    "agglomeration": {
        "beta": _SHARES,
        "boundary_threshold": (0.2, *_SHARES),
        "sigma_seeds": (0.5, 1.0, 2.0),
        "sigma_weights": (0.5, 1.0, 2.0, 3.0),
        "superpixel_size": (25, 50, 100, 200),
    },
    "affinities": {"stride": (1, 2, 4), "fragment_size": (0, 25, 50, 100)},
}


def choices(results: Results, diameter: float) -> dict[str, tuple[float | None, ...]]:
    """Return the values that are tried of each option; what was given on the command line stays as it is.

    Parameters
    ----------
    results : of the run, as they were asked for
    diameter : typical one in the labelled images, in pixels
    """
    request = results.request
    tried = dict(_OF_METHOD[results.method])
    if results.method == "flows" and results.of_volumes:
        tried.pop("flow_error")
    if results.method == "watershed":
        tried["diameter"] = tuple(round(max(1.0, factor * diameter), 1) for factor in _FACTORS)
    if _has_foreground(results):
        tried["foreground_threshold"] = _SHARES
    tried["minimum_size"] = _SIZES
    default = ObjectsRequest(out=request.out)
    return {name: values for name, values in tried.items() if getattr(request, name) == getattr(default, name)}


def changed(request: ObjectsRequest, options: Options) -> ObjectsRequest:
    """Return a request with other options.

    Raises
    ------
    ValidationError
        If an option has a value that it cannot have.
    """
    return ObjectsRequest.model_validate(request.model_dump() | options)


def _has_foreground(results: Results) -> bool:
    """Return whether the run kept the probability of foreground, and objects may begin at any value of it."""
    if PROBABILITY.name not in results.settings.save or results.request.least is not None:
        return False
    try:
        Results(changed(results.request, {"foreground_threshold": 0.5}))
    except RefusedError:  # the method has no such threshold
        return False
    return True
