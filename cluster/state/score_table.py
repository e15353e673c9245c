"""``scores.parquet`` for callers that only list it: without pandas, whose import takes longer than reading a table."""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.parquet_errors import parquet_errors
from chorus.pipeline.io.storage_failures import failure_sentence, storage_errors
from chorus.pipeline.scores.flag_registry import current_flags
from chorus.pipeline.scores.registry import STATED, current_name

if TYPE_CHECKING:
    import pandas as pd

Cell: TypeAlias = str | int | float | None


class ScoreTable:
    """``scores.parquet`` of an output, column by column, under the present names of columns.

    Parameters
    ----------
    out : URL of the output
    name, what : of another table of scores, and what it holds, for sentences

    Raises
    ------
    RefusedError
        Where there is none yet, or it is damaged.
    """

    def __init__(self, out: str, name: str = "scores.parquet", what: str = "scores") -> None:
        # Arrow's other ways to read Parquet or select rows import pandas.
        data = read_file(out, name, what)
        with _undamaged(out, name):
            self._file = pq.ParquetFile(data)
        self._out, self._name = out, name
        fields = [(current_name(field.name), field) for field in self._file.schema_arrow]
        self._kinds: dict[str, pa.DataType] = {name: field.type for name, field in fields}
        self._stored: dict[str, str] = {name: field.name for name, field in fields}

    @property
    def names(self) -> list[str]:
        """Return the names of the columns."""
        return list(self._kinds)

    @property
    def numeric(self) -> list[str]:
        """Return the names of the numeric columns."""
        return [name for name, kind in self._kinds.items() if pa.types.is_integer(kind) or pa.types.is_floating(kind)]

    def columns(self, names: Iterable[str]) -> dict[str, list[Cell]]:
        """Return values by column, None where a value is missing; unknown names are left out."""
        stored = {name: self._stored[name] for name in names if name in self._stored}
        with _undamaged(self._out, self._name):
            table = self._file.read(columns=list(stored.values()))
        return {name: table[column].to_pylist() for name, column in stored.items()}


def read_flags(out: str) -> dict[str, list[Any]] | None:
    """Return what ``flags.parquet`` states of each image, by column, the riskiest image first; None if there is none.

    Columns are ``rank``, ``name``, the scores of `chorus.pipeline.scores.registry.STATED`, ``flags`` and ``reasons``.
    """
    url = storage.join(storage.normalise(out), "flags.parquet")
    with storage_errors(url):
        if not storage.exists(url):
            return None
    names = ("rank", "name", *(score.name for score in STATED), "flags", "reasons")
    columns: dict[str, list[Any]] = dict(ScoreTable(out, "flags.parquet", "flags").columns(names))
    return columns | {"flags": [current_flags(flags) for flags in columns["flags"]]}


def read_file(out: str, name: str, what: str) -> io.BytesIO:
    """Read a table of an output; raise RefusedError where there is none yet.

    Parameters
    ----------
    what : it holds, for the sentence
    """
    url = storage.join(storage.normalise(out), name)
    try:
        return io.BytesIO(storage.read_bytes(url))
    except OSError as error:
        raise RefusedError(f"{out}: no {what} yet ({failure_sentence(error, url)}); run `chorus predict`") from error


def read_frame(out: str, name: str, what: str) -> pd.DataFrame:
    """Read a table of an output; raise RefusedError where there is none yet, or it is damaged.

    Parameters
    ----------
    what : it holds, for the sentence
    """
    import pandas as pd

    data = read_file(out, name, what)
    with _undamaged(out, name):
        return pd.read_parquet(data)


def _undamaged(out: str, name: str) -> AbstractContextManager[None]:
    url = storage.join(storage.normalise(out), name)
    return parquet_errors(url, "run the same `chorus predict` again to make it anew")
