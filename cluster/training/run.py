"""A whole training: pairs, folds in parallel, and the resulting ensemble; resumable at any point.

``ensemble.yaml`` is written last, when all members are trained and evaluated; the progress of a fold is kept beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from chorus.cluster.runtime import session
from chorus.cluster.runtime.signals import stoppable
from chorus.cluster.state.command import Command, Execution, RecordWithSurroundings, Running, resumable
from chorus.cluster.state.outcome import Summary
from chorus.cluster.training.ensemble import write_ensemble
from chorus.cluster.training.fold_work import FoldJob
from chorus.cluster.training.folds import FoldReporter, FoldRunner, RayFolds, SerialFolds
from chorus.pipeline.core.device import DeviceChoice, DeviceKind
from chorus.pipeline.core.devices import chosen, device_of
from chorus.pipeline.core.provenance import About
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.allocation import keep_freed_memory
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.training.checks import check_memory, check_pairs
from chorus.pipeline.training.data.pairs import Pairs, TrainingPair, find_pairs
from chorus.pipeline.training.records import FoldResult, read_result
from chorus.pipeline.training.settings import TrainSettings

# Results of a training besides the members; --overwrite removes these and the members.
_FILES, _FOLDERS = ("ensemble.yaml",), ("folds", "training")
_SHOWN = 10


class TrainRequest(BaseModel):
    """Annotated images from which an ensemble is trained.

    Attributes
    ----------
    images, labels : see `chorus.pipeline.training.data.pairs.find_pairs`
    out : URL of the folder that becomes the ensemble
    name : of the ensemble; None is the folder's
    about : description, intended use, licence, data reference
    test_images, test_labels : excluded from training and scored at the end
    hold_out : fraction of the images that is excluded from training and scored at the end
    strict : an image without label, or a label without image, is an error
    device : ``auto`` takes GPUs if there are any
    workers : folds at a time; None is the number of devices
    overwrite : start anew if `out` holds a training of other settings
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str
    labels: str
    out: str
    name: str | None = None
    settings: TrainSettings = TrainSettings()
    about: About = About()
    test_images: str | None = None
    test_labels: str | None = None
    hold_out: float | None = Field(default=None, gt=0, lt=1)
    strict: bool = False
    executor: Literal["ray", "serial"] = "ray"
    address: str | None = None
    device: DeviceChoice = "auto"
    workers: int | None = Field(default=None, ge=1)
    overwrite: bool = False

    @model_validator(mode="after")
    def _paired(self) -> TrainRequest:
        if (self.test_images is None) != (self.test_labels is None):
            raise ValueError("--test and --test-labels belong together; give both, or --hold-out SHARE")
        if self.test_images is not None and self.hold_out is not None:
            raise ValueError("--test and --hold-out exclude each other; give one of them")
        return self


@dataclass
class TrainOutcome:
    """How a training ended.

    Attributes
    ----------
    out : URL of the ensemble
    state : ``complete``, or ``failures``: done, though some images could not be used
    hash : of the ensemble
    folds : result of each
    scores : on images outside of training, by data set and metric; empty if there were none
    verdicts : by data set, whether the ensemble is at least as good as its best member
    skipped : names of images and labels that were left out, by reason
    seconds : since the training was first begun
    """

    out: str
    state: Literal["complete", "failures"]
    hash: str
    folds: list[FoldResult]
    scores: dict[str, dict[str, float]]
    verdicts: dict[str, str]
    skipped: dict[str, list[str]]
    seconds: float

    @property
    def exit_code(self) -> int:
        """Exit code of the command."""
        return {"complete": 0, "failures": 1}[self.state]


class TrainSummary(Summary):
    """Hash of the ensemble, and its scores on images outside of training by data set and metric."""

    hash: str
    scores: dict[str, dict[str, float]]
    seconds: float


class TrainExecution(Execution):
    """How a training is carried out."""

    device: str = "auto"


class TrainInputs(BaseModel):
    """Number of pairs that are trained on, and a hash of their names, places and sizes."""

    pairs: int
    sha256: str


class TrainRecord(RecordWithSurroundings):
    """``run.json`` of ``chorus train``; `test` has the images, the labels and the share that are held out."""

    command: str = "train"
    settings: TrainSettings
    run: TrainExecution
    sources: list[str]
    inputs: TrainInputs
    test: tuple[str | None, str | None, float | None]
    summary: TrainSummary | None = None


@dataclass
class _Data:
    """The pairs for training and for testing."""

    train: list[TrainingPair]
    test: list[TrainingPair]
    test_name: str
    skipped: dict[str, list[str]] = field(default_factory=dict)


@stoppable()
def train(request: TrainRequest, reporter: FoldReporter) -> TrainOutcome:
    """Train an ensemble; the same call again resumes an interrupted one.

    Raises
    ------
    RefusedError
        Before any work: images, labels, settings or machine do not fit, or `out` is taken.
    CutShortError
        If a fold cannot continue, or the process is told to stop; finished work is kept.
    """
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    storage.check_writable(request.out)
    data = _look(request, reporter)
    checked = check_pairs(data.train, request.settings)
    if checked.empty:
        reporter.note(f"{len(checked.empty)} label images have no foreground and are trained on as such")
    command = Command(request.out, _record(request, data.train))
    stale = partial(_stale, command.record)
    with resumable(
        command, overwrite=request.overwrite, stale=stale, made=lambda: _made(request.out), owns_output=True
    ) as running:
        outcome = _carry_out(request, data, running, reporter)
        summary = TrainSummary(hash=outcome.hash, scores=outcome.scores, seconds=outcome.seconds)
        running.close(outcome.state, summary=summary)
        return outcome


def _look(request: TrainRequest, reporter: FoldReporter) -> _Data:
    """Find the pairs, report what is left out, and separate the test images."""
    reporter.phase("looking for images and labels")
    channels = request.settings.channels
    matched = find_pairs(request.images, request.labels, channels, request.settings.axes)
    data = _Data(list(matched.pairs), [], "")
    _leave_out(matched, request, data.skipped, reporter)
    if request.hold_out is not None:
        data.test_name = "hold-out"
        data.train, data.test = hold_out(matched.pairs, request.hold_out, request.settings.seed)
    elif request.test_images is not None and request.test_labels is not None:
        data.test_name = storage.basename(request.test_images.rstrip("/"))
        others = find_pairs(request.test_images, request.test_labels, channels, request.settings.axes)
        _leave_out(others, request, data.skipped, reporter)
        data.test = list(others.pairs)
    return data


def _leave_out(matched: Pairs, request: TrainRequest, skipped: dict[str, list[str]], reporter: FoldReporter) -> None:
    """List what cannot be used; with `strict` it is an error."""
    failed = [f"{name}: {reason}" for name, reason in matched.failed]
    kinds = {"without label": matched.without_label, "without image": matched.without_image, "failed": failed}
    for kind, names in kinds.items():
        if not names:
            continue
        words = {"without label": "images have no label", "without image": "labels have no image"}
        listed = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        sentence = f"{len(names)} {words.get(kind, 'pairs cannot be used')}: {listed}"
        if request.strict:
            raise RefusedError(f"--strict: {sentence}; mend or remove them, or leave --strict out")
        reporter.note(f"left out: {sentence}")
        skipped.setdefault(kind, []).extend(names)


def hold_out(pairs: Sequence[TrainingPair], share: float, seed: int) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Split the pairs into those for training and a share of the images, at least one, for testing.

    Planes of an image stay together.
    """
    groups = sorted({pair.group for pair in pairs})
    count = max(1, round(share * len(groups)))
    kept = set(np.random.default_rng(seed).choice(groups, size=min(count, len(groups)), replace=False).tolist())
    return [p for p in pairs if p.group not in kept], [p for p in pairs if p.group in kept]


def _record(request: TrainRequest, pairs: Sequence[TrainingPair]) -> TrainRecord:
    named = [[p.name, p.channels, *p.shape, p.t, p.z] for p in pairs]
    return TrainRecord(
        settings=request.settings,
        run=TrainExecution(executor=request.executor, address=request.address, device=request.device),
        sources=[request.images, request.labels],
        inputs=TrainInputs(pairs=len(pairs), sha256=hashlib.sha256(json.dumps(named).encode()).hexdigest()),
        test=(request.test_images, request.test_labels, request.hold_out),
    )


def _stale(record: TrainRecord, known: Mapping[str, JsonValue]) -> Iterator[str]:
    """Describe what else defines the members and differs."""
    if known.get("sources") == record.sources and known.get("inputs") != record.inputs.model_dump(mode="json"):
        yield "the images that are trained on changed (their number, names or sizes)"


def _made(out: str) -> list[str]:
    """Return the names of what an earlier training left, ``ensemble.yaml`` before the files that it names."""
    members = [n for n in storage.entries(out) if n.startswith("member-") and n.endswith(".safetensors")]
    return [*_FILES, *members, *_FOLDERS]


def _carry_out(
    request: TrainRequest, data: _Data, running: Running[TrainRecord], reporter: FoldReporter
) -> TrainOutcome:
    done = _finished(request)
    todo = [fold for fold in range(request.settings.folds) if fold not in done]
    with _runner(request, data, len(todo), reporter) as (runner, device):
        job = FoldJob(request.out, request.settings, tuple(data.train), device)
        try:
            trained = runner.folds(job, todo, reporter) if todo else []
        finally:
            reporter.end()
        results = [done.get(fold) or next(r for r in trained if r.fold == fold) for fold in range(job.settings.folds)]
        name = request.name or storage.basename(request.out)
        written = write_ensemble(job, name, request.about, results, (data.test_name, data.test), runner, reporter)
    if written.failed:
        data.skipped.setdefault("failed", []).extend(f"{name}: {reason}" for name, reason in written.failed)
    return TrainOutcome(
        out=request.out,
        state="failures" if data.skipped.get("failed") else "complete",
        hash=written.hash,
        folds=results,
        scores=written.scores,
        verdicts=written.verdicts,
        skipped=data.skipped,
        seconds=running.seconds,
    )


def _finished(request: TrainRequest) -> dict[int, FoldResult]:
    """Return the results of the folds that are done."""
    with storage_errors(request.out):
        read = {fold: read_result(request.out, fold) for fold in range(request.settings.folds)}
    return {fold: result for fold, result in read.items() if result is not None}


@contextmanager
def _runner(
    request: TrainRequest, data: _Data, folds: int, reporter: FoldReporter
) -> Iterator[tuple[FoldRunner, DeviceKind]]:
    """Provide what runs `folds` and the evaluation, and the kind of device."""
    if request.executor == "serial" or not (folds or data.test):
        keep_freed_memory()
        if folds:
            check_memory(data.train, request.settings, 1)
        yield SerialFolds(), chosen(request.device)
        return
    reporter.phase("starting Ray" if request.address is None else f"connecting to Ray at {request.address}")
    resources = session.start(request.address, staged=False)
    try:
        kind = resources.device if request.device == "auto" else request.device
        device = device_of(kind)
        there = device.slots(resources.cpus, resources.gpus)
        if not there:
            no_gpu, no_cores = f"{device.title}; use --device cpu", "cores for folds; start it with --num-cpus"
            lacks = no_gpu if device.accelerated else no_cores
            raise RefusedError(f"the cluster has no {lacks}, or use another --address")
        workers = min(there, request.workers or there)
        if request.address is None and folds:
            check_memory(data.train, request.settings, min(workers, folds))
        yield RayFolds(workers, device.ray_options(1), resources.logs), kind
    finally:
        session.stop()
