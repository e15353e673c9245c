"""``objects.json``, its rows, and the sign that the objects of an image are done."""

from __future__ import annotations

import logging

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from chorus.cluster.state.command import Execution, RecordWithSurroundings, read_record
from chorus.cluster.state.outcome import ItemRow, Summary
from chorus.pipeline.errors import DamagedError
from chorus.pipeline.instances.methods import MapMethod, Method
from chorus.pipeline.io import storage
from chorus.pipeline.io.json_documents import parsed
from chorus.pipeline.io.outputs.arrays import LabelImage
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.io.stored_files import Stored, StoredFiles

log = logging.getLogger("chorus")

RECORD, TABLE = "objects.json", "objects.parquet"


class ImageObjects(BaseModel):
    """Number of objects of an image.

    Attributes
    ----------
    counts : per class
    most : per class, the maximum in one plane
    maps : columns of means of the image's table
    """

    model_config = ConfigDict(frozen=True)

    counts: dict[str, int]
    most: dict[str, int]
    maps: list[str]

    @property
    def total(self) -> int:
        """Number of objects of all classes."""
        return sum(self.counts.values())

    def label_image(self, class_name: str) -> LabelImage:
        """Return the label image of a class, uint32 unless a plane has too many objects for it."""
        return LabelImage(class_name, "uint32" if self.most[class_name] <= np.iinfo(np.uint32).max else "uint64")


class StoredObjects(BaseModel):
    """The record of the objects of an image: their number, and the files of their label images."""

    model_config = ConfigDict(frozen=True)

    objects: ImageObjects
    files: StoredFiles


class FlowsFrom(BaseModel):
    """The second ensemble that predicts the flows, and everything on which they may depend."""

    ensemble: str
    hash: str
    settings: dict[str, JsonValue]


class ObjectsAsked(BaseModel):
    """How objects are made.

    Attributes
    ----------
    ensemble_diameter : typical diameter of objects, in pixels of the ensemble
    foreground_threshold : probability from which a pixel is of a class, where it was given
    prob_threshold, nms_threshold : of objects by stars
    options : of objects of maps, those that were given; see `chorus.cluster.objects.map_options`
    """

    method: Method | MapMethod
    diameter: float | None
    minimum_size: int
    flow_error: float | None
    ensemble_diameter: float
    foreground_threshold: float | None = Field(default=None, exclude_if=lambda value: value is None)
    flows_from: FlowsFrom | None = Field(default=None, exclude_if=lambda value: value is None)
    prob_threshold: float | None = Field(default=None, exclude_if=lambda value: value is None)
    nms_threshold: float | None = Field(default=None, exclude_if=lambda value: value is None)
    options: dict[str, float] = Field(default_factory=dict, exclude_if=lambda value: not value)


class PredictedRun(BaseModel):
    """The run whose objects they are: when it was begun, its settings, and the hash of its ensemble."""

    started: str
    settings: dict[str, JsonValue]
    ensemble: str


class ObjectsRow(ItemRow):
    """What became of an image; `objects` is their number per class."""

    objects: dict[str, int] = Field(default_factory=dict)


class ObjectsSummary(Summary):
    """Counts of images by status, and of objects by class.

    Attributes
    ----------
    flows_from : name of the second ensemble, if there was one
    """

    images: int
    done: int
    failed: int
    open: int
    method: Method | MapMethod
    flows_from: str | None = Field(default=None, exclude_if=lambda value: value is None)
    objects: dict[str, int]
    seconds: float


class ObjectsRecord(RecordWithSurroundings):
    """``objects.json``; rows, summary and what ``objects.parquet`` is are there when the command has ended."""

    command: str = "objects"
    settings: ObjectsAsked
    of: PredictedRun
    run: Execution
    summary: ObjectsSummary | None = None
    images: list[ObjectsRow] = Field(default_factory=list)
    table: Stored | None = None


def read_objects_record(out: str) -> ObjectsRecord | None:
    """Return ``objects.json`` of a run, None if there is none; raise RefusedError if it is damaged."""
    return read_record(out, RECORD, ObjectsRecord)


def recorded_objects(work: str, name: str = "done.json") -> ImageObjects | None:
    """Return the number of objects of an image from its work folder; None if it is not there, or damaged."""
    url = storage.join(work, name)
    with storage_errors(url):
        try:
            return parsed(storage.read_bytes(url), ImageObjects, url, "it is made again")
        except FileNotFoundError:
            return None
        except DamagedError as error:
            log.warning("%s", error)
            return None


def write_json(url: str, content: BaseModel) -> None:
    """Write a small document; raise OutputError if it cannot be written."""
    with storage_errors(url):
        storage.write_record(url, content.model_dump_json().encode())
