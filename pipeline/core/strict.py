"""Base class of settings and documents that come from outside."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Settings in which an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
