"""``run.json``: what a command did, with which settings, and how it ended. Written by `chorus.cluster`, read by all.

Models for reading take what earlier versions wrote and keep what later ones add; a value of another type is an error.
"""

from __future__ import annotations

from typing import Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_serializer,
    model_validator,
)


def _is_none(value: object) -> bool:
    return value is None


class Document(BaseModel):
    """A part of a document; unknown fields, as of a later version, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class SavedClass(Document):
    """A class of the ensemble; the colour is as stored, and need not be valid."""

    name: str = ""
    color: str | None = None


class SavedEnsemble(Document):
    """The ensemble of a run.

    Attributes
    ----------
    url : of its ``ensemble.yaml``, when the run was made
    hash : that it had
    members : their number
    classes : background first
    """

    name: str = ""
    url: str | None = None
    hash: str | None = None
    members: int | None = None
    classes: tuple[SavedClass, ...] = ()


class SavedInputs(Document):
    """The images of a run.

    Attributes
    ----------
    sha256 : of what the images are (places, shapes, types), not of their pixels
    images, regions : planned
    failed : names of images that could not be planned
    """

    sha256: str | None = None
    images: int = 0
    regions: int = 0
    failed: tuple[str, ...] = ()


class Machine(Document):
    """The machine of the process that started the command."""

    system: str | None = None
    cores: int | None = None


class Surroundings(Document):
    """What a command was executed with.

    Attributes
    ----------
    chorus : version
    versions : of Python and of libraries, by name
    """

    chorus: str | None = None
    versions: dict[str, str] = {}
    machine: Machine = Machine()


class Price(Document):
    """The price of a session."""

    amount: float
    currency: str


class SessionAccount(Document):
    """Time and cost of a session, expected and measured; None where there is nothing to compare.

    Attributes
    ----------
    measured_seconds : of the streams of regions
    device_busy : share of the devices' time that members took, 0 to 1
    seconds_per_tile : of device time
    predicted_seconds, measured_over_predicted : with one stream alone, not of volumes
    cost : where prices are known
    """

    measured_seconds: float | None = Field(default=None, exclude_if=_is_none)
    device_busy: float | None = Field(default=None, exclude_if=_is_none)
    seconds_per_tile: float | None = Field(default=None, exclude_if=_is_none)
    predicted_seconds: float | None = Field(default=None, exclude_if=_is_none)
    measured_over_predicted: float | None = Field(default=None, exclude_if=_is_none)
    cost: Price | None = Field(default=None, exclude_if=_is_none)


class ObjectCounts(Document):
    """The objects of a run.

    Attributes
    ----------
    counts : number of objects by class
    failed : images of which no objects could be made
    """

    method: str
    counts: dict[str, int]
    failed: int


class SavedReference(Document):
    """The reference set that judges the images of a run.

    Attributes
    ----------
    images : labelled ones
    tau : Dice that is asked for
    alpha : share of images whose Dice may be below their bound
    differs : sentence on settings of the run that are not those of the reference set
    """

    images: int
    tau: float
    alpha: float
    differs: str | None = Field(default=None, exclude_if=_is_none)


class FlagCounts(Document):
    """The flags of a run.

    Attributes
    ----------
    images : number of images by flag; without flags that none has
    look_at : images marked for review
    reference_images : by which they were judged
    """

    images: dict[str, int]
    look_at: int
    reference_images: int


class PredictCounts(Document):
    """What a run came to.

    Attributes
    ----------
    images, regions : planned; images with those that could not be
    done, empty, failed : images by status
    repeated : times that regions were retried and unfinished work was lost
    smaller_batch : regions for which a batch had to be divided
    tiles : computed, those at the borders of regions more than once
    passes_saved : share of forward passes that adaptive effort left out, 0 to 1; None with full effort
    seconds : since the run was first begun
    """

    images: int = 0
    done: int = 0
    empty: int = 0
    failed: int = 0
    regions: int | None = None
    repeated: int = 0
    smaller_batch: int = 0
    tiles: int = 0
    passes_saved: float | None = Field(default=None, exclude_if=_is_none)
    seconds: float | None = None


class PredictSummary(SessionAccount, PredictCounts):
    """How a run of ``chorus predict`` ended, with the account of its last session.

    Attributes
    ----------
    objects : None where none were asked for
    flags : None where the ensemble has no reference set
    """

    objects: ObjectCounts | None = Field(default=None, exclude_if=_is_none)
    flags: FlagCounts | None = Field(default=None, exclude_if=_is_none)

    def accounted(self, account: SessionAccount) -> PredictSummary:
        """Return the summary with the account of a session."""
        return self.model_copy(update=dict(account))


class SavedSettings(BaseModel):
    """Settings of a command as they were written."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    _content: dict[str, JsonValue] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, given: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        made = handler(given)
        if isinstance(given, dict):
            made._content = dict(given)
        return made

    @property
    def content(self) -> dict[str, JsonValue]:
        """All settings, in the order in which they were written."""
        return dict(self._content)

    @model_serializer
    def _written(self) -> dict[str, JsonValue]:
        return self.content


class PredictSettings(SavedSettings):
    """Settings of a run of ``chorus predict``, of which those are typed that readers of results need.

    Attributes
    ----------
    in_place : whether labels were written into the source images
    save : names of the maps that were kept
    augmentations : names
    effort : ``full`` or ``adaptive``
    backend, batch : what runs the networks, and tiles per call
    """

    in_place: bool = False
    save: tuple[str, ...] = ()
    augmentations: tuple[str, ...] = ()
    effort: str = "full"
    backend: str = "eager"
    batch: int | None = None


class RunDocument(BaseModel):
    """The fields that every command writes.

    Attributes
    ----------
    command : None of ``chorus predict``
    started, finished : ISO 8601; of a resumed run the first start
    outcome : ``running``, ``complete``, ``failures``, ``interrupted``
    settings : that define the results
    run : how it was executed; changes no result
    sources : as typed
    chorus, versions, machine : see `Surroundings`
    """

    # Fields of one command's own are kept: see `content`.
    model_config = ConfigDict(frozen=True, extra="allow")

    command: str | None = Field(default=None, exclude_if=_is_none)
    started: str | None = None
    finished: str | None = None
    outcome: str | None = None
    settings: SavedSettings = SavedSettings()
    run: dict[str, JsonValue] = {}
    sources: tuple[str, ...] = ()
    chorus: str | None = None
    versions: dict[str, str] = {}
    machine: Machine = Machine()

    @property
    def content(self) -> dict[str, JsonValue]:
        """All that the file holds, also what no field is declared for."""
        return self.model_dump(mode="json", exclude_unset=True)


class PredictDocument(RunDocument):
    """``run.json`` of ``chorus predict`` for those who read results.

    Attributes
    ----------
    repeated, smaller_batch : counts of `PredictSummary` while the run lasts
    ensemble : None in that of another command
    reference : that the images are judged by when all are done
    unjudged : why none judges them; None of runs of earlier versions, too
    summary : None while the run lasts
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    settings: PredictSettings = PredictSettings()
    repeated: int | None = Field(default=None, exclude_if=_is_none)
    smaller_batch: int | None = Field(default=None, exclude_if=_is_none)
    ensemble: SavedEnsemble | None = None
    inputs: SavedInputs = SavedInputs()
    reference: SavedReference | None = Field(default=None, exclude_if=_is_none)
    unjudged: str | None = Field(default=None, exclude_if=_is_none)
    summary: PredictSummary | None = None

    @property
    def judging(self) -> str | None:
        """Return what is to be known of how its images are judged: why not, or with which reservation; usually None."""
        return self.unjudged if self.reference is None else self.reference.differs

    @model_validator(mode="before")
    @classmethod
    def _of_predict(cls, given: object) -> object:
        """Take of another command's record only what means the same there."""
        if isinstance(given, dict) and given.get("command") is not None:
            return {name: given[name] for name in RunDocument.model_fields if name in given and name != "settings"}
        return given
