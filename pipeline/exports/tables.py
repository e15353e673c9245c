"""Tables as CSV, Parquet or JSON, of any length."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chorus.pipeline.core.fields import OF_OBJECTS
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.exports.files import whole_file
from chorus.pipeline.exports.outlines import ObjectTable, by_uncertainty, object_name
from chorus.pipeline.exports.spreadsheet import harmless_schema, harmless_table

FORMATS = (".csv", ".parquet", ".json")
# Rows that are held while the objects of a run are put in order.
_AT_ONCE = 1 << 21
_SHOWN = ["image", "t", "z", "class", "label", "area", "y", "x", *(field.name for field in OF_OBJECTS)]


class _Writer(Protocol):
    def write_table(self, table: pa.Table) -> None: ...


class _Json:
    """A JSON array of records, row after row."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._between = file, b"[\n"

    def write_table(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
            self._file.write(self._between + json.dumps(finite, default=str).encode())
            self._between = b",\n"

    def close(self) -> None:
        self._file.write((b"[" if self._between == b"[\n" else b"\n") + b"]\n")


class _Csv:
    """Rows of CSV without formulas."""

    def __init__(self, rows: pa.csv.CSVWriter) -> None:
        self._rows = rows

    def write_table(self, table: pa.Table) -> None:
        self._rows.write_table(harmless_table(table))


@contextmanager
def table_file(url: str, schema: pa.Schema) -> Iterator[_Writer]:
    """Open a writer for tables of `schema`, which appends them to `url` in the format of its suffix.

    Raises
    ------
    RefusedError : it has none of the suffixes `FORMATS`
    OutputError : storage does not take it
    """
    suffix = PurePosixPath(url).suffix
    if suffix not in FORMATS:
        raise RefusedError(f"{url}: give a name that ends with {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    with whole_file(url) as file:
        if suffix == ".parquet":
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                yield writer
        elif suffix == ".csv":
            options = pa.csv.WriteOptions(quoting_style="needed")
            with pa.csv.CSVWriter(file, harmless_schema(schema), write_options=options) as rows:
                yield _Csv(rows)
        else:
            records = _Json(file)
            yield records
            records.close()


def write_table(frame: pd.DataFrame, url: str) -> None:
    """Write rows in the format of the suffix of `url`; lists become text, their parts joined by ``; ``.

    Raises
    ------
    RefusedError, OutputError : see `table_file`
    """
    flat = frame.copy()
    for name in flat.columns:
        if any(isinstance(value, list | np.ndarray) for value in flat[name]):
            flat[name] = ["; ".join(map(str, value)) for value in flat[name]]
    table = pa.Table.from_pandas(flat, preserve_index=False).replace_schema_metadata()
    with table_file(url, table.schema) as writer:
        writer.write_table(table)


def write_groups(groups: Iterable[pa.Table], schema: pa.Schema, url: str) -> None:
    """Write a long table group by group; raise as `table_file`."""
    with table_file(url, schema) as writer:
        for group in groups:
            writer.write_table(group)


def write_by_uncertainty(
    table: ObjectTable, schema: pa.Schema, counts: NDArray[np.int64], column: str | None, url: str
) -> None:
    """List the objects of all images, the most uncertain first: which image to open, and which object it is there.

    Parameters
    ----------
    table : all rows of ``objects.parquet``
    counts : objects of each image, in the order of the table
    column : they are sorted by; None keeps the order of the table
    """
    uncertainty = table.uncertainty(column)
    order = by_uncertainty(uncertainty)
    owner = np.repeat(np.arange(len(counts)), counts)
    # A stable sort by image keeps the order by uncertainty within each image.
    in_image = np.empty(len(order), np.int64)
    own = order[np.argsort(owner[order], kind="stable")]
    in_image[own] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    shown = [name for name in _SHOWN if name in schema.names]
    head = [("rank", pa.int64()), ("name", pa.string())]
    with table_file(url, pa.schema([*head, *(schema.field(name) for name in shown)])) as writer:
        for start in range(0, len(order), _AT_ONCE):
            chosen = order[start : start + _AT_ONCE]
            rows = _rows(table, chosen, shown)
            labels = rows["label"].to_pylist()
            names = [
                object_name(int(in_image[row]), int(counts[owner[row]]), column, float(uncertainty[row]), label)
                for row, label in zip(chosen.tolist(), labels, strict=True)
            ]
            rank = pa.array(np.arange(start + 1, start + 1 + len(chosen)))
            writer.write_table(rows.add_column(0, "name", pa.array(names)).add_column(0, "rank", rank))


def _rows(table: ObjectTable, chosen: NDArray[np.int64], columns: list[str]) -> pa.Table:
    """Take rows of a table by their numbers, in the order of these."""
    ascending = np.sort(chosen)
    parts, first = [], 0
    for group in table.groups(columns):
        low, high = np.searchsorted(ascending, [first, first + len(group)])
        parts.append(group.take(pa.array(ascending[low:high] - first)))
        first += len(group)
    back = np.empty(len(chosen), np.int64)
    back[np.argsort(chosen, kind="stable")] = np.arange(len(chosen))
    return pa.concat_tables(parts).take(pa.array(back))
