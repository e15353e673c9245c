"""A run of ``chorus convert``: find the files, skip those that are recorded, convert the others in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from chorus.cluster.commands.convert_file import ConvertedFile, convert_and_record, read_converted
from chorus.cluster.planning.requests import Outcome
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.started_tasks import Executor, rows_of_calls
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.command import Command, plan_files, resumable
from chorus.pipeline.io import storage
from chorus.pipeline.io.files.conversion import ConvertSettings
from chorus.pipeline.io.files.raster_files import RasterFile, find_files


class ConvertRequest(BaseModel):
    """Raster files to convert.

    Attributes
    ----------
    sources : paths and URLs as typed
    out : URL of the folder that gets an OME-Zarr per file
    executor, address : as in `chorus.cluster.planning.settings.RunSettings`
    overwrite : start anew if `out` holds the results of other settings
    strict : read each image back by ome-zarr
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: list[str]
    out: str
    settings: ConvertSettings = ConvertSettings()
    executor: Executor = "auto"
    address: str | None = None
    overwrite: bool = False
    strict: bool = False


def convert(request: ConvertRequest, reporter: Reporter) -> Outcome:
    """Convert raster files to OME-Zarr; the same call again resumes an interrupted one.

    A row of the outcome is a file: ``name`` of the result, ``source``, ``status`` (``done``; ``part``, its planes are
    in another file's images; ``failed``; ``open`` if the run was interrupted before it), ``message``, ``images``,
    ``pixels`` and ``seconds``.

    Raises
    ------
    RefusedError
        Before any work: nothing to convert, or `out` is taken.
    """
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    storage.check_writable(request.out)
    reporter.phase("looking for files")
    files = find_files(request.sources)
    command = Command(
        name="convert",
        out=request.out,
        settings=request.settings,
        run={"executor": request.executor, "address": request.address},
        sources=request.sources,
        inputs={"files": len(files)},
    )
    with resumable(command, overwrite=request.overwrite, stale=lambda _: _stale(files, request.out)) as record:
        plan_files(request.out, [file.name for file in files if not file.failure])
        outcome = _carry_out(request, files, reporter)
        outcome.summary = _summary(outcome.rows, record.seconds)
        failures = {row["name"]: row["message"] for row in outcome.rows if row["status"] == "failed"}
        record.close(outcome.state, outcome.summary, failures=failures)
        return outcome


def _carry_out(request: ConvertRequest, files: Sequence[RasterFile], reporter: Reporter) -> Outcome:
    finished = read_converted(request.out)
    rows = {file.url: _row(file, finished.get(file.url)) for file in files}
    todo = [index for index, file in enumerate(files) if file.url not in finished and not file.failure]
    task = partial(convert_and_record, strict=request.strict)
    calls = [(index, task, (request.out, files[index], request.settings)) for index in todo]

    def take(result: TaskResult) -> dict[str, Any]:
        file = files[result.key]
        rows[file.url] = _result_row(file, result, rows)
        return rows[file.url]

    state, message = rows_of_calls(request.executor, request.address, calls, reporter, take)
    if state == "complete" and any(row["status"] == "failed" for row in rows.values()):
        state = "failures"
    return Outcome(request.out, state, message, list(rows.values()), {})


def _row(file: RasterFile, done: ConvertedFile | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": file.name, "source": file.url, "status": "open", "message": ""}
    row |= {"images": 0, "pixels": 0, "seconds": 0.0}
    if file.failure:
        row |= {"status": "failed", "message": file.failure}
    elif done is not None:
        row |= {"status": "done", "message": done.note, "images": done.images}
        row |= {"pixels": done.pixels, "seconds": done.seconds}
    return row


def _result_row(file: RasterFile, result: TaskResult, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the row of a file whose task has ended; `rows` are those of all files."""
    if result.error is not None:
        status = "open" if result.unwritable else "failed"
        return _row(file, None) | {"status": status, "message": result.error}
    done: ConvertedFile = result.value
    if not done.part_of:
        return _row(file, done)
    if done.part_of in rows:
        return _row(file, None) | {"status": "part", "message": f"its planes are in the images of {done.part_of}"}
    reason = f"{file.url}: its planes belong to images that begin in {done.part_of}; give that file, too"
    return _row(file, None) | {"status": "failed", "message": reason}


def _stale(files: Sequence[RasterFile], out: str) -> Iterator[str]:
    """Describe which results of an earlier call are wrong now."""
    finished = read_converted(out)
    for file in files:
        done = finished.get(file.url)
        if done is not None and done.stamp != file.stamp:
            yield f"{file.url} changed since it was converted"
        elif done is not None and done.name != file.name:
            yield f"{file.url} was {done.name}, now another file has this name, too"


def _summary(rows: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    counts = {state: sum(row["status"] == state for row in rows) for state in ("done", "part", "failed", "open")}
    images, pixels = (sum(row[name] for row in rows) for name in ("images", "pixels"))
    return {"files": len(rows), **counts, "images": images, "pixels": pixels, "seconds": seconds}
