"""What a program calls: the names of `chorus` that are functions."""

from __future__ import annotations

from chorus.cluster.planning.requests import Outcome, PredictRequest
from chorus.cluster.runtime.reporting import Silent


def predict(request: PredictRequest) -> Outcome:
    """Run an ensemble over sources, as ``chorus predict`` does; raises ChorusError with one sentence."""
    from chorus.cluster.predict import predict as run

    return run(request, Silent())
