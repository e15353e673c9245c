"""Rows of objects before they are in ``objects.parquet``: per region, image and run; never all in memory.

The rows of an image are sorted by plane, class and label, in groups of a fixed size, so that its table does not depend
on how it was divided into regions.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chorus.pipeline.exports.files import whole_file
from chorus.pipeline.instances.shapes import PLANE_COLUMNS, VOLUME_COLUMNS
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors

# Rows that are sorted, read and written at once.
GROUP = 1 << 16
_READERS = 16

_MEASURED = [
    *((name, pa.int64()) for name in ("area", "y0", "x0", "y1", "x1")),
    *((name, pa.float64()) for name in ("y", "x", "eccentricity", "major_axis", "minor_axis", "orientation")),
    ("perimeter", pa.float64()),
    *((name, pa.float64()) for name in PLANE_COLUMNS),
    ("touches_border", pa.bool_()),
    ("flow_error", pa.float64()),
]
_VOLUMES = [
    *((name, pa.int64()) for name in ("volume", "z0", "y0", "x0", "z1", "y1", "x1")),
    *((name, pa.float64()) for name in ("z", "y", "x", *VOLUME_COLUMNS)),
    ("touches_border", pa.bool_()),
    ("flow_error", pa.float64()),
]
_KEY = [("class", pa.int64()), ("name", pa.uint64())]
_PLACE = [("image", pa.string()), ("t", pa.int64()), ("z", pa.int64()), ("class", pa.string()), ("label", pa.uint64())]


def region_schema(maps: Sequence[str]) -> pa.Schema:
    """Return the schema of a region's rows; `maps` are columns of means."""
    return pa.schema([*_KEY, *_MEASURED, *((name, pa.float64()) for name in maps)])


def object_schema(maps: Sequence[str]) -> pa.Schema:
    """Return the schema of ``objects.parquet``; `maps` are columns of means."""
    return pa.schema([*_PLACE, *_MEASURED, *((name, pa.float64()) for name in maps)])


def volume_schema(maps: Sequence[str]) -> pa.Schema:
    """Return the schema of ``objects.parquet`` for volumes; `maps` are columns of means."""
    place = [field for field in _PLACE if field[0] != "z"]
    return pa.schema([*place, *_VOLUMES, *((name, pa.float64()) for name in maps)])


def region_table(frame: pd.DataFrame, value: int, maps: Sequence[str]) -> pa.Table:
    """Convert rows of `chorus.pipeline.instances.table.object_rows` of class `value` to a region's table.

    The last columns of `frame` are the means of `maps`.
    """
    schema = region_schema(maps)
    frame = frame.set_axis([*frame.columns[: len(frame.columns) - len(maps)], *maps], axis=1).assign(**{"class": value})
    # NaN, such as the flow error of objects without flows, becomes null.
    return pa.Table.from_pandas(frame, schema=schema, preserve_index=False).replace_schema_metadata()


def block_table(rows: pd.DataFrame, value: int, maps: Sequence[str]) -> pa.Table:
    """Convert rows of objects of class `value` to the table of a block of a volume; `maps` are columns of means."""
    schema = pa.schema([*_KEY, *_VOLUMES, *((name, pa.float64()) for name in maps)])
    # NaN, such as that of the flow error, becomes null.
    rows = rows.assign(**{"class": value})
    return pa.Table.from_pandas(rows, schema=schema, preserve_index=False).replace_schema_metadata()


def write_rows(url: str, table: pa.Table) -> None:
    """Write a small table, the sign that a region is done, in one piece; raise OutputError if it cannot be written."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    with storage_errors(url):
        storage.write_record(url, buffer.getvalue())


@dataclass(frozen=True)
class RegionRows:
    """URL of a region's rows, and the keys that they are sorted by.

    Attributes
    ----------
    classes : (rows,) int64
    names : (rows,) uint64
    """

    url: str
    classes: NDArray[np.int64]
    names: NDArray[np.uint64]

    def of_class(self, value: int) -> slice:
        """Return the slice of the rows of a class."""
        return slice(*np.searchsorted(self.classes, [value, value + 1]).tolist())


def find_rows(urls: Sequence[str]) -> list[RegionRows]:
    """Read the keys of all rows of a plane: 16 bytes per object."""

    def read(url: str) -> RegionRows:
        table = pq.read_table(io.BytesIO(storage.read_bytes(url)), columns=["class", "name"])
        return RegionRows(url, table["class"].to_numpy(), table["name"].to_numpy())

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, urls))


def known_names(regions: Sequence[RegionRows], value: int) -> NDArray[np.uint64]:
    """Return the names of all objects of a class in a plane; raise RuntimeError if two rows are of the same object.

    Returns
    -------
    (objects,) uint64, ascending
    """
    names = [np.zeros(0, np.uint64), *(region.names[region.of_class(value)] for region in regions)]
    known: NDArray[np.uint64] = np.sort(np.concatenate(names))
    if (known[1:] == known[:-1]).any():
        raise RuntimeError("two regions have a row of the same object")
    return known


def write_known(url: str, known: NDArray[np.uint64]) -> None:
    """Write the sorted names of the objects of a plane or volume; raise OutputError if they cannot be written.

    Parameters
    ----------
    known : (objects,) uint64, ascending
    """
    buffer = io.BytesIO()
    np.save(buffer, known, allow_pickle=False)
    with storage_errors(url):
        storage.write_bytes(url, buffer.getvalue())


def read_known(url: str) -> NDArray[np.uint64]:
    """Read what `write_known` wrote.

    Returns
    -------
    (objects,) uint64, ascending
    """
    with storage_errors(url):
        known: NDArray[np.uint64] = np.load(io.BytesIO(storage.read_bytes(url)), allow_pickle=False)
    return known


def sorted_rows(regions: Sequence[RegionRows], value: int, known: NDArray[np.uint64]) -> Iterator[pa.Table]:
    """Yield the rows of a class in a plane sorted by name, `GROUP` at a time.

    A region's rows are read once for every group that they contribute to.

    Parameters
    ----------
    known : (objects,) uint64, ascending names, see `known_names`
    """
    for start in range(0, len(known), GROUP):
        first, last = known[start], known[start : start + GROUP][-1]
        parts = []
        for region in regions:
            rows = region.of_class(value)
            low, high = np.searchsorted(region.names[rows], [first, last + 1]).tolist()
            if low < high:
                table = pq.read_table(io.BytesIO(storage.read_bytes(region.url)))
                parts.append(table.slice(rows.start + low, high - low))
        yield pa.concat_tables(parts).sort_by("name")


def labelled(rows: pa.Table, first: int, schema: pa.Schema, key_values: Sequence[str | int]) -> pa.Table:
    """Convert sorted rows of regions to rows of ``objects.parquet``, whose labels count from `first`.

    The columns after the label are the same in both, in the same order.

    Parameters
    ----------
    key_values : values of the columns before the label: image, t, z (not of volumes), class
    """
    count = len(rows)
    columns = [pa.repeat(pa.scalar(value), count) for value in key_values]
    labels = pa.array(np.arange(first, first + count, dtype=np.uint64))
    measured = rows.drop_columns(["class", "name"]).combine_chunks().columns
    return pa.Table.from_arrays([*columns, labels, *measured], schema=schema)


@contextmanager
def table_writer(url: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write a table of any length part by part; it appears at `url` only when it is complete.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with whole_file(url) as sink, pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        yield writer


def unite(urls: Sequence[str], counts: Sequence[int], url: str, schema: pa.Schema) -> None:
    """Concatenate the tables of images, in order; columns of means that an image does not have are null.

    Parameters
    ----------
    urls, counts : of each image, the URL of its table and its number of rows
    schema : with the columns of means of all images
    """
    with table_writer(url, schema) as writer:
        waiting: list[pa.Table] = []
        rows = 0
        for table in _tables(urls, counts):
            waiting.append(_completed(table, schema))
            rows += len(table)
            if rows >= GROUP:
                writer.write_table(pa.concat_tables(waiting), row_group_size=GROUP)
                waiting, rows = [], 0
        if rows:
            writer.write_table(pa.concat_tables(waiting), row_group_size=GROUP)


def _tables(urls: Sequence[str], counts: Sequence[int]) -> Iterator[pa.Table]:
    """Yield the tables, read some ahead; a long one part by part."""

    def read(index: int) -> pa.Table | None:
        return pq.read_table(io.BytesIO(storage.read_bytes(urls[index]))) if counts[index] <= GROUP else None

    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(urls), _READERS):
            batch = range(start, min(start + _READERS, len(urls)))
            for index, table in zip(batch, pool.map(read, batch), strict=True):
                if table is not None:
                    yield table
                    continue
                fs, path = storage.filesystem(urls[index])
                with storage_errors(urls[index]), fs.open(path, "rb") as source:
                    file = pq.ParquetFile(source)
                    yield from (file.read_row_group(group) for group in range(file.num_row_groups))


def _completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    have = set(table.column_names)
    columns = [table[f.name] if f.name in have else pa.nulls(len(table), f.type) for f in schema]
    return pa.Table.from_arrays(columns, schema=schema)
