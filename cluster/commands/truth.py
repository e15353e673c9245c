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
from dataclasses import asdict
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from chorus.cluster.commands.truth_image import EstimatedImage, digest, estimate_and_record, read_estimated
from chorus.cluster.planning.requests import Outcome
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.started_tasks import Executor, rows_of_calls
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.command import Command, plan_files, resumable
from chorus.pipeline.consensus.agreement_plot import draw_agreement
from chorus.pipeline.consensus.agreement_table import agreement_table, summarise, warnings
from chorus.pipeline.consensus.annotations import Drawings, DrawnImage, find_drawings
from chorus.pipeline.consensus.ground_truth import ImageTruth, TruthSettings, truth_file
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.exports.spreadsheet import csv_bytes
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage import storage_errors

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


def estimate(request: TruthRequest, reporter: Reporter) -> Outcome:
    """Estimate the ground truth of all images; the same call again resumes an interrupted one.

    A row of the outcome is an image: ``name``, ``status`` (``done``, ``failed``, ``open`` if the run was interrupted
    before it), ``message`` (why it failed, or what is unusual), ``file``, ``experts`` (how many drew it), ``missing``
    (names of those who did not), ``foreground``, ``pixels`` and ``seconds``. In addition to counts, the summary has
    ``experts`` (see `chorus.pipeline.consensus.agreement_table.ExpertSummary`), ``left_out`` (folders) and
    ``warnings``.

    Raises
    ------
    RefusedError
        Before any work: nothing to read, or `out` is taken.
    """
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    storage.check_writable(request.out)
    reporter.phase("looking for drawings")
    found = find_drawings(request.experts, request.expert, request.label, without=request.out)
    if not found.images:
        raise RefusedError(f"{request.experts}: no expert drew anything; look at --label and the folders")
    command = Command(
        name="truth",
        out=request.out,
        settings=request.settings,
        run={"executor": request.executor, "address": request.address},
        sources=_sources(request),
        inputs={"experts": list(found.experts), "left_out": list(found.left_out), "images": len(found.images)},
        of_sources="experts",
    )
    stale = partial(_stale, found.images, request.out)
    with resumable(command, overwrite=request.overwrite, stale=stale, made=lambda: _TABLES) as record:
        # Recorded before they are made, so that they can be removed.
        plan_files(request.out, [truth_file(image, request.settings) for image in found.images])
        outcome = _carry_out(request, found, reporter)
        _conclude(request, found, outcome, record.seconds)
        failures = {row["name"]: row["message"] for row in outcome.rows if row["status"] == "failed"}
        notes = {row["name"]: row["message"] for row in outcome.rows if row["status"] == "done" and row["message"]}
        record.close(outcome.state, outcome.summary, failures=failures, notes=notes)
        return outcome


def _sources(request: TruthRequest) -> list[str]:
    options = [f"--expert {name}" for name in request.expert] + ([f"--label {request.label}"] if request.label else [])
    return [request.experts, *options]


def _carry_out(request: TruthRequest, found: Drawings, reporter: Reporter) -> Outcome:
    finished = read_estimated(request.out)
    images = found.images
    rows = [_row(image, finished.get(image.name)) for image in images]
    todo = [index for index, image in enumerate(images) if image.name not in finished]
    calls = [(index, estimate_and_record, (request.out, images[index], request.settings)) for index in todo]

    def take(result: TaskResult) -> dict[str, Any]:
        rows[result.key] = _result_row(images[result.key], result)
        return rows[result.key]

    state, message = rows_of_calls(request.executor, request.address, calls, reporter, take)
    if state == "complete" and any(row["status"] == "failed" for row in rows):
        state = "failures"
    return Outcome(request.out, state, message, rows, {})


def _conclude(request: TruthRequest, found: Drawings, outcome: Outcome, seconds: float) -> None:
    """Write tables and plot of the images that are done, and fill in the summary."""
    known = {image.name for image in found.images}
    records = read_estimated(request.out) if outcome.state != "interrupted" else {}
    truths = [record.truth for name, record in sorted(records.items()) if name in known]
    summaries = summarise(truths, found.experts)
    if truths:
        _write_tables(request.out, truths, found.experts)
    counts = {state: sum(row["status"] == state for row in outcome.rows) for state in ("done", "failed", "open")}
    outcome.summary = {
        "images": len(outcome.rows),
        **counts,
        "seconds": seconds,
        "experts": [asdict(one) for one in summaries],
        "left_out": list(found.left_out),
        "warnings": warnings(truths, summaries),
    }


def _write_tables(out: str, truths: Sequence[ImageTruth], experts: Sequence[str]) -> None:
    table, buffer = agreement_table(truths), io.BytesIO()
    table.to_parquet(buffer, index=False)
    content = (csv_bytes(table), buffer.getvalue(), draw_agreement(truths, experts))
    for name, data in zip(_TABLES, content, strict=True):
        url = storage.join(out, name)
        with storage_errors(url):
            storage.write_bytes(url, data)


def _row(image: DrawnImage, done: EstimatedImage | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": image.name, "status": "open", "message": "", "file": ""}
    row |= {"experts": len(image.drawings), "missing": list(image.missing)}
    row |= {"foreground": None, "pixels": 0, "seconds": 0.0}
    if done is not None:
        truth = done.truth
        row |= {"status": "done", "message": "; ".join(truth.notes), "file": truth.file}
        row |= {"foreground": truth.foreground, "pixels": truth.pixels, "seconds": done.seconds}
    return row


def _result_row(image: DrawnImage, result: TaskResult) -> dict[str, Any]:
    if result.error is None:
        return _row(image, result.value)
    return _row(image, None) | {"status": "open" if result.unwritable else "failed", "message": result.error}


def _stale(images: Sequence[DrawnImage], out: str, known: Mapping[str, JsonValue]) -> Iterator[str]:
    """Describe which estimates of an earlier call are wrong now."""
    finished = read_estimated(out)
    for image in images:
        done = finished.get(image.name)
        if done is not None and done.drawings != digest(image):
            yield f"the drawings of {image.name} changed since its truth was estimated"
