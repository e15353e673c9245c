"""Requests of the page, validated."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from chorus.serving.review.decisions import Decision

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
