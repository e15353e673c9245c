"""Pieces of connected components before they become objects: per region, then per plane."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chorus.cluster.objects.job import ObjectJob
from chorus.cluster.objects.rows import region_table, write_rows
from chorus.cluster.planning.image_table import RegionPlace
from chorus.pipeline.core.geometry import RegionGrid
from chorus.pipeline.instances.components import Edges, RegionPieces, join_pieces, joined_sums
from chorus.pipeline.instances.measures import measured_rows
from chorus.pipeline.instances.shapes import LARGEST, shape_rows
from chorus.pipeline.instances.table import insert_shapes
from chorus.pipeline.io import storage
from chorus.pipeline.io.outputs.writer import open_labels
from chorus.pipeline.io.storage_failures import storage_errors

_SIDES = ("top", "bottom", "left", "right")


def write_pieces(job: ObjectJob, region: int, pieces: Mapping[int, RegionPieces]) -> None:
    """Write a region's pieces of objects that may extend into other regions.

    Parameters
    ----------
    pieces : pieces by class

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    cut = pd.concat([one.cut.assign(**{"class": value}) for value, one in pieces.items()], ignore_index=True)
    lists = pa.schema([(name, pa.list_(pa.float64())) for name in cut.columns if name.startswith("map:")])
    numbers = pa.Table.from_pandas(cut.drop(columns=lists.names), preserve_index=False)
    for name in lists.names:
        numbers = numbers.append_column(lists.field(name), pa.array(cut[name].tolist(), lists.field(name).type))
    write_rows(job.pieces_url(region), numbers.replace_schema_metadata())
    sides = {f"{value}-{side}": getattr(one.edges, side) for value, one in pieces.items() for side in _SIDES}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **sides)
    with storage_errors(job.edges_url(region)):
        storage.write_bytes(job.edges_url(region), buffer.getvalue())


def unite_pieces(job: ObjectJob, first: int, columns: list[str]) -> str:
    """Join pieces that touch across borders into objects, in the plane whose first region is `first`.

    The mapping from names of pieces to names of objects is written as well.

    Parameters
    ----------
    columns : names of the columns of means

    Returns
    -------
    URL of the rows of these objects, in the format of a region's rows

    Raises
    ------
    OutputError
        If the pieces cannot be read, or the objects not written.
    """
    location, grid = job.image.locate(first), job.image.grid
    url, tables = job.rows_url(first).replace(".parquet", "-joined.parquet"), []
    with storage_errors(job.scratch):
        read = [pq.read_table(io.BytesIO(storage.read_bytes(job.pieces_url(first + i)))) for i in range(grid.count)]
    all_pieces = pa.concat_tables([one for one in read if len(one)] or read[:1], promote_options="default").to_pandas()
    for value, name in job.classes:
        pieces = all_pieces[all_pieces["class"] == value].drop(columns="class").reset_index(drop=True)
        objects = _objects_of(job, first, grid, value, pieces["name"].to_numpy(np.uint64))
        sums = joined_sums(pieces, objects)
        large = (sums["area"] >= job.settings.minimum_size).to_numpy(bool)
        objects[np.isin(objects, sums["name"][~large].to_numpy(np.uint64))] = 0
        rows = measured_rows(sums[large].reset_index(drop=True), job.plane, columns)
        order = np.argsort(pieces["name"].to_numpy(np.uint64))
        joined = np.stack([pieces["name"].to_numpy(np.uint64)[order], objects[order]])
        tables.append(region_table(_with_shapes(job, location, name, rows, joined), value, columns))
        buffer = io.BytesIO()
        np.save(buffer, joined, allow_pickle=False)
        joined_url = job.joined_url(name, location.t, location.z)
        with storage_errors(joined_url):
            storage.write_bytes(joined_url, buffer.getvalue())
    write_rows(url, pa.concat_tables(tables))
    return url


def _with_shapes(
    job: ObjectJob, location: RegionPlace, name: str, rows: pd.DataFrame, joined: NDArray[np.uint64]
) -> pd.DataFrame:
    """Add their shapes to `rows` of objects that span regions, from the names of pieces that the regions wrote.

    Parameters
    ----------
    joined : (2, pieces) uint64 names of pieces, sorted, and of their objects
    """

    def mask(index: int) -> NDArray[np.bool_] | None:
        y0, x0, y1, x1 = boxes[index]
        if (y1 - y0) * (x1 - x0) > LARGEST:
            return None
        at: dict[str, int | slice] = {"t": location.t, "z": location.z, "y": slice(y0, y1), "x": slice(x0, x1)}
        with storage_errors(job.scratch):
            stored = np.asarray(names[tuple(at[axis] for axis in job.layout.axes)], dtype=np.uint64)
        pixels: NDArray[np.bool_] = _replaced(stored, *joined) == objects[index]
        return pixels

    boxes, objects = rows[["y0", "x0", "y1", "x1"]].to_numpy(np.int64).tolist(), rows["name"].to_numpy(np.uint64)
    names = open_labels(job.scratch, 0, name)
    return insert_shapes(rows, shape_rows(mask, len(rows), job.spacing))


def _objects_of(
    job: ObjectJob, first: int, grid: RegionGrid, value: int, names: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Return the names of the objects to which pieces belong.

    Parameters
    ----------
    names : (pieces,) uint64

    Returns
    -------
    (pieces,) uint64
    """

    def edges(index: int) -> Edges:
        with storage_errors(job.scratch):
            content = io.BytesIO(storage.read_bytes(job.edges_url(first + index)))
        with np.load(content, allow_pickle=False) as sides:
            return Edges(*(sides[f"{value}-{side}"] for side in _SIDES))

    return _replaced(names, *join_pieces(grid, edges))


def joined_names(url: str, names: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Replace names of pieces by names of objects.

    Parameters
    ----------
    url : of `ObjectJob.joined_url`
    names : (y, x) uint64 names of pieces, 0 for background

    Returns
    -------
    (y, x) uint64 names of objects, 0 for background and for objects that are too small

    Raises
    ------
    OutputError
        If the mapping cannot be read.
    """
    with storage_errors(url):
        pieces, objects = np.load(io.BytesIO(storage.read_bytes(url)), allow_pickle=False)
    return _replaced(names, pieces, objects)


def _replaced(names: NDArray[np.uint64], old: NDArray[np.uint64], new: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Replace in `names` each of `old`, which is sorted, by the `new` one at the same index.

    Parameters
    ----------
    names : (...) uint64
    old, new : (n,) uint64
    """
    if not len(old):
        return names.copy()
    positions = np.minimum(np.searchsorted(old, names), len(old) - 1)
    return np.where(old[positions] == names, new[positions], names)
