"""A run of ``chorus evaluate``: match the images of a run with their truth, measure them in parallel, summarise.

::

    OUT/evaluation.json              settings, and at the end what was measured of all images together
    OUT/work/evaluation/<image>.json what was measured of an image, until the evaluation has ended
    OUT/evaluation.parquet           a row per image, written at the end
    OUT/reliability.svg              with them, if the run saved probabilities
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from chorus.cluster.evaluation.documents import (
    DIAGRAM,
    NO_TRUTH,
    SUMMARY,
    TABLE,
    AgainstBaseline,
    EvaluatedEnsemble,
    EvaluatedRun,
    EvaluationCounts,
    EvaluationRecord,
    EvaluationRow,
    Mean,
)
from chorus.cluster.evaluation.image import evaluate_and_record
from chorus.cluster.evaluation.job import Evaluated, EvaluationJob, EvaluationSettings, metric_columns
from chorus.cluster.objects.records import ObjectsRecord, read_objects_record
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.signals import stoppable
from chorus.cluster.runtime.started_tasks import Ending, Executor, ItemEnd, Items
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.command import Command, begin_inside, earlier_record
from chorus.cluster.state.documents import PredictRecord
from chorus.cluster.state.items import ItemLedger
from chorus.cluster.state.outcome import Outcome, count, failures_of, state_of
from chorus.cluster.state.results import finished_run, planned_images
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.consensus.truths import FoundTruths, find_experts, find_truths
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.parquet_errors import parquet_errors
from chorus.pipeline.io.storage_failures import failure_sentence, storage_errors
from chorus.pipeline.metrics.calibration_error import PixelCalibration, PixelHistogram
from chorus.pipeline.metrics.comparison import compare, mean_interval
from chorus.pipeline.report.reliability import draw_reliability

LEDGER = "work/evaluation"
BASELINE = "Otsu's threshold"
_DEFINING = ("truth", "truth_label", "experts", "expert", "settings", "source_run", "ensemble")
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


@dataclass
class _Measured:
    """What is measured so far: a row per image of the run, and the pixel counts of all of them together."""

    rows: dict[str, EvaluationRow]
    pixels: PixelHistogram | None = field(default=None)

    def add(self, name: str, evaluated: Evaluated) -> None:
        """Fill in what was measured of an image."""
        row = self.rows[name]
        filled = {"message": "; ".join(evaluated.notes), "values": row.values | evaluated.values}
        self.rows[name] = row.model_copy(update=filled)
        if evaluated.pixels is not None:
            self.pixels = evaluated.pixels if self.pixels is None else self.pixels + evaluated.pixels


@stoppable()
def evaluate(request: EvaluateRequest, reporter: Reporter) -> Outcome[EvaluationRow, EvaluationRecord]:
    """Measure a run's predictions against a truth; the same call again resumes an interrupted one.

    Writes ``evaluation.parquet`` and ``evaluation.json`` to the run's output, and ``reliability.svg`` if it saved
    probabilities; those of an earlier evaluation are removed before. An image that was measured by an interrupted call
    is measured again if its truth was replaced since; of a truth in OME-Zarr only another URL tells.

    Raises
    ------
    RefusedError
        Before any work: `out` holds no finished run, there is no truth for any of its images, or another command is
        writing there.
    CutShortError
        If the process is told to stop before the first image.
    """
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    storage.check_writable(request.out)
    run = finished_run(request.out)
    scores = [{str(name): value for name, value in row.items()} for row in read_scores(request.out).to_dict("records")]
    reporter.phase("looking for the truth")
    sources = {row["name"]: storage.join(row["source"], row["image"]) for row in scores}
    matched = find_truths(sources, request.truth, request.truth_label)
    classes = tuple(one.name for one in run.ensemble.classes)
    jobs = _jobs(request, run, matched, classes, [row["name"] for row in scores if row["status"] != "failed"])
    command = Command(request.out, _record(request, run), SUMMARY, _DEFINING)
    ledger = ItemLedger(storage.join(request.out, LEDGER), Evaluated)
    with command.held():
        running = begin_inside(command, earlier_record(command), lambda: [TABLE, DIAGRAM, LEDGER])
        measured = _Measured({row["name"]: _row(row, matched, classes) for row in scores})
        ending = _carry_out(request, jobs, ledger, measured, reporter)
        rows = list(measured.rows.values())
        state = state_of(ending.state, rows)
        pixels = None if measured.pixels is None else PixelCalibration.of(measured.pixels)
        running.record = _summary(running.record, matched, rows, pixels)
        if state != "interrupted":
            _write(request.out, rows, pixels)
            running.close(state)
            ledger.clear()
        return Outcome(request.out, state, ending.message, rows, running.record)


def read_evaluation(out: str) -> pd.DataFrame:
    """Return ``evaluation.parquet`` of a run; raise RefusedError if there is none yet, or it is damaged."""
    url = storage.join(storage.normalise(out), TABLE)
    again = f"run `chorus evaluate {out} --truth ...`"
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise RefusedError(f"{out}: no evaluation yet ({failure_sentence(error, url)}); {again}") from error
    with parquet_errors(url, again):
        return pd.read_parquet(io.BytesIO(data))


def _record(request: EvaluateRequest, run: PredictRecord) -> EvaluationRecord:
    """Return the record of an evaluation that begins."""
    objects = None if request.settings.objects == "components" else read_objects_record(request.out)
    made = None if objects is None else f"{objects.started} to {objects.finished}"
    return EvaluationRecord(
        truth=request.truth,
        truth_label=request.truth_label,
        experts=request.experts,
        expert=request.expert,
        settings=request.settings,
        source_run=EvaluatedRun(started=run.started, objects=made),
        ensemble=EvaluatedEnsemble(name=run.ensemble.name, hash=run.ensemble.hash),
        objects=_made_by(request, objects),
    )


def _jobs(
    request: EvaluateRequest, run: PredictRecord, matched: FoundTruths, classes: tuple[str, ...], names: Sequence[str]
) -> list[EvaluationJob]:
    """Return a job for each image that has a prediction and a truth."""
    table = planned_images(request.out)
    places = {name: index for index, name in enumerate(table.names)}
    known = [name for name in names if name in matched.truths]
    experts = find_experts(known, request.experts, request.expert) if request.experts and known else {}
    jobs = []
    for name in known:
        image = table.image(places[name])
        url = image.url if run.settings.in_place else storage.join(request.out, "images", name)
        maps = storage.join(request.out, "images", name) if "probability" in run.settings.save else ""
        drawings = experts.get(name, ())
        jobs.append(EvaluationJob(image, url, maps, matched.truths[name], drawings, classes, request.settings))
    return jobs


def _row(score: Mapping[str, Any], matched: FoundTruths, classes: tuple[str, ...]) -> EvaluationRow:
    """Return the row of an image before it is measured."""
    name, status, message = score["name"], score["status"], ""
    if status == "failed":
        message = f"the run failed it: {score['message']}"
    elif name in matched.failed:
        status, message = "failed", matched.failed[name]
    elif name not in matched.truths:
        status = NO_TRUTH
    return EvaluationRow(name=name, status=status, message=message, values=dict.fromkeys(metric_columns(classes)))


def _carry_out(
    request: EvaluateRequest,
    jobs: Sequence[EvaluationJob],
    ledger: ItemLedger[Evaluated],
    measured: _Measured,
    reporter: Reporter,
) -> Ending:
    """Measure the images that are not recorded, and fill in what is known of all."""
    todo = {job.image.name: job for job in jobs}
    for name, known in ledger.records():
        if name in todo and todo[name].drawings == known.drawings:
            measured.add(name, known)
            del todo[name]
    status = {name: measured.rows[name].status for name in todo}
    for name in todo:
        measured.rows[name] = measured.rows[name].model_copy(update={"status": "open"})

    def take(job: EvaluationJob, result: TaskResult) -> ItemEnd:
        name, rows = job.image.name, measured.rows
        if result.error is not None:
            rows[name] = rows[name].without_result(result)
            return ItemEnd(job.image.pixels, 0.0, result.error)
        rows[name] = rows[name].model_copy(update={"status": status[name]})
        measured.add(name, result.value)
        return ItemEnd(job.image.pixels, result.value.seconds)

    items = Items(list(todo.values()), lambda job: (evaluate_and_record, (job, ledger)), take)
    pixels = sum(job.image.pixels for job in todo.values())
    return items.carry_out(request.executor, request.address, reporter, pixels=pixels)


def _summary(
    record: EvaluationRecord, matched: FoundTruths, rows: Sequence[EvaluationRow], pixels: PixelCalibration | None
) -> EvaluationRecord:
    """Return the record with what was measured of all images together."""
    counts = EvaluationCounts(
        all=len(rows),
        done=count(rows, "done"),
        empty=count(rows, "empty"),
        failed=count(rows, "failed"),
        no_truth=count(rows, NO_TRUTH),
        open=count(rows, "open"),
    )
    dices = [(row.values["dice"], row.values["baseline_dice"]) for row in rows]
    both = np.array([pair for pair in dices if None not in pair], np.float64)
    against = (
        AgainstBaseline.of(compare("dice", {"the ensemble": both.T[0], BASELINE: both.T[1]})) if both.size else None
    )
    measured = {"images": counts, "metrics": _means(rows), "pixels": pixels, "against_baseline": against}
    measured |= {"without_truth": matched.without_truth, "truth_without_image": matched.without_image}
    return record.model_copy(update=measured | {"failures": failures_of(rows)})


def _made_by(request: EvaluateRequest, objects: ObjectsRecord | None) -> str | None:
    """Return the method of the measured objects, as of `chorus objects`; None if the run has no objects."""
    if request.settings.objects == "components":
        return "components of the semantic labels"
    return None if objects is None else objects.settings.method


def _means(rows: Sequence[EvaluationRow]) -> dict[str, Mean]:
    """Return for each metric its mean over the images that have it, the 95 % interval, and the number of images."""
    means: dict[str, Mean] = {}
    names = [name for name in (rows[0].values if rows else {}) if name.startswith(("dice", *_SUMMED))]
    for name in names:
        values = np.array([row.values[name] for row in rows if row.values[name] is not None], np.float64)
        if values.size:
            low, high = mean_interval(values) or (None, None)
            means[name] = Mean(mean=math.fsum(values) / values.size, low=low, high=high, images=int(values.size))
    return means


def _write(out: str, rows: Sequence[EvaluationRow], pixels: PixelCalibration | None) -> None:
    frame = pd.DataFrame([row.model_dump() for row in rows])
    for name in frame.columns.difference(["name", "status", "message"]):
        # A metric that no image has is still a numeric column.
        frame[name] = pd.to_numeric(frame[name])
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    contents = {TABLE: buffer.getvalue()}
    if pixels is not None:
        contents[DIAGRAM] = draw_reliability(pixels).encode()
    with storage_errors(out):
        for name, data in contents.items():
            storage.write_record(storage.join(out, name), data)
