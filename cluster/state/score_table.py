"""``scores.parquet`` for callers that only list it: without pandas, whose import takes longer than reading a table."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.scores.registry import current_name


class ScoreTable:
    """``scores.parquet`` of an output, column by column, under the present names of columns.

    Raises
    ------
    RefusedError
        Where there is none yet.
    """

    def __init__(self, out: str) -> None:
        # Arrow's other ways to read Parquet or select rows import pandas.
        self._file = pq.ParquetFile(read_file(out, "scores.parquet", "scores"))
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

    def columns(self, names: Iterable[str]) -> dict[str, list[Any]]:
        """Return values by column, None where a value is missing; unknown names are left out."""
        stored = {name: self._stored[name] for name in names if name in self._stored}
        table = self._file.read(columns=list(stored.values()))
        return {name: table[column].to_pylist() for name, column in stored.items()}


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
        raise RefusedError(f"{out}: no {what} yet ({storage.explain(error, url)}); run `chorus predict`") from error
