"""Pieces of connected components before they become objects: per region, then per plane."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chorus.cluster.objects.job import MapJob, ObjectJob
from chorus.cluster.objects.tasks.rows import region_table, write_rows
from chorus.cluster.planning.planned_image import RegionPlace
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.components import Edges, RegionPieces, join_pieces, joined_sums
from chorus.pipeline.instances.maps.objects import replaced
from chorus.pipeline.instances.measures import measured_rows, perimeter
from chorus.pipeline.instances.shapes import LARGEST, shape_rows
from chorus.pipeline.instances.table import insert_shapes
from chorus.pipeline.io import storage
from chorus.pipeline.io.outputs.writer import open_labels
from chorus.pipeline.io.storage_failures import storage_errors

Mask = Callable[[int], NDArray[np.bool_] | None]
"""Takes the index of an object; returns its mask in its bounding box, or None if that is too large."""
Masks = Callable[[pd.DataFrame], Mask]
"""Takes rows of objects."""
_SIDES = ("top", "bottom", "left", "right")


@dataclass(frozen=True)
class Union:
    """How pieces become objects: those of planes, of maps, of volumes.

    Attributes
    ----------
    join : takes a job, the first region of a plane or volume, and a class; returns the sorted names of the pieces that
        belong to another one, and the name of the object of each
    size : column of the number of pixels
    sums : takes pieces and the name of the object of each; returns a row per object, sorted by name
    table : takes a job, sums by object, what gives masks of rows, the class, and columns of means; returns the table
        of a region
    """

    join: Callable[[ObjectJob, int, int], tuple[NDArray[np.uint64], NDArray[np.uint64]]]
    size: str
    sums: Callable[[pd.DataFrame, NDArray[np.uint64]], pd.DataFrame]
    table: Callable[[Any, pd.DataFrame, Masks, int, list[str]], pa.Table]


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


def unite_pieces(job: ObjectJob, first: int, columns: list[str], union: Union) -> str:
    """Join pieces into objects, in the plane or volume whose first region is `first`.

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
    place, grid = job.locate(first), job.grid
    url, tables = job.rows_url(first).replace(".parquet", "-joined.parquet"), []
    with storage_errors(job.scratch):
        read = [pq.read_table(io.BytesIO(storage.read_bytes(job.pieces_url(first + i)))) for i in range(grid.count)]
    all_pieces = pa.concat_tables([one for one in read if len(one)] or read[:1], promote_options="default").to_pandas()
    for value, name in job.classes:
        pieces = all_pieces[all_pieces["class"] == value].drop(columns="class").reset_index(drop=True)
        names = pieces["name"].to_numpy(np.uint64)
        objects = replaced(names, *union.join(job, first, value))
        sums = union.sums(pieces, objects)
        large = (sums[union.size] >= job.settings.minimum_size).to_numpy(bool)
        objects[np.isin(objects, sums["name"][~large].to_numpy(np.uint64))] = 0
        order = np.argsort(names)
        joined = np.stack([names[order], objects[order]])
        masks = partial(_masks, job, place, name, joined)
        tables.append(union.table(job, sums[large].reset_index(drop=True), masks, value, columns))
        buffer = io.BytesIO()
        np.save(buffer, joined, allow_pickle=False)
        joined_url = job.joined_url(name, place.t, place.z)
        with storage_errors(joined_url):
            storage.write_bytes(joined_url, buffer.getvalue())
    write_rows(url, pa.concat_tables(tables))
    return url


def boxes_of(rows: pd.DataFrame, axes: str) -> list[Window]:
    """Return the bounding boxes of objects, from the columns of their edges along `axes`."""
    edges = rows[[f"{axis}{end}" for axis in axes for end in (0, 1)]]
    return [Window.of(*one) for one in edges.to_numpy(np.int64).tolist()]


def reader_of_names(job: ObjectJob, name: str, place: RegionPlace) -> Callable[[Window], NDArray[np.uint64]]:
    """Open the names that the regions of a plane or volume wrote for a class.

    Returns
    -------
    Callable
        Takes a window, and returns the names in it, (y, x) or (z, y, x); raises OutputError if they cannot be read.
    """
    stored = open_labels(job.scratch, 0, name)

    def read(window: Window) -> NDArray[np.uint64]:
        at: dict[str, int | slice] = {"t": place.t, "z": place.z}
        at |= {axis: span.slice for axis, span in window.by_axis.items()}
        with storage_errors(job.scratch):
            return np.asarray(stored[tuple(at[axis] for axis in job.layout.axes)], dtype=np.uint64)

    return read


def _masks(job: ObjectJob, place: RegionPlace, name: str, joined: NDArray[np.uint64], rows: pd.DataFrame) -> Mask:
    """Return what gives the mask of each of `rows`, of objects that span regions.

    Parameters
    ----------
    joined : (2, pieces) uint64 names of pieces, sorted, and of their objects
    """
    boxes, objects = boxes_of(rows, place.window.axes), rows["name"].to_numpy(np.uint64)
    read = reader_of_names(job, name, place)

    def mask(index: int) -> NDArray[np.bool_] | None:
        if boxes[index].pixels > LARGEST:
            return None
        pixels: NDArray[np.bool_] = replaced(read(boxes[index]), *joined) == objects[index]
        return pixels

    return mask


def plane_table(job: ObjectJob, sums: pd.DataFrame, masks: Masks, value: int, columns: list[str]) -> pa.Table:
    """Measure joined objects of a plane; see `Union.table`."""
    rows = measured_rows(sums, job.plane, columns)
    mask = masks(rows)
    if isinstance(job, MapJob):  # where blocks meet, pieces do not say which borders are those of the object
        rows = rows.assign(perimeter=[perimeter(mask(index)) for index in range(len(rows))])
    return region_table(insert_shapes(rows, shape_rows(mask, len(rows), job.spacing)), value, columns)


def joined_components(job: ObjectJob, first: int, value: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Find the components of a class that touch across borders; see `Union.join`.

    Returns
    -------
    names, objects : (n,) uint64
    """

    def edges(index: int) -> Edges:
        sides = read_edges(job, first + index)
        return Edges(*(sides[f"{value}-{side}"] for side in _SIDES))

    return join_pieces(job.grid, edges)


PLANES = Union(joined_components, "area", joined_sums, plane_table)
"""Of connected components of planes."""


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
