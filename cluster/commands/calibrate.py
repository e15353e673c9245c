"""``chorus calibrate``: run an ensemble on images with a truth, and store what that tells about its scores."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from chorus.cluster.evaluation.run import EvaluateRequest, evaluate, read_evaluation
from chorus.cluster.planning.requests import EXIT_CODES, PlanReporter, PredictRequest
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


@dataclass(frozen=True, slots=True)
class Calibrated:
    """How a calibration ended.

    Attributes
    ----------
    out : URL of the results
    state, message : as of the run, or of the evaluation
    failures : name of each image that failed, and the reason
    reference, url : None and empty if the run was interrupted
    """

    out: str
    state: str
    message: str
    failures: tuple[tuple[str, str], ...]
    reference: Reference | None
    url: str

    @property
    def exit_code(self) -> int:
        """Return the exit code of the command line."""
        return EXIT_CODES[self.state]


def calibrate_ensemble(request: CalibrateRequest, reporter: PlanReporter) -> Calibrated:
    """Predict, evaluate, and write the reference beside the ensemble; the same call resumes an interrupted one.

    Returns
    -------
    Calibrated
        How the run or the evaluation ended, and the reference.

    Raises
    ------
    RefusedError
        As `predict`, `evaluate` and `chorus.pipeline.reference.reference.calibrate_from` do.
    """
    predicted = predict(request.run, reporter)
    if predicted.state == "interrupted":
        failures = tuple((row.name, row.message) for row in predicted.rows if row.status == "failed")
        return Calibrated(predicted.out, predicted.state, predicted.message, failures, None, "")
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
    failures = tuple((row["name"], row["message"]) for row in outcome.rows if row["status"] == "failed")
    url = write_reference(ensemble.url, reference)
    return Calibrated(outcome.out, outcome.state, outcome.message, failures, reference, url)
