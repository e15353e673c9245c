"""What a program calls: the names of `chorus` that are functions."""

from __future__ import annotations

from chorus.cluster.request import Outcome, PredictRequest, Silent


def predict(request: PredictRequest) -> Outcome:
    """Run an ensemble over sources, as ``chorus predict`` does; raises ChorusError with one sentence."""
    from chorus.cluster.reprocess import predict as run

    return run(request, Silent())
