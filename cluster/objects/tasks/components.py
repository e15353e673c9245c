"""Pieces of connected components before they become objects: per region, then per plane."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chorus.cluster.objects.job import MapJob, ObjectJob
from chorus.cluster.objects.tasks.rows import region_table, write_rows
from chorus.cluster.planning.planned_image import RegionPlace
from chorus.pipeline.instances.components import Edges, RegionPieces, join_pieces, joined_sums
from chorus.pipeline.instances.maps.objects import replaced
from chorus.pipeline.instances.measures import measured_rows, perimeter
from chorus.pipeline.instances.shapes import LARGEST, shape_rows
from chorus.pipeline.instances.table import insert_shapes
from chorus.pipeline.io import storage
from chorus.pipeline.io.outputs.writer import open_labels
from chorus.pipeline.io.storage_failures import storage_errors

Join = Callable[[ObjectJob, int, int], tuple[NDArray[np.uint64], NDArray[np.uint64]]]
"""Takes a job, the first region of a plane, and a class; returns the sorted names of the pieces that belong to another
one, and the name of the object of each."""
_SIDES = ("top", "bottom", "left", "right")


def write_pieces(
    job: ObjectJob, region: int, cut: Mapping[int, pd.DataFrame], edges: Mapping[str, NDArray[Any]]
) -> None:
    """Write a region's pieces of objects that may extend into other regions.

    Parameters
    ----------
    cut : sums of the pieces by class
    edges : what is needed to join them, see `edges_of`

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    sums = pd.concat([one.assign(**{"class": value}) for value, one in cut.items()], ignore_index=True)
    lists = pa.schema([(name, pa.list_(pa.float64())) for name in sums.columns if name.startswith("map:")])
    numbers = pa.Table.from_pandas(sums.drop(columns=lists.names), preserve_index=False)
    for name in lists.names:
        numbers = numbers.append_column(lists.field(name), pa.array(sums[name].tolist(), lists.field(name).type))
    write_rows(job.pieces_url(region), numbers.replace_schema_metadata())
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **edges)
    with storage_errors(job.edges_url(region)):
        storage.write_bytes(job.edges_url(region), buffer.getvalue())


def edges_of(pieces: Mapping[int, RegionPieces]) -> dict[str, NDArray[Any]]:
    """Return the names of components along a region's borders, by class and side."""
    return {f"{value}-{side}": getattr(one.edges, side) for value, one in pieces.items() for side in _SIDES}


def read_edges(job: ObjectJob, region: int) -> dict[str, NDArray[Any]]:
    """Return what `write_pieces` wrote to join the pieces of a region."""
    with storage_errors(job.scratch):
        content = io.BytesIO(storage.read_bytes(job.edges_url(region)))
    with np.load(content, allow_pickle=False) as edges:
        return dict(edges)


def unite_pieces(job: ObjectJob, first: int, columns: list[str], join: Join) -> str:
    """Join pieces into objects, in the plane whose first region is `first`.

    The mapping from names of pieces to names of objects is written as well.

    Parameters
    ----------
    columns : names of the columns of means
    join : finds the pieces of a class that belong together

    Returns
    -------
    URL of the rows of these objects, in the format of a region's rows

    Raises
    ------
    OutputError
        If the pieces cannot be read, or the objects not written.
    """
    location, grid = job.locate(first), job.grid
    url, tables = job.rows_url(first).replace(".parquet", "-joined.parquet"), []
    with storage_errors(job.scratch):
        read = [pq.read_table(io.BytesIO(storage.read_bytes(job.pieces_url(first + i)))) for i in range(grid.count)]
    all_pieces = pa.concat_tables([one for one in read if len(one)] or read[:1], promote_options="default").to_pandas()
    for value, name in job.classes:
        pieces = all_pieces[all_pieces["class"] == value].drop(columns="class").reset_index(drop=True)
        objects = replaced(pieces["name"].to_numpy(np.uint64), *join(job, first, value))
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
        pixels: NDArray[np.bool_] = replaced(stored, *joined) == objects[index]
        return pixels

    boxes, objects = rows[["y0", "x0", "y1", "x1"]].to_numpy(np.int64).tolist(), rows["name"].to_numpy(np.uint64)
    names = open_labels(job.scratch, 0, name)
    if isinstance(job, MapJob):  # where blocks meet, pieces do not say which borders are those of the object
        rows = rows.assign(perimeter=[perimeter(mask(index)) for index in range(len(rows))])
    return insert_shapes(rows, shape_rows(mask, len(rows), job.spacing))


def joined_components(job: ObjectJob, first: int, value: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Find the components of a class that touch across borders; see `Join`.

    Returns
    -------
    names, objects : (n,) uint64
    """

    def edges(index: int) -> Edges:
        sides = read_edges(job, first + index)
        return Edges(*(sides[f"{value}-{side}"] for side in _SIDES))

    return join_pieces(job.grid, edges)


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
    return replaced(names, pieces, objects)
