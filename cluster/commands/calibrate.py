"""``chorus calibrate``: run an ensemble on images with a truth, and store what that tells about its scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict

from chorus.cluster.evaluation.run import EvaluateRequest, evaluate, read_evaluation
from chorus.cluster.planning.requests import PlanReporter, PredictRequest
from chorus.cluster.predict import predict
from chorus.cluster.state.outcome import ItemRow, Outcome, State, failures_of
from chorus.cluster.state.results import finished_run
from chorus.cluster.state.scores import read_features, read_scores
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.reference.reference import Reference, calibrate_from
from chorus.pipeline.reference.storage import write_reference


class CalibrateRequest(BaseModel):
    """A labelled reference set.

    Attributes
    ----------
    run : images, ensemble, and where the results go
    truth, truth_label : see `chorus.pipeline.consensus.truths.find_truths`
    tau : Dice that is asked for
    alpha : fraction of images whose Dice may lie below their bound
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: PredictRequest
    truth: str | None = None
    truth_label: str | None = None
    tau: float = 0.8
    alpha: float = 0.1


@dataclass(frozen=True)
class Calibrated:
    """How a calibration ended.

    Attributes
    ----------
    out, state, message, exit_code : of the run, or of the evaluation
    failures : messages by the images' names
    reference, url : what was written; None and empty if it was interrupted
    """

    out: str
    state: State
    message: str
    exit_code: int
    failures: dict[str, str]
    reference: Reference | None = None
    url: str = ""


def calibrate_ensemble(request: CalibrateRequest, reporter: PlanReporter) -> Calibrated:
    """Predict, evaluate, and write the reference beside the ensemble; the same call resumes an interrupted one.

    Raises
    ------
    RefusedError
        As `predict`, `evaluate` and `chorus.pipeline.reference.reference.calibrate_from` do.
    """
    predicted = predict(request.run, reporter, judge=False)
    if predicted.state == "interrupted":
        return _ended(predicted)
    run = request.run.run
    outcome = evaluate(
        EvaluateRequest(
            out=predicted.out,
            truth=request.truth,
            truth_label=request.truth_label,
            executor=run.executor,
            address=run.address,
        ),
        reporter,
    )
    ended = _ended(outcome)
    if outcome.state == "interrupted":
        return ended
    ensemble = read_ensemble(request.run.ensemble, trust_code=run.trust_code)
    reference = calibrate_from(
        read_scores(outcome.out),
        read_evaluation(outcome.out),
        read_features(outcome.out),
        ensemble=ensemble.hash,
        pixels=outcome.summary.pixels,
        settings=finished_run(outcome.out).settings.content,
        tau=request.tau,
        alpha=request.alpha,
    )
    return replace(ended, reference=reference, url=write_reference(ensemble.url, reference))


def _ended(outcome: Outcome[ItemRow, BaseModel]) -> Calibrated:
    return Calibrated(outcome.out, outcome.state, outcome.message, outcome.exit_code, failures_of(outcome.rows))
