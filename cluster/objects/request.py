"""The request of ``chorus objects``."""

from __future__ import annotations

import math

from pydantic import Field

from chorus.cluster.objects.map_options import MapOptions
from chorus.cluster.runtime.started_tasks import Executor
from chorus.pipeline.instances.methods import AnyMethod


class ObjectsRequest(MapOptions):
    """Objects of the results in `out`.

    Attributes
    ----------
    method : how objects are made; ``auto`` follows the flows if the run saved them, else takes the maps of objects that
        it saved, else splits the foreground by the distance to the background
    diameter : typical one, in pixels of the images; None is that of the ensemble's training data
    minimum_size : smaller objects are removed, pixels
    flow_error : objects of a larger flow error are removed; None keeps all
    foreground_threshold, cellprob_threshold : probability, or its logit, from which a pixel is of a class; at most one
        is given, None takes the labels
    flows_from : URL of a second ensemble, which predicts flows from the probability of a class; None takes the flows
        that the run saved
    prob_threshold, nms_threshold : of objects by stars, see `chorus.pipeline.members.outputs.StarThresholds`; None
        takes the ensemble's
    trust_code : whether code that comes with a member of that ensemble may run
    executor, address : as in `chorus.cluster.planning.settings.RunSettings`
    """

    out: str
    method: AnyMethod = "auto"
    diameter: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    minimum_size: int = Field(default=15, ge=1)
    flow_error: float | None = Field(default=None, gt=0, le=4)
    foreground_threshold: float | None = Field(default=None, gt=0, lt=1)
    cellprob_threshold: float | None = Field(default=None, ge=-20, le=20)
    flows_from: str | None = None
    prob_threshold: float | None = Field(default=None, ge=0, le=1)
    nms_threshold: float | None = Field(default=None, ge=0, le=1)
    trust_code: bool = False
    executor: Executor = "auto"
    address: str | None = None
    verify: bool = False

    @property
    def least(self) -> float | None:
        """Probability from which a pixel is of a class; None where the ensemble decides."""
        if self.cellprob_threshold is not None:
            return 1 / (1 + math.exp(-self.cellprob_threshold))
        return self.foreground_threshold
