"""A run of ``chorus convert``: find the files, leave out those that are recorded, convert the others in parallel."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from chorus.cluster.commands.convert_file import ConvertedFile, convert_and_record, read_converted
from chorus.cluster.planning.requests import Outcome
from chorus.cluster.runtime.output_lock import output_lock
from chorus.cluster.runtime.ray_tasks import rows_of_calls
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.run_record import begun, clear_command, earlier_run, setting_differences, write_run
from chorus.pipeline.io import storage
from chorus.pipeline.io.conversion import ConvertSettings
from chorus.pipeline.io.raster_files import RasterFile, find_files
from chorus.pipeline.io.storage import storage_errors

_PLAN = ("plan", "files.json")


class ConvertRequest(BaseModel):
    """Raster files to convert.

    Attributes
    ----------
    sources : paths and URLs as typed
    out : URL of the folder that gets an OME-Zarr per file
    executor, address : as in `chorus.cluster.planning.settings.RunSettings`
    overwrite : start anew where `out` holds the results of other settings
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: list[str]
    out: str
    settings: ConvertSettings = ConvertSettings()
    executor: Literal["ray", "serial"] = "ray"
    address: str | None = None
    overwrite: bool = False


def convert(request: ConvertRequest, reporter: Reporter) -> Outcome:
    """Make OME-Zarrs of raster files; the same call again goes on where an earlier one was cut short.

    A row of the outcome is a file: ``name`` of the result, ``source``, ``status`` (``done``; ``part``, its planes are
    in another file's images; ``failed``; ``open`` where the run was cut short before it), ``message``, ``images``,
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
    run = {"executor": request.executor, "address": request.address}
    content = begun("convert", request.settings, run, request.sources, {"files": len(files)})
    with output_lock(request.out, uuid.uuid4().hex[:12]):
        known = earlier_run(
            request.out, lambda known: _differences(content, known, files, request.out), overwrite=request.overwrite
        )
        if known is None:
            clear_command(request.out, "convert", [*_planned(request.out, []), "ledger", "plan"])
        else:
            content["started"] = known["started"]
        write_run(content, request.out)
        _write_plan(request.out, _planned(request.out, files))
        outcome = _carry_out(request, files, reporter)
        outcome.summary = _summary(outcome.rows, content["started"])
        failures = {row["name"]: row["message"] for row in outcome.rows if row["status"] == "failed"}
        content |= {"finished": datetime.now(UTC).isoformat(), "outcome": outcome.state, "failures": failures}
        content["summary"] = outcome.summary
        if outcome.state != "interrupted":
            write_run(content, request.out)
        return outcome


def _planned(out: str, files: Sequence[RasterFile]) -> list[str]:
    """Names of all results that this run and those before it may leave in `out`."""
    url = storage.join(out, *_PLAN)
    with storage_errors(url):
        earlier: list[str] = json.loads(storage.read_bytes(url)) if storage.exists(url) else []
    return sorted({*earlier, *(file.name for file in files)})


def _write_plan(out: str, names: list[str]) -> None:
    url = storage.join(out, *_PLAN)
    with storage_errors(url):
        storage.write_bytes(url, json.dumps(names, indent=2).encode())


def _carry_out(request: ConvertRequest, files: Sequence[RasterFile], reporter: Reporter) -> Outcome:
    finished = read_converted(request.out)
    rows = {file.url: _row(file, finished.get(file.url)) for file in files}
    todo = [index for index, file in enumerate(files) if file.url not in finished]
    calls = [(index, convert_and_record, (request.out, files[index], request.settings)) for index in todo]

    def take(result: TaskResult) -> dict[str, Any]:
        file = files[result.key]
        rows[file.url] = _result_row(file, result, rows)
        return rows[file.url]

    state, message = rows_of_calls(request.executor, request.address, calls, reporter, take)
    if state == "complete" and any(row["status"] == "failed" for row in rows.values()):
        state = "failures"
    return Outcome(request.out, state, message, list(rows.values()))


def _row(file: RasterFile, done: ConvertedFile | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": file.name, "source": file.url, "status": "open", "message": ""}
    row |= {"images": 0, "pixels": 0, "seconds": 0.0}
    if done is not None:
        row |= {"status": "done", "images": done.images, "pixels": done.pixels, "seconds": done.seconds}
    return row


def _result_row(file: RasterFile, result: TaskResult, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The row of a file whose task has ended; `rows` are those of all files."""
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


def _differences(content: dict[str, Any], known: dict[str, Any], files: Sequence[RasterFile], out: str) -> list[str]:
    """What would make the results of an earlier run wrong, in words. Files may be added, mended or taken away."""
    if known.get("command") != "convert":
        return ["it is not of `chorus convert`"]
    found = setting_differences(content["settings"], known)
    if known.get("sources") != content["sources"]:
        found.append(f"sources were {' '.join(known.get('sources', []))}, now {' '.join(content['sources'])}")
    finished = read_converted(out)
    for file in files:
        done = finished.get(file.url)
        if done is not None and done.stamp != file.stamp:
            found.append(f"{file.url} changed since it was converted")
        elif done is not None and done.name != file.name:
            found.append(f"{file.url} was {done.name}, now another file has this name, too")
    return found[:5] + [f"and {len(found) - 5} more"] * (len(found) > 5)


def _summary(rows: Sequence[dict[str, Any]], started: str) -> dict[str, Any]:
    counts = {state: sum(row["status"] == state for row in rows) for state in ("done", "part", "failed", "open")}
    seconds = round(time.time() - datetime.fromisoformat(started).timestamp(), 1)
    images, pixels = (sum(row[name] for row in rows) for name in ("images", "pixels"))
    return {"files": len(rows), **counts, "images": images, "pixels": pixels, "seconds": seconds}
