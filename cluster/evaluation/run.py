"""A run of ``chorus evaluate``: match the images of a run with their truth, measure them in parallel, summarise."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from chorus.cluster.evaluation.image import EvaluationJob, EvaluationSettings, evaluate_image, metric_columns
from chorus.cluster.objects.run import RECORD as OBJECTS
from chorus.cluster.planning.requests import Outcome
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.started_tasks import Executor, started_tasks
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.documents import PredictRecord
from chorus.cluster.state.results import finished_run, planned_images
from chorus.cluster.state.run_record import surroundings
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.consensus.truths import FoundTruths, find_experts, find_truths
from chorus.pipeline.errors import OutputError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage import storage_errors
from chorus.pipeline.metrics.calibration_error import PixelCalibration, PixelHistogram
from chorus.pipeline.metrics.comparison import compare, mean_interval
from chorus.pipeline.report.reliability import draw_reliability

TABLE, SUMMARY, DIAGRAM = "evaluation.parquet", "evaluation.json", "reliability.svg"
NO_TRUTH = "no truth"
BASELINE = "Otsu's threshold"
# Prefixes of the metrics, besides those of Dice, whose means are in the summary.
_SUMMED = ("ap50", "map", "panoptic_quality", "baseline_", "calibration_error", "expert_")


class EvaluateRequest(BaseModel):
    """A run to evaluate.

    Attributes
    ----------
    out : URL of the results of a run
    truth, truth_label : see `chorus.pipeline.consensus.truths.find_truths`
    experts : folder of the annotators' drawings, ``<expert>/<image>``
    expert : names or patterns of the annotators to include
    executor, address : as in `chorus.cluster.planning.settings.RunSettings`
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    truth: str | None = None
    truth_label: str | None = None
    experts: str | None = None
    expert: list[str] = []
    settings: EvaluationSettings = EvaluationSettings()
    executor: Executor = "auto"
    address: str | None = None


def evaluate(request: EvaluateRequest, reporter: Reporter) -> Outcome:
    """Measure a run's predictions against a truth.

    Writes ``evaluation.parquet`` and ``evaluation.json`` to the run's output, and ``reliability.svg`` if it saved
    probabilities. A row is an image of the run: ``name``; ``status``, that of the run (``done``, ``empty``), ``failed``
    if the run or the evaluation of the image failed (no metrics), or ``no truth``; ``message``; and the columns of
    `metric_columns`, null if they are undefined or were not measured.

    Raises
    ------
    RefusedError
        Before any work: `out` holds no finished run, or there is no truth for any of its images.
    """
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    storage.check_writable(request.out)
    run = finished_run(request.out)
    scores = [{str(name): value for name, value in row.items()} for row in read_scores(request.out).to_dict("records")]
    reporter.phase("looking for the truth")
    sources = {row["name"]: storage.join(row["source"], row["image"]) for row in scores}
    found = find_truths(sources, request.truth, request.truth_label)
    classes = tuple(one.name for one in run.ensemble.classes)
    jobs = _jobs(request, run, found, classes, [row["name"] for row in scores if row["status"] != "failed"])
    rows = {row["name"]: _row(row, found, classes) for row in scores}
    histogram = _carry_out(request, jobs, rows, reporter)
    state = "failures" if any(row["status"] == "failed" for row in rows.values()) else "complete"
    pixels = None if histogram is None else PixelCalibration.of(histogram)
    summary = _summary(request, run, found, list(rows.values()), pixels)
    _write(request.out, list(rows.values()), summary, pixels)
    return Outcome(request.out, state, "", list(rows.values()), summary)


def read_evaluation(out: str) -> pd.DataFrame:
    """Return ``evaluation.parquet`` of a run; raise RefusedError if there is none yet."""
    url = storage.join(storage.normalise(out), TABLE)
    try:
        return pd.read_parquet(io.BytesIO(storage.read_bytes(url)))
    except OSError as error:
        reason = storage.explain(error, url)
        raise RefusedError(f"{out}: no evaluation yet ({reason}); run `chorus evaluate {out} --truth ...`") from error


def _jobs(
    request: EvaluateRequest, run: PredictRecord, found: FoundTruths, classes: tuple[str, ...], names: Sequence[str]
) -> list[EvaluationJob]:
    """Return a job for each image that has a prediction and a truth."""
    table = planned_images(request.out)
    places = {name: index for index, name in enumerate(table.names)}
    known = [name for name in names if name in found.truths]
    experts = find_experts(known, request.experts, request.expert) if request.experts and known else {}
    jobs = []
    for name in known:
        image = table.image(places[name])
        url = image.url if run.settings.in_place else storage.join(request.out, "images", name)
        maps = storage.join(request.out, "images", name) if "probability" in run.settings.save else ""
        drawings = experts.get(name, ())
        jobs.append(EvaluationJob(image, url, maps, found.truths[name], drawings, classes, request.settings))
    return jobs


def _row(score: Mapping[str, Any], found: FoundTruths, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the row of an image before it is measured."""
    name, status, message = score["name"], score["status"], ""
    if status == "failed":
        message = f"the run failed it: {score['message']}"
    elif name in found.failed:
        status, message = "failed", found.failed[name]
    elif name not in found.truths:
        status = NO_TRUTH
    return {"name": name, "status": status, "message": message} | dict.fromkeys(metric_columns(classes))


def _carry_out(
    request: EvaluateRequest, jobs: Sequence[EvaluationJob], rows: dict[str, dict[str, Any]], reporter: Reporter
) -> PixelHistogram | None:
    """Measure the images and fill in the rows.

    Returns
    -------
    The pixel counts of all images; None if no probabilities were saved.
    """
    histogram: PixelHistogram | None = None
    with started_tasks(request.executor, request.address, len(jobs), reporter) as (tasks, cores):
        for index, job in enumerate(jobs):
            tasks.submit(index, evaluate_image, job)
        reporter.begin(len(jobs), sum(job.image.pixels for job in jobs), cores)
        try:
            for result in tasks.results(wait=True):
                job = jobs[result.key]
                row = rows[job.image.name]
                if result.error is not None:
                    row |= {"status": "failed", "message": result.error}
                else:
                    row |= result.value.values | {"message": "; ".join(result.value.notes)}
                    histogram = _added(histogram, result.value.pixels)
                reporter.region(_status(result, job))
                if result.unwritable:
                    raise OutputError(result.error or "")
        finally:
            reporter.end()
    return histogram


def _added(total: PixelHistogram | None, more: PixelHistogram | None) -> PixelHistogram | None:
    if total is None or more is None:
        return more if total is None else total
    return total + more


def _status(result: TaskResult, job: EvaluationJob) -> RegionStatus:
    seconds = 0.0 if result.error is not None else result.value.seconds
    return RegionStatus(
        region=result.key,
        image=result.key,
        place=0,
        state="done" if result.error is None else "failed",
        message=result.error or "",
        pixels=job.image.pixels,
        device_seconds=seconds,
        seconds=seconds,
    )


def _summary(
    request: EvaluateRequest,
    run: PredictRecord,
    found: FoundTruths,
    rows: Sequence[dict[str, Any]],
    pixels: PixelCalibration | None,
) -> dict[str, Any]:
    """Return the content of ``evaluation.json``."""
    counts = {state: sum(row["status"] == state for row in rows) for state in ("done", "empty", "failed", NO_TRUTH)}
    summary: dict[str, Any] = {
        "finished": datetime.now(UTC).isoformat(),
        "truth": request.truth,
        "truth_label": request.truth_label,
        "experts": request.experts,
        "settings": request.settings.model_dump(mode="json"),
        "ensemble": run.ensemble.model_dump(include={"name", "hash"}),
        "images": {"all": len(rows), **counts},
        "without_truth": found.without_truth,
        "truth_without_image": found.without_image,
        "failures": {row["name"]: row["message"] for row in rows if row["status"] == "failed"},
        "metrics": _means(rows),
        "pixels": None if pixels is None else pixels.model_dump(mode="json"),
        "objects": _made_by(request),
        "against_baseline": None,
    }
    both = [(row["dice"], row["baseline_dice"]) for row in rows if None not in (row["dice"], row["baseline_dice"])]
    if both:
        dice, baseline = np.array(both).T
        against = compare("dice", {"the ensemble": dice, BASELINE: baseline})
        summary["against_baseline"] = asdict(against) | {"verdict": against.verdict}
    return summary | {"versions": surroundings().model_dump(mode="json")}


def _made_by(request: EvaluateRequest) -> str | None:
    """Return the method of the measured objects, as of `chorus objects`; None if the run has no objects."""
    if request.settings.objects == "components":
        return "components of the semantic labels"
    url = storage.join(request.out, OBJECTS)
    with storage_errors(url):
        if not storage.exists(url):
            return None
        method: str = json.loads(storage.read_bytes(url))["settings"]["method"]
    return method


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each metric its mean over the images that have it, the 95 % interval, and the number of images."""
    means: dict[str, dict[str, Any]] = {}
    names = [name for name in (rows[0] if rows else {}) if name.startswith(("dice", *_SUMMED))]
    for name in names:
        values = np.array([row[name] for row in rows if row[name] is not None], np.float64)
        if values.size:
            low, high = mean_interval(values) or (None, None)
            mean = math.fsum(values) / values.size
            means[name] = {"mean": mean, "low": low, "high": high, "images": int(values.size)}
    return means


def _write(out: str, rows: Sequence[dict[str, Any]], summary: dict[str, Any], pixels: PixelCalibration | None) -> None:
    frame = pd.DataFrame(rows)
    for name in frame.columns.difference(["name", "status", "message"]):
        # A metric that no image has is still a numeric column.
        frame[name] = pd.to_numeric(frame[name])
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    contents = {TABLE: buffer.getvalue(), SUMMARY: json.dumps(summary, indent=2).encode()}
    if pixels is not None:
        contents[DIAGRAM] = draw_reliability(pixels).encode()
    with storage_errors(out):
        for name, data in contents.items():
            storage.write_bytes(storage.join(out, name), data)
