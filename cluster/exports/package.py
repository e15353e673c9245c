"""The files of a package of images to correct: images, draft labels, ``package.csv``, ``README.txt``."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from chorus.cluster.exports.records import PackagedImage, PackageRow
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.state.items import ItemLedger
from chorus.pipeline.exports.annotation import Drafted, Place, draft
from chorus.pipeline.exports.tables import write_table
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.sources.ngff import open_image
from chorus.pipeline.io.sources.reading import pixel_size_um
from chorus.pipeline.io.storage_failures import storage_errors

PACKAGE, README = "package.csv", "README.txt"
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


def draft_and_record(
    request: AnnotationRequest,
    in_place: bool,
    planned: PlannedImage,
    row: PackageRow,
    ledger: ItemLedger[PackagedImage],
) -> PackagedImage:
    """Write the two files of an image, and record it."""
    started = time.perf_counter()
    source = open_image(planned.root, planned.kind, planned.path, planned.name)  # type: ignore[arg-type]
    level = next(index for index, one in enumerate(source.levels) if one.path == planned.level_path)
    results = inside(storage.join(request.out, "images"), planned.name)
    size = pixel_size_um(source, level)
    image = Drafted(
        name=planned.name,
        source_url=planned.url,
        source_level=planned.level_path,
        source_axes=planned.axes,
        channels=planned.channels,
        channel_names=tuple(source.channels[index] for index in planned.channels),
        results_url=results,
        labels_url=planned.url if in_place else results,
        label=row.labels,
        axes=planned.output_axes,
        planes=planned.planes,
        height=planned.height,
        width=planned.width,
        pixel_size_um=None if size is None else (size[0], size[1]),
    )
    files = [inside(storage.join(request.to, folder), row.file) for folder in ("images", "labels")]
    place: Place = draft(image, request.size, files[0], files[1])
    y, x = place.window.y, place.window.x
    packaged = PackagedImage(
        level=level,
        t=place.t,
        z=place.z,
        y=y.start,
        x=x.start,
        height=len(y),
        width=len(x),
        pixels=place.window.pixels,
        seconds=time.perf_counter() - started,
        pixel_size_um=image.pixel_size_um,
        channels=image.channel_names,
    )
    ledger.record(planned.name, packaged)
    return packaged


def write_package(
    request: AnnotationRequest, chosen: pd.DataFrame, rows: Sequence[PackageRow], kept: list[int]
) -> None:
    """Write the table of the origin of every file, and why it was chosen."""
    positions = pd.DataFrame([rows[index].model_dump() for index in kept], columns=_PLACE)
    reasons = (
        chosen.iloc[kept]
        .reset_index(drop=True)
        .drop(columns=["name", "source", "image", "message", "rank"], errors="ignore")
    )
    write_table(pd.concat([positions, reasons], axis=1), storage.join(request.to, PACKAGE))


def readme_of(classes: Sequence[str], rows: Sequence[PackageRow], *, as_objects: bool, flows: bool) -> str:
    """Return what to do with a package, and the command that trains on it.

    Parameters
    ----------
    as_objects : whether the labels are objects, not classes
    flows : whether the run saved flows
    """
    if as_objects:
        values = f"0 is background, every other value one {classes[1]}; two that touch have two values."
    else:
        values = "values are classes: " + ", ".join(f"{value} {name}" for value, name in enumerate(classes)) + "."
    command = ["chorus", "train", "images", "--labels", "labels", "--out", "ensemble"]
    command += ["--label-kind", "instances" if as_objects else "classes"]
    if as_objects and flows:
        command.append("--flows")
    for name in classes:
        command += ["--class", name]
    origins = [row.origin for row in rows if row.origin is not None]
    channels = next((origin.channels for origin in origins), ())
    for name in channels:
        command += ["--channel", name]
    sizes = {origin.pixel_size_um for origin in origins}
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


def write_text(request: AnnotationRequest, name: str, text: str) -> None:
    """Write a small file of a package; raise OutputError if it cannot be written."""
    url = storage.join(request.to, name)
    with storage_errors(url):
        storage.write_bytes(url, text.encode())
