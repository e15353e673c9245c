"""The tasks for the connected components of volumes: as `chorus.cluster.objects.tasks.stages` for planes, in blocks.

A block is a region of the run, which is a shard of the label images.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chorus.cluster.objects.job import VolumePiecesJob
from chorus.cluster.objects.records import ImageObjects
from chorus.cluster.objects.tasks.components import joined_names, read_edges, write_pieces
from chorus.cluster.objects.tasks.finding import columns_of, write_names
from chorus.cluster.objects.tasks.numbering import Numbered, counted_objects, write_numbered, write_numbers
from chorus.cluster.objects.tasks.rows import read_known, write_rows
from chorus.cluster.objects.tasks.stages import at_once
from chorus.cluster.objects.tasks.volumes import KEY, block_table, volume_schema
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.maps.objects import replaced
from chorus.pipeline.instances.shapes import LARGEST, shape_rows
from chorus.pipeline.instances.volumes.blocks import Box
from chorus.pipeline.instances.volumes.components import (
    BlockPieces,
    join_pieces,
    joined_sums,
    label_pieces,
    measured_volumes,
)
from chorus.pipeline.instances.volumes.stored import StoredVolume
from chorus.pipeline.io import storage
from chorus.pipeline.io.outputs.writer import open_labels
from chorus.pipeline.io.sources.reading import open_level, read_window
from chorus.pipeline.io.storage_failures import storage_errors


def find_all_pieces(job: VolumePiecesJob) -> ImageObjects:
    """Run all stages of an image of few blocks."""
    return at_once(job, find_pieces_of_block, number_components, label_components)


def find_pieces_of_block(job: VolumePiecesJob, index: int) -> None:
    """Write names and rows of the objects of a block, and the pieces of those that may go on in others.

    Raises
    ------
    ImageError
        If results or source cannot be read.
    OutputError
        If the result cannot be written.
    """
    if storage.exists(job.rows_url(index)):
        return
    place, columns = job.locate(index), columns_of(job)
    window = place.window
    box, stored = Box(*window.spans), StoredVolume(job.layout, place.t, least=job.least, anisotropy=1.0)

    def maps() -> list[NDArray[np.number]]:
        source = open_level(job.image.url, job.image.level_path)
        pixels = read_window(source, job.image.axes, place.t, 0, job.channels, window, strict=job.strict)
        return [*stored.maps(box, job.uncertainties), *pixels]

    pieces = dict[int, BlockPieces]()
    for value, name in job.classes:
        foreground = stored.foreground(box, value)
        pieces[value] = label_pieces(foreground, window, job.shape, maps, job.settings.minimum_size)
        write_names(job, name, place, pieces[value].names)
    if job.grid.count > 1:
        faces = {f"{value}-{side}": names for value, one in pieces.items() for side, names in one.faces.items()}
        write_pieces(job, index, {value: one.cut for value, one in pieces.items()}, faces)
    tables = [_whole_objects(job, one, window, value, columns) for value, one in pieces.items()]
    write_rows(job.rows_url(index), pa.concat_tables(tables))


def _whole_objects(
    job: VolumePiecesJob, pieces: BlockPieces, window: Window, value: int, columns: list[str]
) -> pa.Table:
    rows = measured_volumes(pieces.whole, job.shape, columns)
    names = rows["name"].to_numpy(np.uint64)

    def mask(index: int) -> NDArray[np.bool_] | None:
        box = boxes[index]
        return pieces.names[box.within(window)] == names[index] if box.pixels <= LARGEST else None

    boxes = _boxes(rows)
    return _table(job, rows, shape_rows(mask, len(rows), job.spacing), value, columns)


def _boxes(rows: pd.DataFrame) -> list[Window]:
    return [Window.of(*edges) for edges in rows[["z0", "z1", "y0", "y1", "x0", "x1"]].to_numpy(np.int64).tolist()]


def _table(job: VolumePiecesJob, rows: pd.DataFrame, shapes: pd.DataFrame, value: int, columns: list[str]) -> pa.Table:
    return block_table(pd.concat([rows, shapes], axis=1).assign(**{"class": value}), volume_schema(columns, KEY))


def number_components(job: VolumePiecesJob) -> None:
    """Join the pieces, and write the image's table with labels and its empty label images, after all blocks.

    Raises
    ------
    ImageError
        If the source's metadata do not describe its channels.
    OutputError
        If the result cannot be written.
    """
    write_numbered(job, volume_schema, _volumes(job))


def _volumes(job: VolumePiecesJob) -> Iterator[Numbered]:
    blocks = job.grid.count
    for t in range(job.image.planes[0]):
        urls = [job.rows_url(t * blocks + index) for index in range(blocks)]
        if blocks > 1:
            urls.append(_unite(job, t))
        yield Numbered(t, 0, (t,), urls)


def _unite(job: VolumePiecesJob, t: int) -> str:
    """Join the pieces of a time point; write the mapping to their objects, and return the URL of their rows."""
    first, blocks, columns, tables = t * job.grid.count, range(job.grid.count), columns_of(job), []
    url = job.rows_url(first).replace(".parquet", "-joined.parquet")
    with storage_errors(job.scratch):
        read = [pq.read_table(io.BytesIO(storage.read_bytes(job.pieces_url(first + index)))) for index in blocks]
    all_pieces = pa.concat_tables([one for one in read if len(one)] or read[:1], promote_options="default").to_pandas()
    for value, name in job.classes:
        pieces = all_pieces[all_pieces["class"] == value].drop(columns="class").reset_index(drop=True)

        def faces(index: int, value: int = value) -> dict[str, NDArray[np.uint64]]:
            sides = read_edges(job, first + index)
            return {f"{axis}{end}": sides[f"{value}-{axis}{end}"] for axis in "zyx" for end in (0, 1)}

        names = pieces["name"].to_numpy(np.uint64)
        objects = replaced(names, *join_pieces(job.grid, faces))
        sums = joined_sums(pieces, objects)
        large = (sums["volume"] >= job.settings.minimum_size).to_numpy(bool)
        objects[np.isin(objects, sums["name"][~large].to_numpy(np.uint64))] = 0
        rows = measured_volumes(sums[large].reset_index(drop=True), job.shape, columns)
        order = np.argsort(names)
        joined = np.stack([names[order], objects[order]])
        tables.append(_table(job, rows, _joined_shapes(job, t, name, rows, joined), value, columns))
        buffer = io.BytesIO()
        np.save(buffer, joined, allow_pickle=False)
        with storage_errors(job.joined_url(name, t, 0)):
            storage.write_bytes(job.joined_url(name, t, 0), buffer.getvalue())
    write_rows(url, pa.concat_tables(tables))
    return url


def _joined_shapes(
    job: VolumePiecesJob, t: int, name: str, rows: pd.DataFrame, joined: NDArray[np.uint64]
) -> pd.DataFrame:
    """Measure shapes of objects that span blocks, from the names of pieces that the blocks wrote."""
    boxes, names, stored = _boxes(rows), rows["name"].to_numpy(np.uint64), open_labels(job.scratch, 0, name)

    def mask(index: int) -> NDArray[np.bool_] | None:
        if boxes[index].pixels > LARGEST:
            return None
        at: dict[str, int | slice] = {"t": t} | {axis: span.slice for axis, span in boxes[index].by_axis.items()}
        with storage_errors(job.scratch):
            pieces = np.asarray(stored[tuple(at[axis] for axis in job.layout.axes)], dtype=np.uint64)
        voxels: NDArray[np.bool_] = replaced(pieces, *joined) == names[index]
        return voxels

    return shape_rows(mask, len(rows), job.spacing)


def label_components(job: VolumePiecesJob, index: int) -> None:
    """Write a block of the label images, after the image's objects are numbered.

    Raises
    ------
    OutputError
        If the names cannot be read, or the labels not written.
    """
    objects, place = counted_objects(job), job.locate(index)
    at: dict[str, int | slice] = {"t": place.t} | {axis: span.slice for axis, span in place.window.by_axis.items()}
    for _, name in job.classes:
        known = read_known(job.known_url(name, place.t, 0))
        with storage_errors(job.scratch):
            stored = open_labels(job.scratch, 0, name)[tuple(at[axis] for axis in job.layout.axes)]
        names = np.asarray(stored, dtype=np.uint64)
        if job.grid.count > 1:
            names = joined_names(job.joined_url(name, place.t, 0), names)
        write_numbers(job, objects.label_image(name), place.t, 0, place.window, names, known)
