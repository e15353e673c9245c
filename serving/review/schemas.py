"""Requests of the page, and answers to it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from chorus.pipeline.core.run_document import PredictSummary
from chorus.serving.review.decisions import Decision, State

Reviewer = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)]


class DecideRequest(BaseModel):
    """A decision on an image."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(max_length=4000)
    decision: Decision
    note: str = Field(default="", max_length=2000)
    reviewer: Reviewer


class UndoRequest(BaseModel):
    """The undoing of one's own decision."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(max_length=100)
    reviewer: Reviewer


class Answer(BaseModel):
    """An answer to the page; fields that are not set are left out of it."""

    model_config = ConfigDict(frozen=True)


class ImageEntry(Answer):
    """An image in the gallery.

    Attributes
    ----------
    place : in the order of the run
    rank : by risk or uncertainty; None without one
    review : whether it is within the budget of `chorus flag`
    plate, well : None where it is on none
    values : scores by column, None where undefined
    decision : in lists; None where nobody has decided
    """

    place: int
    name: str
    rank: int | None
    status: str
    message: str
    flags: list[str]
    reasons: list[str]
    review: bool
    plate: str | None
    well: str | None
    values: dict[str, float | None]
    decision: State | None = None


class ImagePage(Answer):
    """A part of a list of images.

    Attributes
    ----------
    version : of the tables
    log : version of the decisions that the list is of
    total : images in the list
    position : of the image that was asked for; None where the list does not have it
    """

    version: str
    log: int
    total: int
    offset: int
    rows: list[ImageEntry]
    position: int | None = None


class ClassEntry(Answer):
    """A class of the ensemble."""

    name: str
    color: str


class QuantityEntry(Answer):
    """A score that can be shown, sorted by, and drawn."""

    key: str
    label: str
    digits: int
    low_is_bad: bool
    first: bool


class EnsembleEntry(Answer):
    """The ensemble of the run."""

    name: str
    hash: str | None
    members: int | None


class RunView(Answer):
    """The run as a whole.

    Attributes
    ----------
    results : its URL, or ``OUT`` where reviewers are not told
    summary : of ``run.json``
    statuses, flags, reasons : number of images by name
    decisions : number of images by decision
    reviewer : name from the server in front; None where people name themselves
    """

    version: str
    results: str
    name: str
    chorus: str | None
    started: str | None
    finished: str | None
    outcome: str | None
    summary: PredictSummary
    ensemble: EnsembleEntry
    images: int
    statuses: dict[str, int]
    judged: bool
    flags: dict[str, int]
    flag_labels: dict[str, str]
    reasons: dict[str, int]
    classes: list[ClassEntry]
    quantities: list[QuantityEntry]
    plates: list[str]
    decisions: dict[str, int]
    log: int
    objects: bool
    notes: list[str]
    writable: bool
    reviewer: str | None


class Threshold(Answer):
    """A value of a score that the reference set names."""

    value: float
    name: str


class Distribution(Answer):
    """The histogram of a score, and that of the reference set with the same bins.

    Attributes
    ----------
    edges : of the bins, one more than there are counts
    missing : images without this score
    """

    score: str
    label: str
    digits: int
    low_is_bad: bool
    edges: list[float]
    counts: list[int]
    reference: list[int] | None
    median: float | None
    missing: int
    thresholds: list[Threshold]


class Well(Answer):
    """A well of a plate: its place among `rows` and `columns`, its images, and the median of their score."""

    row: int
    column: int
    images: int
    value: float | None


class PlateView(Answer):
    """The wells of a plate in one score; `limits` are the ends of the colours, the same on all plates."""

    plate: str
    score: str
    limits: tuple[float, float]
    rows: list[str]
    columns: list[str]
    wells: list[Well]


class LevelEntry(Answer):
    """A level of a layer's pyramid."""

    width: int
    height: int


class LayerEntry(Answer):
    """A layer of an image.

    Attributes
    ----------
    contrast : values that become black and white, or the ends of the colours
    colors, label, unit, uncertainty : of maps of the members
    """

    id: str
    kind: str
    name: str
    color: str
    times: int
    depths: int
    levels: list[LevelEntry]
    dtype: str
    contrast: tuple[float, float] | None = None
    colors: tuple[str, ...] | None = None
    label: str | None = None
    unit: str | None = None
    uncertainty: bool | None = None


class ImageView(Answer):
    """An image and its layers; `tile` is the edge of a tile in pixels."""

    image: ImageEntry
    tile: int
    version: str
    layers: list[LayerEntry]
    notes: list[str]


class PixelValues(Answer):
    """The value of every layer at a position, by the layer's id."""

    values: dict[str, float]


class DecisionsView(Answer):
    """What was decided since a version of the log; number of images by decision."""

    log: int
    images: dict[str, State]
    counts: dict[str, int]


class Decided(Answer):
    """What a request entered in the log: the id of the entry, and the state of its image from now on."""

    id: str
    image: str
    state: State | None
    counts: dict[str, int]
