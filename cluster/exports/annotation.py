"""``chorus export annotation``: a folder of the images that most need correction, which ``chorus train`` reads."""

from __future__ import annotations

import io
import shlex
import time
from collections.abc import Collection
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from chorus.cluster.exports.outlines import Objects, check_apart, file_name
from chorus.cluster.exports.tables import image_table
from chorus.cluster.objects.run import RECORD
from chorus.cluster.planning.image_table import PlannedImage
from chorus.cluster.planning.requests import Outcome
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.started_tasks import rows_of_calls
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.documents import PredictRecord
from chorus.cluster.state.results import finished_run, planned_images
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.exports.annotation import Drafted, Place, draft
from chorus.pipeline.exports.files import remove_file
from chorus.pipeline.exports.spreadsheet import original
from chorus.pipeline.exports.tables import write_table
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.outputs.arrays import LABEL_NAME
from chorus.pipeline.io.sources.ngff import open_image
from chorus.pipeline.io.sources.reading import pixel_size_um
from chorus.pipeline.io.storage import storage_errors
from chorus.pipeline.scores.judgement_scores import RISK as RISK_SCORE
from chorus.pipeline.scores.ranking import rank
from chorus.pipeline.scores.registry import columns_in

PACKAGE, README = "package.csv", "README.txt"
RISK = RISK_SCORE.name
_IMAGES = 20
# Columns of an image other than scores.
_PLACE = ["file", "name", "source", "level", "t", "z", "y", "x", "height", "width", "labels"]


class AnnotationRequest(BaseModel):
    """Images to correct.

    Attributes
    ----------
    out : URL of the results of a run
    to : URL of the folder that becomes the package
    images : number of images; None is 20, or all of `only`
    only : names of images to choose from; None is all of the run
    by : score (see `chorus.pipeline.scores.ranking.rank`), or ``risk``, the order of `chorus flag`; None is ``risk``
        if there are flags, else ``uncertainty``
    size : larger images are cropped to this edge, pixels
    overwrite : replace a package
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    to: str
    images: int | None = Field(default=None, ge=1)
    only: tuple[str, ...] | None = None
    by: str | None = None
    size: int = Field(default=1024, ge=32)
    overwrite: bool = False


def export_annotation(request: AnnotationRequest, reporter: Reporter) -> Outcome:
    """Write ``images``, ``labels``, ``package.csv`` and ``README.txt``.

    A row of the outcome is an image: ``file`` (below ``images`` and ``labels``), ``name``, ``status`` (``done``,
    ``failed``), ``message``, and where its pixels come from.

    Raises
    ------
    RefusedError
        Before any work: there is no such score, or a package exists already, which may hold corrections.
    """
    request = request.model_copy(update={"out": storage.normalise(request.out), "to": storage.normalise(request.to)})
    check_apart(request.out, request.to)
    run, table = finished_run(request.out), image_table(request.out)
    by, chosen = _worst(table, read_scores(request.out).columns, request)
    _clear(request)
    with storage_errors(request.out):
        as_objects = _classes(run)[2:] == [] and storage.exists(storage.join(request.out, RECORD))
    done = _with_objects(request.out) if as_objects else None
    rows = [_row(score, as_objects, run) for score in chosen.to_dict("records")]
    plan = planned_images(request.out)
    places = {name: index for index, name in enumerate(plan.names)}
    calls = []
    for index, row in enumerate(rows):
        if done is not None and row["name"] not in done:
            row |= {"status": "failed", "message": f"{row['name']}: has no objects; run `chorus objects` again"}
            continue
        calls.append((index, _draft, (request, run, plan.image(places[row["name"]]), row)))

    def take(result: TaskResult) -> dict[str, Any]:
        row = rows[result.key]
        row |= {"status": "failed", "message": result.error} if result.error is not None else result.value
        return row

    started = time.time()
    state, message = rows_of_calls("serial", None, calls, reporter, take)
    if state == "complete":
        kept = [index for index, row in enumerate(rows) if row["status"] == "done"]
        _write_package(request, chosen, rows, kept)
        _write(request, README, _readme(run, as_objects, [rows[index] for index in kept]))
        state = "complete" if len(kept) == len(rows) else "failures"
    counts = {name: sum(row["status"] == name for row in rows) for name in ("done", "failed", "open")}
    summary = {"images": len(rows), **counts, "by": by}
    return Outcome(request.to, state, message, rows, summary | {"seconds": round(time.time() - started, 1)})


def _worst(table: pd.DataFrame, scores: Collection[str], request: AnnotationRequest) -> tuple[str, pd.DataFrame]:
    """Return the score by which images are chosen, and their rows, the most urgent first.

    Parameters
    ----------
    scores : columns of ``scores.parquet``; of other columns it is unknown whether high or low is bad
    """
    flagged = "flags" in table.columns
    by = request.by or (RISK if flagged else "uncertainty")
    if request.only is not None:
        table = table[table["name"].isin(request.only)]
    if by == RISK:
        if not flagged:
            raise RefusedError(
                f"{request.out}: has no flags; run `chorus flag {request.out} --ensemble ...`, or use another --by"
            )
        ordered = table[table["status"] != "failed"].sort_values("rank")
    else:
        known = {column.key for column in columns_in(table)}
        scored = [name for name in table.columns if name in known or name in scores]
        names = rank(table[scored], by).ranked["name"]
        ordered = table.set_index("name", drop=False).loc[names]
        if request.only is not None:  # a person asked for them, including those without a score
            rest = table[~table["name"].isin(names) & (table["status"] != "failed")]
            ordered = pd.concat([ordered, rest])
    if not len(ordered):
        raise RefusedError(f"{request.out}: no image has the score {by!r}; nothing can be chosen by it")
    count = request.images or (_IMAGES if request.only is None else len(ordered))
    return by, ordered.head(count).reset_index(drop=True)


def _classes(run: PredictRecord) -> list[str]:
    return [entry.name for entry in run.ensemble.classes]


def _with_objects(out: str) -> set[str]:
    return {row["name"] for row in Objects(out).images if row["status"] == "done"}


def _clear(request: AnnotationRequest) -> None:
    """Remove an earlier package if `overwrite` is set; else raise RefusedError."""
    with storage_errors(request.to):
        fs, path = storage.filesystem(request.to)
        present = [storage.basename(name) for name in fs.ls(path, detail=False)] if fs.exists(path) else []
        if not present:
            return
        if not request.overwrite:
            raise RefusedError(
                f"{request.to}: is not empty and may hold corrections; choose another --out, or --overwrite to replace "
                f"its files"
            )
        if PACKAGE in present:
            earlier = pd.read_csv(io.BytesIO(storage.read_bytes(storage.join(request.to, PACKAGE))))
            for name in earlier["file"].astype(str).map(original):
                remove_file(inside(storage.join(request.to, "images"), str(name)))
                remove_file(inside(storage.join(request.to, "labels"), str(name)))


def _row(score: dict[Any, Any], as_objects: bool, run: PredictRecord) -> dict[str, Any]:
    name = str(score["name"])
    label = _classes(run)[1] if as_objects else LABEL_NAME
    known = {"file": file_name(name, ".tif"), "name": name, "source": storage.join(score["source"], score["image"])}
    return known | {"status": "open", "message": "", "pixels": 0, "seconds": 0.0, "labels": label}


def _draft(
    request: AnnotationRequest, run: PredictRecord, planned: PlannedImage, row: dict[str, Any]
) -> dict[str, Any]:
    """Write the two files of an image; return the new values of its row."""
    started = time.perf_counter()
    source = open_image(planned.root, planned.kind, planned.path, planned.name)  # type: ignore[arg-type]
    level = next(index for index, one in enumerate(source.levels) if one.path == planned.level_path)
    results = inside(storage.join(request.out, "images"), planned.name)
    image = Drafted(
        name=planned.name,
        source_url=planned.url,
        source_level=planned.level_path,
        source_axes=planned.axes,
        channels=planned.channels,
        channel_names=tuple(source.channels[index] for index in planned.channels),
        results_url=results,
        labels_url=planned.url if run.settings.in_place else results,
        label=row["labels"],
        axes=planned.output_axes,
        planes=planned.planes,
        height=planned.height,
        width=planned.width,
        pixel_size_um=pixel_size_um(source, level),
    )
    files = [inside(storage.join(request.to, folder), row["file"]) for folder in ("images", "labels")]
    place: Place = draft(image, request.size, files[0], files[1])
    y, x = place.window.y, place.window.x
    found = {"level": level, "t": place.t, "z": place.z, "y": y.start, "x": x.start, "height": len(y), "width": len(x)}
    size = {"pixels": place.window.pixels, "seconds": time.perf_counter() - started}
    return {"status": "done", **found, **size, "pixel_size_um": image.pixel_size_um, "channels": image.channel_names}


def _write_package(
    request: AnnotationRequest, chosen: pd.DataFrame, rows: list[dict[str, Any]], kept: list[int]
) -> None:
    """Write the table of the origin of every file, and why it was chosen."""
    place = pd.DataFrame([{key: rows[index][key] for key in _PLACE} for index in kept], columns=_PLACE)
    said = (
        chosen.iloc[kept]
        .reset_index(drop=True)
        .drop(columns=["name", "source", "image", "message", "rank"], errors="ignore")
    )
    write_table(pd.concat([place, said], axis=1), storage.join(request.to, PACKAGE))


def _readme(run: PredictRecord, as_objects: bool, rows: list[dict[str, Any]]) -> str:
    classes = _classes(run)
    if as_objects:
        values = f"0 is background, every other value one {classes[1]}; two that touch have two values."
    else:
        values = "values are classes: " + ", ".join(f"{value} {name}" for value, name in enumerate(classes)) + "."
    command = ["chorus", "train", "images", "--labels", "labels", "--out", "ensemble"]
    command += ["--label-kind", "instances" if as_objects else "classes"]
    if as_objects and "flows" in run.settings.save:
        command.append("--flows")
    for name in classes:
        command += ["--class", name]
    channels = next((row["channels"] for row in rows), ())
    for name in channels:
        command += ["--channel", name]
    sizes = {row["pixel_size_um"] for row in rows}
    if len(sizes) == 1 and (size := next(iter(sizes))) is not None and abs(size[0] / size[1] - 1) < 0.01:
        command += ["--pixel-size", f"{size[0]:g}"]
    return _TEXT.format(values=values, command=shlex.join(command), package=PACKAGE)


_TEXT = """Images to correct, and the prediction as a draft
================================================

images/  the channels that the ensemble saw, in the values of the source
labels/  what it predicted, a file of the same name for each image:
         {values}
{package}  where each file comes from (plane, offset in pixels, level), its scores, and why it was chosen

1. Open an image and the labels of the same name in napari, Fiji or another program that paints labels.
2. Correct the labels and save them under the same name, as TIFF of the same size with whole numbers.
   Images that you do not get to: remove them from both folders, or what was wrong is learnt.
3. Train on them, best together with the images that the ensemble was trained on, in the same two folders:

   {command}

   To go on from a member that is there, add --start ENSEMBLE#0.
4. Keep corrected images out of the reference set of `chorus calibrate`: they were trained on.
"""


def _write(request: AnnotationRequest, name: str, text: str) -> None:
    url = storage.join(request.to, name)
    with storage_errors(url):
        storage.write_bytes(url, text.encode())
