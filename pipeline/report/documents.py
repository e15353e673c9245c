"""Documents that other commands may have written beside a run's scores, each read if it exists."""

from __future__ import annotations

import io
import re
from typing import TypeVar

import pandas as pd
import pyarrow
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from chorus.pipeline.core.run_document import PredictDocument, SavedClass
from chorus.pipeline.ensembles.spec import COLORS
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.json_documents import fault, parsed
from chorus.pipeline.io.models import ClassInfo
from chorus.pipeline.io.storage_failures import failure_sentence, one_line, storage_errors

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
    """``sentinels.json``: a list."""

    images: list[SentinelResult]

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, given: object) -> object:
        return {"images": given} if isinstance(given, list) else given


class Mean(_Read):
    """A metric's mean over the images that have it, and its 95 % interval."""

    mean: float
    low: float | None = None
    high: float | None = None
    images: int


class Evaluation(_Read):
    """``evaluation.json`` of `chorus evaluate`."""

    outcome: str = "complete"
    truth: str | None = None
    images: dict[str, int] | None = None
    metrics: dict[str, Mean] = {}
    against_baseline: dict[str, JsonValue] | None = None


def read_run(out: str, *, needed_by: str) -> PredictDocument:
    """Return ``run.json`` of a run.

    Parameters
    ----------
    needed_by : who asks, for the sentence: ``a report``

    Raises
    ------
    RefusedError
        If there is none, or it is damaged.
    """
    url = storage.join(out, "run.json")
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        sentence = failure_sentence(error, url)
        raise RefusedError(f"{sentence}; {needed_by} needs the --out of a `chorus predict` run") from error
    return parsed(data, PredictDocument, url, "run predict again with --overwrite to mend it")


_TWO = (SavedClass(name="background"), SavedClass(name="foreground"))


def classes_of(run: PredictDocument) -> list[ClassInfo]:
    """Return the classes of the ensemble of a run, background first; an invalid colour is replaced."""
    entries = () if run.ensemble is None else run.ensemble.classes
    return [
        ClassInfo(
            entry.name or f"class {index}",
            color if re.fullmatch("#[0-9a-fA-F]{6}", color := entry.color or "") else COLORS[(index - 1) % len(COLORS)],
        )
        for index, entry in enumerate(entries or _TWO)
    ]


def read_document(out: str, name: str, kind: type[Document], command: str, notes: list[str]) -> Document | None:
    """Return the JSON file `name` of a run, None if it does not exist; a damaged one is left out with a note."""
    data = _read_optional(storage.join(out, name))
    if data is None:
        return None
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        notes.append(f"{name} is damaged and left out ({fault(data, error)}); run `{command}` again")
        return None


def read_table(out: str, name: str, columns: set[str], command: str, notes: list[str]) -> pd.DataFrame | None:
    """Return a Parquet file that must have `columns`; as `read_document`."""
    data = _read_optional(storage.join(out, name))
    if data is None:
        return None
    try:
        table = pd.read_parquet(io.BytesIO(data))
    except (pyarrow.ArrowInvalid, OSError) as error:
        notes.append(f"{name} is damaged and left out ({one_line(error)}); run `{command}` again")
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
