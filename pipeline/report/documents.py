"""Documents that other commands may have written beside a run's scores, each read if it exists."""

from __future__ import annotations

import io
import json
from typing import Any, TypeVar

import pandas as pd
import pyarrow
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chorus.pipeline.io import storage
from chorus.pipeline.io.storage import storage_errors

Document = TypeVar("Document", bound=BaseModel)


class _Read(BaseModel):
    """A document; fields that the page does not know are ignored, so that later versions may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class SentinelResult(_Read):
    """An image with known truth that every run processes too: its stored Dice and that of this run."""

    name: str
    class_name: str = Field(default="", alias="class")
    stored: float | None = None
    found: float | None = None
    tolerance: float | None = None
    moved: bool = False


class Sentinels(_Read):
    """``sentinels.json``."""

    images: list[SentinelResult]


class Mean(_Read):
    """A metric's mean over the images that have it, and its 95 % interval."""

    mean: float
    low: float | None = None
    high: float | None = None
    images: int


class Evaluation(_Read):
    """``evaluation.json`` of `chorus evaluate`."""

    truth: str | None = None
    images: dict[str, int] = {}
    metrics: dict[str, Mean] = {}
    against_baseline: dict[str, Any] | None = None


def read_document(out: str, name: str, kind: type[Document], command: str, notes: list[str]) -> Document | None:
    """Return the JSON file `name` of a run, None if it does not exist; a damaged one is left out with a note."""
    data = _read_optional(storage.join(out, name))
    if data is None:
        return None
    try:
        content = json.loads(data)
        return kind.model_validate({"images": content} if isinstance(content, list) else content)
    except (ValueError, ValidationError) as error:
        notes.append(f"{name} is damaged and left out ({_first(error)}); run `{command}` again")
        return None


def read_table(out: str, name: str, columns: set[str], command: str, notes: list[str]) -> pd.DataFrame | None:
    """Return a Parquet file that must have `columns`; as `read_document`."""
    data = _read_optional(storage.join(out, name))
    if data is None:
        return None
    try:
        table = pd.read_parquet(io.BytesIO(data))
    except (pyarrow.ArrowInvalid, OSError) as error:
        notes.append(f"{name} is damaged and left out ({_first(error)}); run `{command}` again")
        return None
    if missing := columns - set(table.columns):
        notes.append(f"{name} lacks the column {min(missing)} and is left out; run `{command}` again")
        return None
    return table


def _read_optional(url: str) -> bytes | None:
    """Return the content of a file, None if it does not exist."""
    with storage_errors(url):
        try:
            return storage.read_bytes(url)
        except FileNotFoundError:
            return None


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"field {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return storage.words(error)
