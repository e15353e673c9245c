"""A run of ``chorus truth``: find the annotators' drawings, skip recorded images, estimate the others.

::

    OUT/run.json                          settings, versions, experts, warnings
    OUT/<image>.tif, <image>.ome.zarr     the estimate of each image
    OUT/agreement.csv, agreement.parquet  a row per image and annotator
    OUT/agreement.svg                     agreement of the annotators with each other, and per image
    OUT/ledger/<image>.json               see `chorus.cluster.commands.truth_image`
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from chorus.cluster.commands.truth_image import EstimatedImage, estimate_and_record, read_estimated
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.started_tasks import Ending, Executor, ItemEnd, Items
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.command import Command, Execution, RecordWithSurroundings, plan_files, resumable
from chorus.cluster.state.outcome import ItemRow, Outcome, State, Summary, count, failures_of, state_of
from chorus.pipeline.consensus.agreement_plot import draw_agreement
from chorus.pipeline.consensus.agreement_table import ExpertSummary, agreement_table, summarise, warnings
from chorus.pipeline.consensus.annotations import Drawings, DrawnImage, digest_of, find_drawings
from chorus.pipeline.consensus.ground_truth import ImageTruth, TruthSettings, truth_file
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.exports.spreadsheet import csv_bytes
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors

# Files made from all images together.
_TABLES = ("agreement.csv", "agreement.parquet", "agreement.svg")


class TruthRequest(BaseModel):
    """Drawings of annotators from which a ground truth is estimated.

    Attributes
    ----------
    experts : folder with a folder of drawings per annotator
    out : URL of the folder that gets the truth
    expert, label : see `chorus.pipeline.consensus.annotations.find_drawings`
    executor, address : as in `chorus.cluster.planning.settings.RunSettings`
    overwrite : start anew if `out` holds the results of other settings
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    experts: str
    out: str
    expert: list[str] = []
    label: str | None = None
    settings: TruthSettings = TruthSettings()
    executor: Executor = "auto"
    address: str | None = None
    overwrite: bool = False


class TruthRow(ItemRow):
    """What became of an image.

    Attributes
    ----------
    message : why it failed, or what is unusual
    file : name of the estimate; empty if there is none
    experts : number of annotators who drew it
    missing : names of those who did not
    foreground : fraction of the pixels, 0 to 1
    """

    file: str = ""
    experts: int
    missing: list[str]
    foreground: float | None = None
    pixels: int = 0
    seconds: float = 0.0


class TruthSummary(Summary):
    """Counts of images by status.

    Attributes
    ----------
    experts : of each annotator, the agreement with the truth and with the others
    left_out : folders
    """

    images: int
    done: int
    failed: int
    open: int
    seconds: float
    experts: list[ExpertSummary]
    left_out: list[str]
    warnings: list[str]


class TruthInputs(BaseModel):
    """Annotators, folders that were left out, and the number of images."""

    experts: list[str]
    left_out: list[str]
    images: int


class TruthRecord(RecordWithSurroundings):
    """``run.json`` of ``chorus truth``; `failures` and `notes` are messages by the images' names."""

    command: str = "truth"
    settings: TruthSettings
    run: Execution
    sources: list[str]
    inputs: TruthInputs
    failures: dict[str, str] = Field(default_factory=dict)
    notes: dict[str, str] = Field(default_factory=dict)
    summary: TruthSummary | None = None


def estimate(request: TruthRequest, reporter: Reporter) -> Outcome[TruthRow, TruthSummary]:
    """Estimate the ground truth of all images; the same call again resumes an interrupted one.

    Raises
    ------
    RefusedError
        Before any work: nothing to read, or `out` is taken.
    """
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    storage.check_writable(request.out)
    reporter.phase("looking for drawings")
    drawings = find_drawings(request.experts, request.expert, request.label, without=request.out)
    if not drawings.images:
        raise RefusedError(f"{request.experts}: no expert drew anything; look at --label and the folders")
    record = TruthRecord(
        settings=request.settings,
        run=Execution(executor=request.executor, address=request.address),
        sources=_sources(request),
        inputs=TruthInputs(
            experts=list(drawings.experts), left_out=list(drawings.left_out), images=len(drawings.images)
        ),
    )
    command = Command(request.out, record, of_sources="experts")
    stale = partial(_stale, drawings.images, request.out)
    with resumable(command, overwrite=request.overwrite, stale=stale, made=lambda: _TABLES) as running:
        if running.resumed:
            with storage_errors(request.out):
                storage.remove_partial_files(request.out)
        # Recorded before they are made, so that they can be removed.
        plan_files(request.out, [truth_file(image, request.settings) for image in drawings.images])
        rows, ending = _carry_out(request, drawings, reporter)
        state = state_of(ending.state, rows)
        summary = _conclude(request, drawings, rows, state, running.seconds)
        notes = {row.name: row.message for row in rows if row.status == "done" and row.message}
        running.close(state, failures=failures_of(rows), notes=notes, summary=summary)
        return Outcome(request.out, state, ending.message, rows, summary)


def _sources(request: TruthRequest) -> list[str]:
    options = [f"--expert {name}" for name in request.expert] + ([f"--label {request.label}"] if request.label else [])
    return [request.experts, *options]


def _carry_out(request: TruthRequest, drawings: Drawings, reporter: Reporter) -> tuple[list[TruthRow], Ending]:
    finished = read_estimated(request.out)
    rows = {image.name: _row(image, finished.get(image.name)) for image in drawings.images}

    def take(image: DrawnImage, result: TaskResult) -> ItemEnd:
        row = _row(image, result.value) if result.error is None else _row(image, None).without_result(result)
        rows[image.name] = row
        return ItemEnd(row.pixels, row.seconds, row.message if row.status == "failed" else "")

    todo = [image for image in drawings.images if image.name not in finished]
    items = Items(todo, lambda image: (estimate_and_record, (request.out, image, request.settings)), take)
    ending = items.carry_out(request.executor, request.address, reporter)
    return list(rows.values()), ending


def _conclude(
    request: TruthRequest, drawings: Drawings, rows: Sequence[TruthRow], state: State, seconds: float
) -> TruthSummary:
    """Write tables and plot of the images that are done, and return the summary."""
    known = {image.name for image in drawings.images}
    records = read_estimated(request.out) if state != "interrupted" else {}
    truths = [record.truth for name, record in sorted(records.items()) if name in known]
    summaries = summarise(truths, drawings.experts)
    if truths:
        _write_tables(request.out, truths, drawings.experts)
    return TruthSummary(
        images=len(rows),
        done=count(rows, "done"),
        failed=count(rows, "failed"),
        open=count(rows, "open"),
        seconds=seconds,
        experts=list(summaries),
        left_out=list(drawings.left_out),
        warnings=warnings(truths, summaries),
    )


def _write_tables(out: str, truths: Sequence[ImageTruth], experts: Sequence[str]) -> None:
    table, buffer = agreement_table(truths), io.BytesIO()
    table.to_parquet(buffer, index=False)
    content = (csv_bytes(table), buffer.getvalue(), draw_agreement(truths, experts))
    for name, data in zip(_TABLES, content, strict=True):
        url = storage.join(out, name)
        with storage_errors(url):
            storage.write_bytes(url, data)


def _row(image: DrawnImage, done: EstimatedImage | None) -> TruthRow:
    row = TruthRow(name=image.name, experts=len(image.drawings), missing=list(image.missing))
    if done is None:
        return row
    truth = done.truth
    changes = {"status": "done", "message": "; ".join(truth.notes), "file": truth.file, "foreground": truth.foreground}
    return row.model_copy(update=changes | {"pixels": truth.pixels, "seconds": done.seconds})


def _stale(images: Sequence[DrawnImage], out: str, known: Mapping[str, JsonValue]) -> Iterator[str]:
    """Describe which estimates of an earlier call are wrong now."""
    finished = read_estimated(out)
    for image in images:
        done = finished.get(image.name)
        if done is not None and done.drawings != digest_of(image.drawings):
            yield f"the drawings of {image.name} changed since its truth was estimated"
