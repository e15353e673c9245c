"""``evaluation.json`` and the rows of ``evaluation.parquet``."""

from __future__ import annotations

from dataclasses import asdict

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_serializer

from chorus.cluster.evaluation.job import EvaluationSettings, Value
from chorus.cluster.state.command import CommandRecord
from chorus.cluster.state.outcome import ItemRow
from chorus.cluster.state.output import surroundings
from chorus.pipeline.core.run_document import Surroundings
from chorus.pipeline.metrics.calibration_error import PixelCalibration
from chorus.pipeline.metrics.comparison import Comparison, Difference

TABLE, SUMMARY, DIAGRAM = "evaluation.parquet", "evaluation.json", "reliability.svg"
NO_TRUTH = "no truth"


class EvaluationRow(ItemRow):
    """What was measured of an image of the run.

    Attributes
    ----------
    status : that of the run (``done``, ``empty``); ``failed`` if the run or the evaluation of the image failed;
        ``no truth``; ``open`` if the evaluation was interrupted before it
    values : by column of `chorus.cluster.evaluation.job.metric_columns`, None if undefined or not measured
    """

    values: dict[str, Value]

    @model_serializer
    def _flat(self) -> dict[str, str | Value]:
        return {"name": self.name, "status": self.status, "message": self.message} | self.values


class EvaluatedRun(BaseModel):
    """The run that is evaluated: when it and its objects were made."""

    started: str
    objects: str | None


class EvaluatedEnsemble(BaseModel):
    """The ensemble of the run."""

    name: str
    hash: str


class EvaluationCounts(BaseModel):
    """Number of images by status."""

    model_config = ConfigDict(serialize_by_alias=True)

    all: int
    done: int
    empty: int
    failed: int
    no_truth: int = Field(validation_alias=AliasChoices("no truth", "no_truth"), serialization_alias="no truth")
    open: int = Field(default=0, exclude_if=lambda value: not value)


class Mean(BaseModel):
    """Mean of a metric over the images that have it, its 95 % interval, and their number."""

    mean: float
    low: float | None
    high: float | None
    images: int


class AgainstBaseline(BaseModel):
    """A `Comparison` of the ensemble with the simple baseline, and its verdict in sentences."""

    metric: str
    lower: bool
    images: int
    means: dict[str, float]
    ranks: dict[str, float]
    test: str
    p: float
    concordance: float | None
    critical_difference: float | None
    differences: list[Difference]
    verdict: list[str]

    @classmethod
    def of(cls, comparison: Comparison) -> AgainstBaseline:
        """Return the document of a comparison."""
        return cls.model_validate(asdict(comparison) | {"verdict": comparison.verdict})


class EvaluationRecord(CommandRecord):
    """``evaluation.json``; what is measured is there when the evaluation has ended.

    Attributes
    ----------
    truth, truth_label, experts, expert : as asked for
    source_run : the run that is evaluated
    without_truth, truth_without_image : names
    failures : messages by the images' names
    metrics : by name
    pixels : calibration of the probabilities of pixels, if the run saved any
    objects : by which method they were made; None if there are none
    """

    command: str = "evaluate"
    truth: str | None
    truth_label: str | None
    experts: str | None
    expert: list[str] = Field(default_factory=list)
    settings: EvaluationSettings
    source_run: EvaluatedRun | None = None
    ensemble: EvaluatedEnsemble
    images: EvaluationCounts | None = None
    without_truth: list[str] = Field(default_factory=list)
    truth_without_image: list[str] = Field(default_factory=list)
    failures: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, Mean] = Field(default_factory=dict)
    pixels: PixelCalibration | None = None
    objects: str | None = None
    against_baseline: AgainstBaseline | None = None
    versions: Surroundings = Field(default_factory=surroundings)
