"""Provenance of an ensemble and its intended use: the information that guidelines require of a published model."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from chorus.pipeline.core.strict import Strict


class Person(Strict):
    """An author."""

    name: str
    affiliation: str | None = None
    orcid: str | None = None


class Citation(Strict):
    """What to cite."""

    text: str
    doi: str | None = None
    url: str | None = None


class DataReference(Strict):
    """A set of images that the members were trained on."""

    name: str
    url: str | None = None
    licence: str | None = None
    images: int | None = Field(default=None, ge=0)


class TrainingSummary(Strict):
    """How the members were trained, and how well they did on images that they did not see.

    Attributes
    ----------
    recipe : the settings of the training
    images, objects : number of each that was trained on; objects if they were annotated one by one
    intensity : per channel, statistics of the stored values: mean, std and percentiles
    object_diameter_px : median and others, of the circle of equal area, in pixels of the ensemble
    folds : per member, its validation scores
    seconds : duration of the training, all members together
    """

    recipe: dict[str, Any] = Field(default_factory=dict)
    images: int = Field(ge=0)
    objects: int | None = None
    intensity: dict[str, dict[str, float]] = Field(default_factory=dict)
    object_diameter_px: dict[str, float] = Field(default_factory=dict)
    folds: list[dict[str, float]] = Field(default_factory=list)
    seconds: float | None = None


class About(Strict):
    """Provenance; none of it changes a result.

    Attributes
    ----------
    description, intended_use, limits : for people who consider using it
    licence : SPDX identifier of the weights
    scores : measured on images that no member was trained on, by data set and metric
    """

    description: str = ""
    intended_use: str = ""
    limits: str = ""
    licence: str | None = None
    authors: list[Person] = Field(default_factory=list)
    cite: list[Citation] = Field(default_factory=list)
    data: list[DataReference] = Field(default_factory=list)
    training: TrainingSummary | None = None
    scores: dict[str, dict[str, float]] = Field(default_factory=dict)
