"""The evaluation of one image as a worker receives it, and what it returns and records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from chorus.cluster.planning.planned_image import PlannedImage
from chorus.pipeline.consensus.annotations import Drawing, digest_of
from chorus.pipeline.metrics.calibration_error import PixelHistogram

Value = int | float | None
"""A metric of an image; None if it is undefined."""


class EvaluationSettings(BaseModel):
    """What is measured.

    Attributes
    ----------
    objects : source of the predicted objects: the label images ``labels/<class>`` of the run where they exist, or
        connected components of its semantic labels
    minimum_size : objects of fewer pixels are left out, both predicted and true ones
    baseline : whether Otsu's threshold (and a watershed) is measured as well
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    objects: Literal["labels", "components"] = "labels"
    minimum_size: int = Field(default=0, ge=0)
    baseline: bool = True


@dataclass(frozen=True)
class EvaluationJob:
    """The evaluation of one image, as a worker receives it.

    Attributes
    ----------
    labels_url : group whose ``labels`` hold the prediction
    maps_url : group that holds its maps; empty if the run saved no probabilities
    experts : the annotators' drawings of the image
    classes : names, background first
    """

    image: PlannedImage
    labels_url: str
    maps_url: str
    truth: Drawing
    experts: tuple[Drawing, ...]
    classes: tuple[str, ...]
    settings: EvaluationSettings

    @property
    def drawings(self) -> str:
        """Digest of the truth and of the annotators' drawings."""
        return digest_of((self.truth, *self.experts))


class Evaluated(BaseModel):
    """The result of one image, as it is recorded.

    Attributes
    ----------
    drawings : digest of the truth and of the annotators' drawings with which it was measured
    values : metrics by column of ``evaluation.parquet``
    pixels : counts for the calibration of probabilities; None if there are no probabilities
    notes : what could not be measured, and why
    """

    # As constants, so that a record gives the very numbers that were measured.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    drawings: str
    values: dict[str, Value]
    pixels: PixelHistogram | None
    notes: list[str]
    seconds: float


def metric_columns(classes: tuple[str, ...]) -> list[str]:
    """Return the numeric columns of ``evaluation.parquet``, in order."""
    per_class = ("dice", "iou", "precision", "recall", "boundary_median", "boundary_p95", "boundary_mean")
    columns = ["dice", *(f"{metric}:{name}" for name in classes[1:] for metric in per_class)]
    columns += ["ap50", "map", "panoptic_quality", "objects_truth", "objects_predicted", "splits", "merges"]
    columns += ["baseline_dice", "baseline_ap50", "baseline_map"]
    return [*columns, "calibration_error", "expert_dice_min", "expert_dice_mean", "expert_dice_max"]
