"""Pieces of the objects of maps: those of a block, and which of them belong together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.cluster.objects.job import MapJob, ObjectJob, VolumeMapJob
from chorus.cluster.objects.tasks.components import Union, plane_table, read_edges
from chorus.pipeline.instances.components import joined_sums
from chorus.pipeline.instances.maps.blocks import Face
from chorus.pipeline.instances.maps.joining import BlockPieces, Zone, block_pieces, same_objects, united_names
from chorus.pipeline.instances.maps.rules import label_box
from chorus.pipeline.instances.maps.stored import StoredMaps
from chorus.pipeline.instances.stored import StoredPlane
from chorus.pipeline.instances.volumes.stored import StoredVolume


def find_pieces(
    job: MapJob | VolumeMapJob, stored: StoredPlane | StoredVolume, value: int, name: str, index: int
) -> BlockPieces:
    """Find the pieces of a class in block `index` of an image.

    Parameters
    ----------
    stored : plane or volume of the block
    value, name : of the class

    Raises
    ------
    ImageError
        If the results cannot be decoded.
    """
    blocks, position = job.blocks, index % job.grid.count
    maps = StoredMaps(stored, job.sources, value, name)
    return block_pieces(label_box(maps, blocks.outer(position), job.maps), blocks, position)


def zones_of(value: int, pieces: BlockPieces) -> dict[str, NDArray[Any]]:
    """Return the zones of a block as arrays, by class, face and content."""
    arrays: dict[str, NDArray[Any]] = {}
    for face, zone in pieces.zones.items():
        key = _key(value, face)
        arrays |= {f"{key}-names": zone.names, f"{key}-seeds": zone.seeds}
    return arrays


def joined_maps(job: ObjectJob, first: int, value: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Find the pieces of a class that belong together; see `chorus.cluster.objects.tasks.components.Union.join`.

    Returns
    -------
    names, objects : (n,) uint64
    """
    assert isinstance(job, MapJob | VolumeMapJob)
    return united_names(_pairs(job, first, value))


MAPS = Union(joined_maps, "area", joined_sums, plane_table)
"""Of objects of maps in planes."""


def _pairs(job: MapJob | VolumeMapJob, first: int, value: int) -> Iterator[NDArray[np.uint64]]:
    """Yield pairs of pieces; the zones of two rows of blocks are held."""
    blocks, waiting = job.blocks, dict[Face, Zone]()
    for index in range(blocks.grid.count):
        arrays = read_edges(job, first + index)
        for face in blocks.faces(index):
            key = _key(value, face)
            zone = Zone(arrays[f"{key}-names"], arrays[f"{key}-seeds"])
            if face.second == index:
                yield same_objects(waiting.pop(face), zone)
            else:
                waiting[face] = zone


def _key(value: int, face: Face) -> str:
    return f"{value}-{face.axis}-{face.first}"
