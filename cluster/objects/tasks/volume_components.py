"""Pieces of the objects of volumes, connected components or of maps: per block, then joined.

A block of components is a region of the run, which is a shard of the label images; one of maps is that of their grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from chorus.cluster.objects.job import ObjectJob, VolumeMapJob, VolumePiecesJob
from chorus.cluster.objects.tasks.components import Mask, Masks, Union, boxes_of, read_edges, write_pieces
from chorus.cluster.objects.tasks.finding import columns_of, write_names
from chorus.cluster.objects.tasks.map_pieces import find_pieces, joined_maps, zones_of
from chorus.cluster.objects.tasks.rows import block_table, write_rows
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.maps.pieces import volume_pieces
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
from chorus.pipeline.io.sources.reading import open_level, read_window


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

    pieces, edges = dict[int, BlockPieces](), dict[str, NDArray[Any]]()
    for value, name in job.classes:
        if isinstance(job, VolumeMapJob):
            found = find_pieces(job, stored, value, name, index)
            pieces[value] = volume_pieces(found, window, maps, job.settings.minimum_size)
            edges |= zones_of(value, found)
        else:
            foreground = stored.foreground(box, value)
            pieces[value] = label_pieces(foreground, window, job.shape, maps, job.settings.minimum_size)
            edges |= {f"{value}-{side}": names for side, names in pieces[value].faces.items()}
        write_names(job, name, place, pieces[value].names)
    if job.grid.count > 1:
        write_pieces(job, index, {value: one.cut for value, one in pieces.items()}, edges)
    tables = [_whole_objects(job, one, window, value, columns) for value, one in pieces.items()]
    write_rows(job.rows_url(index), pa.concat_tables(tables))


def _whole_objects(
    job: VolumePiecesJob, pieces: BlockPieces, window: Window, value: int, columns: list[str]
) -> pa.Table:
    def masks(rows: pd.DataFrame) -> Mask:
        boxes, names = boxes_of(rows, window.axes), rows["name"].to_numpy(np.uint64)

        def mask(index: int) -> NDArray[np.bool_] | None:
            box = boxes[index]
            return pieces.names[box.within(window)] == names[index] if box.pixels <= LARGEST else None

        return mask

    return volume_table(job, pieces.whole, masks, value, columns)


def volume_table(job: VolumePiecesJob, sums: pd.DataFrame, masks: Masks, value: int, columns: list[str]) -> pa.Table:
    """Measure objects of a volume; see `chorus.cluster.objects.tasks.components.Union.table`."""
    rows = measured_volumes(sums, job.shape, columns)
    shapes = shape_rows(masks(rows), len(rows), job.spacing)
    return block_table(pd.concat([rows, shapes], axis=1), value, columns)


def joined_blocks(job: ObjectJob, first: int, value: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Find the components of a class that touch across faces; see `Union.join`.

    Returns
    -------
    names, objects : (n,) uint64
    """

    def faces(index: int) -> dict[str, NDArray[np.uint64]]:
        sides = read_edges(job, first + index)
        return {f"{axis}{end}": sides[f"{value}-{axis}{end}"] for axis in "zyx" for end in (0, 1)}

    return join_pieces(job.grid, faces)


VOLUMES = Union(joined_blocks, "volume", joined_sums, volume_table)
"""Of connected components of volumes."""
VOLUME_MAPS = Union(joined_maps, "volume", joined_sums, volume_table)
"""Of objects of maps in volumes."""
