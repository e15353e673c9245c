"""A run of ``chorus convert``: find the files, skip those that are recorded, convert the others in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from pydantic import BaseModel, ConfigDict, Field

from chorus.cluster.commands.convert_file import ConvertedFile, convert_and_record, read_converted
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.started_tasks import Ending, Executor, ItemEnd, Items
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.command import Command, Execution, RecordWithSurroundings, plan_files, resumable
from chorus.cluster.state.outcome import ItemRow, Outcome, Summary, count, failures_of, state_of
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


class ConvertRow(ItemRow):
    """What became of a file.

    Attributes
    ----------
    name : of its result
    source : URL of the file
    status : also ``part``, its planes are in another file's images
    images, pixels : number of images in it, and of their pixels
    """

    source: str
    images: int = 0
    pixels: int = 0
    seconds: float = 0.0


class ConvertSummary(Summary):
    """Counts of files by status, of images and of pixels."""

    files: int
    done: int
    part: int
    failed: int
    open: int
    images: int
    pixels: int
    seconds: float


class ConvertInputs(BaseModel):
    """Number of files found in the sources."""

    files: int


class ConvertRecord(RecordWithSurroundings):
    """``run.json`` of ``chorus convert``; `failures` are messages by name."""

    command: str = "convert"
    settings: ConvertSettings
    run: Execution
    sources: list[str]
    inputs: ConvertInputs
    failures: dict[str, str] = Field(default_factory=dict)
    summary: ConvertSummary | None = None


def convert(request: ConvertRequest, reporter: Reporter) -> Outcome[ConvertRow, ConvertSummary]:
    """Convert raster files to OME-Zarr; the same call again resumes an interrupted one.

    Raises
    ------
    RefusedError
        Before any work: nothing to convert, or `out` is taken.
    """
    request = request.model_copy(update={"out": storage.normalise(request.out)})
    storage.check_writable(request.out)
    reporter.phase("looking for files")
    files = find_files(request.sources)
    record = ConvertRecord(
        settings=request.settings,
        run=Execution(executor=request.executor, address=request.address),
        sources=request.sources,
        inputs=ConvertInputs(files=len(files)),
    )
    command = Command(request.out, record)
    with resumable(command, overwrite=request.overwrite, stale=lambda _: _stale(files, request.out)) as running:
        plan_files(request.out, [file.name for file in files if not file.failure])
        rows, ending = _carry_out(request, files, reporter)
        state, summary = state_of(ending.state, rows), _summary(rows, running.seconds)
        running.close(state, failures=failures_of(rows), summary=summary)
        return Outcome(request.out, state, ending.message, rows, summary)


def _carry_out(
    request: ConvertRequest, files: Sequence[RasterFile], reporter: Reporter
) -> tuple[list[ConvertRow], Ending]:
    finished = read_converted(request.out)
    rows = {file.url: _row(file, finished.get(file.url)) for file in files}
    todo = [file for file in files if file.url not in finished and not file.failure]
    task = partial(convert_and_record, strict=request.strict)

    def take(file: RasterFile, result: TaskResult) -> ItemEnd:
        row = rows[file.url] = _result_row(file, result, rows)
        return ItemEnd(row.pixels, row.seconds, row.message if row.status == "failed" else "")

    items = Items(todo, lambda file: (task, (request.out, file, request.settings)), take)
    ending = items.carry_out(request.executor, request.address, reporter)
    return list(rows.values()), ending


def _row(file: RasterFile, done: ConvertedFile | None) -> ConvertRow:
    row = ConvertRow(name=file.name, source=file.url)
    if file.failure:
        return row.model_copy(update={"status": "failed", "message": file.failure})
    if done is None:
        return row
    changes = {"status": "done", "message": done.note, "images": done.images, "pixels": done.pixels}
    return row.model_copy(update=changes | {"seconds": done.seconds})


def _result_row(file: RasterFile, result: TaskResult, rows: dict[str, ConvertRow]) -> ConvertRow:
    """Return the row of a file whose task has ended; `rows` are those of all files."""
    row = _row(file, None)
    if result.error is not None:
        return row.without_result(result)
    done: ConvertedFile = result.value
    if not done.part_of:
        return _row(file, done)
    if done.part_of in rows:
        words = f"its planes are in the images of {done.part_of}"
        return row.model_copy(update={"status": "part", "message": words})
    reason = f"{file.url}: its planes belong to images that begin in {done.part_of}; give that file, too"
    return row.model_copy(update={"status": "failed", "message": reason})


def _stale(files: Sequence[RasterFile], out: str) -> Iterator[str]:
    """Describe which results of an earlier call are wrong now."""
    finished = read_converted(out)
    for file in files:
        done = finished.get(file.url)
        if done is not None and done.stamp != file.stamp:
            yield f"{file.url} changed since it was converted"
        elif done is not None and done.name != file.name:
            yield f"{file.url} was {done.name}, now another file has this name, too"


def _summary(rows: Sequence[ConvertRow], seconds: float) -> ConvertSummary:
    return ConvertSummary(
        files=len(rows),
        done=count(rows, "done"),
        part=count(rows, "part"),
        failed=count(rows, "failed"),
        open=count(rows, "open"),
        images=sum(row.images for row in rows),
        pixels=sum(row.pixels for row in rows),
        seconds=seconds,
    )
