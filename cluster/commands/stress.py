"""``chorus stress``: how an ensemble, and what is said of its results, stand images that were taken badly.

::

    OUT/stress.json      settings, and at the end what came out
    OUT/stress.parquet   a row per copy of an image
    OUT/stress.svg       a panel per corruption
    OUT/images, truth    the copies and their labels
    OUT/run              results of `chorus predict` and `chorus evaluate` of the copies
    OUT/work/stress      a record per image whose copies are written
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from chorus.cluster.commands.stress_image import IMAGES, TRUTH, Copy, Spoilt, StressJob, spoil_and_record
from chorus.cluster.evaluation.run import EvaluateRequest, evaluate, read_evaluation
from chorus.cluster.planning.requests import PlanReporter, PredictRequest
from chorus.cluster.predict import predict
from chorus.cluster.runtime.signals import stoppable
from chorus.cluster.runtime.started_tasks import ItemEnd, Items
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.command import Command, CommandRecord, begin_inside, earlier_record
from chorus.cluster.state.items import ItemLedger
from chorus.cluster.state.outcome import State
from chorus.cluster.state.score_table import read_frame
from chorus.pipeline.ensembles.ensemble import read_ensemble, require_planes
from chorus.pipeline.errors import CutShortError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.reference.storage import find_reference
from chorus.pipeline.stress.corruptions import CORRUPTIONS
from chorus.pipeline.stress.summary import draw_stress, judged, promise, summarise
from chorus.pipeline.training.data.pairs import Pairs, find_pairs

RECORD, TABLE, PICTURE, RUN = "stress.json", "stress.parquet", "stress.svg", "run"
LEDGER = "work/stress"
_MADE = (TABLE, PICTURE, IMAGES, TRUTH, RUN, LEDGER)
_RESUMED = ("running", "complete", "failures")


class StressRequest(BaseModel):
    """Images to be spoilt.

    Attributes
    ----------
    run : ensemble, settings, and where results go; one source
    truth : folder of labels, or
    truth_label : name of a label image inside each OME-Zarr, see `chorus.pipeline.training.data.pairs.find_pairs`
    corruptions : names; empty is all
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: PredictRequest
    truth: str | None = None
    truth_label: str | None = None
    corruptions: list[str] = []

    @model_validator(mode="after")
    def _one_truth(self) -> StressRequest:
        if (self.truth is None) == (self.truth_label is None):
            raise ValueError("give --truth FOLDER, or --truth-label NAME for labels inside of OME-Zarr")
        return self

    @property
    def labels(self) -> str:
        """Where the labels are."""
        return storage.normalise(self.truth) if self.truth is not None else str(self.truth_label)


class StressRecord(CommandRecord):
    """``stress.json``; what came out is there when the command has ended.

    Attributes
    ----------
    images : names and sizes of the images
    summary : rows of `chorus.pipeline.stress.summary.summarise`
    fallen, warned : of `chorus.pipeline.stress.summary.promise`; None without a reference set
    unjudged : why nothing was expected of the images; empty with a reference set
    failures : messages by name
    """

    command: str = "stress"
    ensemble: str
    truth: str
    corruptions: list[str]
    images: list[str]
    summary: list[dict[str, Any]] = Field(default_factory=list)
    fallen: int | None = None
    warned: int | None = None
    unjudged: str = ""
    failures: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Stressed:
    """How a stress test ended.

    Attributes
    ----------
    state, exit_code : of the whole
    record : with what came out
    summary : see `chorus.pipeline.stress.summary.summarise`
    """

    out: str
    state: State
    record: StressRecord
    summary: pd.DataFrame

    @property
    def exit_code(self) -> int:
        """Exit code of the command."""
        return {"complete": 0, "failures": 1, "interrupted": 3}[self.state]


@stoppable()
def stress_ensemble(request: StressRequest, reporter: PlanReporter) -> Stressed:
    """Spoil images, predict and evaluate the copies, and compare; the same call resumes an interrupted one.

    Raises
    ------
    RefusedError
        Before any work: images and labels do not fit, a corruption is not known, or as `predict` and `evaluate` do.
    CutShortError
        If the process is told to stop.
    """
    out = storage.normalise(request.run.out)
    storage.check_writable(out)
    ensemble = read_ensemble(request.run.ensemble, trust_code=request.run.run.trust_code)
    require_planes(ensemble, "`chorus stress`")
    names = _corruptions(request.corruptions)
    reporter.phase("looking for images and labels")
    (images,) = request.run.sources
    channels = tuple(ensemble.spec.input.channels)
    found = find_pairs(images, request.labels, request.run.settings.channel or channels)
    jobs = [StressJob(out, pair, channels, names) for pair in found.pairs]
    _check_names(jobs)
    record = StressRecord(
        ensemble=ensemble.hash,
        truth=request.labels,
        corruptions=list(names),
        images=[f"{pair.name} {pair.image} {'x'.join(map(str, pair.shape))}" for pair in found.pairs],
        unjudged=find_reference(ensemble).absent or "",
    )
    command = Command(out, record, RECORD, ("ensemble", "truth", "corruptions", "images"))
    with command.held():
        made = [TABLE, PICTURE, IMAGES, TRUTH, RUN, LEDGER]
        running = begin_inside(
            command, earlier_record(command), lambda: made, resumes=("running", "complete", "failures")
        )
        copies, failures = _spoil(request, jobs, out, reporter)
        outcome = _predicted(request, out, reporter)
        table = judged(_rows(outcome, copies))
        summary = summarise(table)
        failures |= _failures(found, outcome)
        kept = promise(table) if "flags" in table else None
        _write(out, table, summary)
        state: State = "failures" if failures else "complete"
        running.close(
            state,
            summary=summary.to_dict("records"),
            fallen=None if kept is None else kept.fallen,
            warned=None if kept is None else kept.warned,
            failures=failures,
        )
        return Stressed(out, state, running.record, summary)


def _check_names(jobs: Sequence[StressJob]) -> None:
    """Raise RefusedError if two images would have copies of the same name."""
    twice = [name for name, count in Counter(job.copies[0].name for job in jobs).items() if count > 1]
    if twice:
        raise RefusedError(f"several images would have copies called {twice[0]}; rename one of them")


def _corruptions(asked: Sequence[str]) -> tuple[str, ...]:
    known = [one.name for one in CORRUPTIONS]
    for name in asked:
        if name not in known:
            raise RefusedError(f"--only {name}: is no corruption; choose out of {', '.join(known)}")
    return tuple(name for name in known if not asked or name in asked)


def _spoil(
    request: StressRequest, jobs: Sequence[StressJob], out: str, reporter: PlanReporter
) -> tuple[dict[str, tuple[str, Copy]], dict[str, str]]:
    """Write the copies of all images.

    Returns
    -------
    dict
        By the name of each copy that of its image, and what it is.
    dict
        By the names of images why they have none.
    """
    ledger = ItemLedger(storage.join(out, LEDGER), Spoilt)
    known = ledger.read()
    done = {job.pair.name: known[job.pair.name] for job in jobs if job.pair.name in known}
    failures: dict[str, str] = {}

    def take(job: StressJob, result: TaskResult) -> ItemEnd:
        pixels = job.pair.pixels * len(job.copies)
        if result.error is not None:
            failures[job.pair.name] = result.error
            return ItemEnd(pixels, 0.0, result.error)
        done[job.pair.name] = result.value
        return ItemEnd(pixels)

    todo = [job for job in jobs if job.pair.name not in done]
    if todo:
        reporter.phase(f"spoiling {len(todo)} images")
        items = Items(todo, lambda job: (spoil_and_record, (job, ledger)), take)
        run, pixels = request.run.run, sum(job.pair.pixels * len(job.copies) for job in todo)
        ending = items.carry_out(run.executor, run.address, reporter, pixels=pixels)
        if ending.state == "interrupted":
            raise CutShortError(f"{out}: {ending.message}")
    if not done:
        raise RefusedError(f"{request.labels}: no image could be read: {next(iter(failures.values()))}")
    return {copy.name: (name, copy) for name, one in done.items() for copy in one.copies}, failures


def _predicted(request: StressRequest, out: str, reporter: PlanReporter) -> str:
    """Predict and evaluate all copies; return the URL of the run."""
    run = request.run.run
    settings = request.run.settings.model_copy(update={"channel": []})  # copies have the channels that members see
    changes = {"sources": [storage.join(out, IMAGES)], "out": storage.join(out, RUN), "settings": settings}
    predicted = predict(request.run.model_copy(update=changes), reporter)
    if predicted.state == "interrupted":
        raise CutShortError(f"{out}: {predicted.message}")
    truth = storage.join(out, TRUTH)
    evaluation = EvaluateRequest(out=predicted.out, truth=truth, executor=run.executor, address=run.address)
    outcome = evaluate(evaluation, reporter)
    if outcome.state == "interrupted":
        raise CutShortError(f"{out}: {outcome.message}")
    return predicted.out


def _rows(run: str, copies: dict[str, tuple[str, Copy]]) -> pd.DataFrame:
    """Return a row per copy that was measured, see `chorus.pipeline.stress.summary.COLUMNS`."""
    measured = read_evaluation(run)[["name", "dice"]].dropna()
    if storage.exists(storage.join(run, "flags.parquet")):
        flags = read_frame(run, "flags.parquet", "flags")
        measured = measured.merge(flags[["name", "expected_dice", "dice_bound", "p_value", "flags"]], on="name")
    keys = measured["name"].str.removesuffix(".ome.zarr")
    known = [copies[key] for key in keys]
    columns = {"image": [image for image, _ in known]}
    columns |= {name: [getattr(copy, name) for _, copy in known] for name in ("corruption", "level", "degree")}
    rows = pd.concat([pd.DataFrame(columns, index=measured.index), measured.drop(columns="name")], axis=1)
    order = {name: place for place, (name, _) in enumerate(copies.items())}
    return rows.iloc[keys.map(order).argsort()].reset_index(drop=True)


def _failures(found: Pairs, run: str) -> dict[str, str]:
    rows = read_evaluation(run)
    failed = rows[rows["status"] == "failed"]
    return dict(found.failed) | dict(zip(failed["name"], failed["message"], strict=True))


def _write(out: str, table: pd.DataFrame, summary: pd.DataFrame) -> None:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    with storage_errors(out):
        storage.write_record(storage.join(out, TABLE), buffer.getvalue())
        storage.write_record(storage.join(out, PICTURE), draw_stress(summary).encode())
