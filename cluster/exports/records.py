"""``export.json`` and the rows of an export; ``TO/ledger`` has the records of finished images while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer

from chorus.cluster.state.command import Command, Execution, RecordWithSurroundings, Running, begin_inside
from chorus.cluster.state.items import ItemLedger, Record
from chorus.cluster.state.outcome import ItemRow, Summary
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors

RECORD, LEDGER = "export.json", "ledger"


class ExportAsked(BaseModel):
    """What is exported, and how.

    Attributes
    ----------
    only : names of the images; None is all
    color, object_type : of objects, see `chorus.cluster.exports.outlines.ExportRequest`
    by, size : of images to correct, see `chorus.cluster.exports.annotation.AnnotationRequest`
    """

    kind: Literal["rois", "geojson", "annotation"]
    only: list[str] | None
    color: Literal["class", "uncertainty"] | None = None
    object_type: Literal["detection", "annotation"] | None = None
    by: str | None = None
    size: int | None = None


class ExportedRun(BaseModel):
    """The results that are exported: of which run, and when that and its objects were made."""

    out: str
    started: str
    objects: str | None


class ExportSummary(Summary):
    """Counts of images by status (``empty`` has no objects), and of objects."""

    images: int
    done: int
    empty: int
    failed: int
    open: int
    objects: int
    seconds: float


class PackageSummary(Summary):
    """Counts of images to correct by status, and the score by which they were chosen."""

    images: int
    done: int
    failed: int
    open: int
    by: str
    seconds: float


class ExportRecord(RecordWithSurroundings):
    """``export.json``; `failures` are messages by the images' names."""

    command: str = "export"
    settings: ExportAsked
    source_run: ExportedRun
    run: Execution
    failures: dict[str, str] = Field(default_factory=dict)
    summary: ExportSummary | PackageSummary | None = None


class ExportRow(ItemRow):
    """What became of an image whose objects are exported.

    Attributes
    ----------
    name : ``image`` in files
    status : also ``empty``, it has no objects
    file : below the folder of the export; None if there is none
    objects : their number
    """

    model_config = ConfigDict(serialize_by_alias=True)

    name: str = Field(serialization_alias="image")
    file: str | None = None
    objects: int = 0


class ExportedImage(BaseModel):
    """A finished image: its file, if there is one, and the number of its objects."""

    model_config = ConfigDict(frozen=True)

    file: str | None
    objects: int


class PackagedImage(BaseModel):
    """Where a finished image to correct comes from.

    Attributes
    ----------
    level, t, z, y, x, height, width : level and plane of the source, and the window in pixels of that level
    channels : their names
    pixel_size_um : height and width of a pixel, if they are known
    """

    model_config = ConfigDict(frozen=True)

    level: int
    t: int
    z: int
    y: int
    x: int
    height: int
    width: int
    pixels: int
    seconds: float
    pixel_size_um: tuple[float, float] | None
    channels: tuple[str, ...]


class PackageRow(ItemRow):
    """What became of an image to correct.

    Attributes
    ----------
    file : below ``images`` and ``labels``
    source : URL of the image
    labels : name of the label image of the draft
    origin : None until the image is done
    """

    file: str
    source: str
    labels: str
    origin: PackagedImage | None = None

    @model_serializer
    def _flat(self) -> dict[str, object]:
        own: dict[str, object] = {"file": self.file, "name": self.name, "source": self.source, "status": self.status}
        own |= {"message": self.message, "pixels": 0, "seconds": 0.0, "labels": self.labels}
        return own | ({} if self.origin is None else self.origin.model_dump())


def command_of(to: str, record: ExportRecord) -> Command[ExportRecord]:
    """Return the command that exports to `to`."""
    return Command(to, record, RECORD, ("settings", "source_run"))


def begun(
    command: Command[ExportRecord], known: ExportRecord | None, *, clear: Callable[[], None] | None = None
) -> Running[ExportRecord]:
    """Begin an export, or resume the `known` one; remove what a killed process was writing.

    Parameters
    ----------
    clear : is called before an export that does not resume
    """
    if known is not None and known.outcome == "running":
        with storage_errors(command.out):
            storage.remove_partial_files(command.out)
    if clear is not None and not command.resumes(known):
        clear()
    return begin_inside(command, known, lambda: [LEDGER])


def ledger_of(to: str, kind: type[Record]) -> ItemLedger[Record]:
    """Return the ledger of the images that are exported to `to`."""
    return ItemLedger(storage.join(to, LEDGER), kind)
