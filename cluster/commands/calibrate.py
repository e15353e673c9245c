"""``chorus calibrate``: run an ensemble on images with a truth, and store what that tells about its scores."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from chorus.cluster.evaluation.run import EvaluateRequest, evaluate, read_evaluation
from chorus.cluster.planning.requests import Outcome, PlanReporter, PredictRequest
from chorus.cluster.predict import predict
from chorus.cluster.state.scores import read_features, read_scores
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.metrics.calibration_error import PixelCalibration
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


def calibrate_ensemble(request: CalibrateRequest, reporter: PlanReporter) -> tuple[Outcome, Reference | None, str]:
    """Predict, evaluate, and write the reference beside the ensemble; the same call resumes an interrupted one.

    Returns
    -------
    The outcome of the run, or of the evaluation; the reference and its URL (None and empty if the run was interrupted)

    Raises
    ------
    RefusedError
        As `predict`, `evaluate` and `chorus.pipeline.reference.reference.calibrate_from` do.
    """
    outcome = predict(request.run, reporter)
    if outcome.state == "interrupted":
        return outcome, None, ""
    run = request.run.run
    outcome = evaluate(
        EvaluateRequest(
            out=outcome.out,
            truth=request.truth,
            truth_label=request.truth_label,
            executor=run.executor,
            address=run.address,
        ),
        reporter,
    )
    ensemble = read_ensemble(request.run.ensemble, trust_code=run.trust_code)
    pixels = outcome.summary["pixels"]
    reference = calibrate_from(
        read_scores(outcome.out),
        read_evaluation(outcome.out),
        read_features(outcome.out),
        ensemble=ensemble.hash,
        pixels=None if pixels is None else PixelCalibration.model_validate(pixels),
        tau=request.tau,
        alpha=request.alpha,
    )
    return outcome, reference, write_reference(ensemble.url, reference)
