"""The stored arrays of one image's results: their form, where they lie in its group, and the bytes of their shards.

::

    s0, s1, ...                  posterior, levels 0, 1, ...: channels whole, regions of the plane as shards
    labels/<name>/s0, ...        label images, the same regions

A region of a plane, or of a volume, and a shard of its arrays are the same window, so that one region is one object per
array.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from chorus.pipeline.core.geometry import RegionGrid
from chorus.pipeline.io.models import ClassInfo, ImageLayout

LABEL_NAME = "semantic"

# Measured on a float16 posterior of 5 x 2048 x 2048: level 3 takes 1.6 times as long to write as level 1 and is
# 2 % smaller; for labels level 1 is both faster and smaller.
ZSTD_LEVEL = 1


@dataclass(frozen=True, slots=True)
class LabelImage:
    """One of the label images of an image.

    Attributes
    ----------
    name : it lies in ``labels/<name>``
    dtype : NumPy name
    classes : what its values 0, 1, ... mean; empty where they number objects
    """

    name: str
    dtype: str
    classes: tuple[ClassInfo, ...] = ()

    @property
    def path(self) -> str:
        """Below the group that holds ``labels``."""
        return f"labels/{self.name}"


@dataclass(frozen=True, slots=True)
class ArrayPlan:
    """Everything that defines a stored array; `path` is relative to its image's group, `axes` name the dimensions.

    `shards` is None for Zarr v2, which has none: each chunk is an object there.
    """

    path: str
    axes: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: str

    def create(self, objects: dict[str, Any], *, empty: bool = False) -> zarr.Array[Any]:
        """Return the array, empty, in memory: `objects` gets its documents and, when it is written to, its shards.

        With `empty` those of zeros, too.
        """
        common: dict[str, Any] = {
            "store": objects,
            "shape": self.shape,
            "chunks": self.chunks,
            "dtype": self.dtype,
            "fill_value": 0,
            "config": {"write_empty_chunks": empty},
        }
        if self.shards is None:
            # Blosc rather than plain zstd: readers of NGFF 0.4 in Java know no other zstd.
            common["compressors"] = {"id": "blosc", "cname": "zstd", "clevel": ZSTD_LEVEL, "shuffle": 0}
            common["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
            return zarr.create_array(**common, zarr_format=2)
        common["compressors"] = ZstdCodec(level=ZSTD_LEVEL)
        return zarr.create_array(**common, shards=self.shards, dimension_names=list(self.axes), zarr_format=3)

    def documents(self) -> dict[str, bytes]:
        """Return the array's metadata files, by path below the image's group."""
        return dict(_documents(self))

    def encode(
        self, selection: tuple[slice, ...], values: NDArray[Any], *, empty: bool = False
    ) -> dict[str, bytes | None]:
        """Return the objects that hold `selection`, by path below the image's group.

        One that is all zero is None, except with `empty`.

        Parameters
        ----------
        selection : one slice per axis; it must cover whole shards (or reach the array's end): what else is in them
            becomes zero
        values : of the shape of `selection`, cast to the array's dtype

        Returns
        -------
        dict[str, bytes | None]
            Objects by path below the image's group; None for one that is all zero.
        """
        objects: dict[str, Any] = {}
        array = self.create(objects, empty=empty)
        array[selection] = values
        edges = self.shards or self.chunks
        touched = (
            range(part.start // edge, -(-part.stop // edge)) for part, edge in zip(selection, edges, strict=True)
        )
        keys = (array.metadata.encode_chunk_key(index) for index in itertools.product(*touched))
        return {f"{self.path}/{key}": objects[key].to_bytes() if key in objects else None for key in keys}


@lru_cache(maxsize=512)
def _documents(plan: ArrayPlan) -> dict[str, bytes]:
    """Return what `ArrayPlan.documents` does; the images of a screen have the same arrays."""
    objects: dict[str, Any] = {}
    plan.create(objects)
    return {f"{plan.path}/{key}": value.to_bytes() for key, value in objects.items()}


def chunk_edge(length: int, chunk: int) -> int:
    """Return a chunk's edge on an axis of `length` pixels: `chunk`, or less (a multiple of 16) if that is enough."""
    return min(chunk, -(-length // 16) * 16)


def shard_edge(length: int, chunk: int, region: int) -> int:
    """Return a shard's edge on an axis of `length` pixels: `region`, or the chunks that a shorter axis needs.

    So the regions of the plane and its shards are the same windows. Raises ValueError where `region` is no
    multiple of `chunk`.
    """
    if region % chunk:
        raise ValueError(f"region {region} is no multiple of chunk {chunk}")
    edge = chunk_edge(length, chunk)
    return region if length > region else -(-length // edge) * edge


def depth_edges(length: int, chunk: int, region: int) -> tuple[int, int]:
    """Return the edges of a chunk and of a shard on the z axis of a volume of `length` planes, as on the others."""
    if region % chunk:
        raise ValueError(f"region {region} is no multiple of chunk {chunk}")
    edge = min(chunk, length)
    return edge, region if length > region else -(-length // edge) * edge


def region_grid(layout: ImageLayout, level: int) -> RegionGrid:
    """Return the grid of shards of pyramid `level`: a plane, halved `level` times (rounded up), in regions.

    Where regions are blocks of a volume: all of its planes, each halved so often.
    """
    plane = RegionGrid.make((-(-layout.height // 2**level), -(-layout.width // 2**level)), layout.region)
    if not layout.region_depth:
        return plane
    depth = dict(zip(layout.axes, layout.shape, strict=True))["z"]
    return RegionGrid((depth, *plane.shape), (layout.region_depth, *plane.sizes))


def posterior_axes(layout: ImageLayout) -> str:
    """Return the letters of the posterior's axes: the image's, with ``c`` inserted after ``t`` if there is one."""
    return f"tc{layout.axes[1:]}" if layout.axes.startswith("t") else f"c{layout.axes}"


def posterior_plan(layout: ImageLayout, level: int) -> ArrayPlan:
    """Plan the posterior's array of a pyramid level."""
    return _plan(layout, level, f"s{level}", posterior_axes(layout), layout.dtype, sharded=True)


def semantic_labels(layout: ImageLayout) -> LabelImage:
    """Return the label image of the predicted classes."""
    return LabelImage(LABEL_NAME, "uint8" if len(layout.classes) <= 256 else "uint16", layout.classes)


def label_plan(layout: ImageLayout, label: LabelImage, level: int) -> ArrayPlan:
    """Plan a label image's array of a pyramid level; sharded in NGFF 0.5 only."""
    sharded = layout.labels_ngff == "0.5"
    return _plan(layout, level, f"{label.path}/s{level}", layout.axes, label.dtype, sharded=sharded)


def _plan(layout: ImageLayout, level: int, path: str, axes: str, dtype: str, *, sharded: bool) -> ArrayPlan:
    height, width = region_grid(layout, level).shape[-2:]
    channels = len(layout.channels)
    lengths = dict(zip(layout.axes, layout.shape, strict=True)) | {"c": channels, "y": height, "x": width}
    return plan_array(
        path,
        axes,
        lengths,
        dtype,
        chunk=layout.chunk,
        region=layout.region,
        channels=channels,
        sharded=sharded,
        depths=(layout.chunk_depth, layout.region_depth) if layout.region_depth else None,
    )


def plan_array(
    path: str,
    axes: str,
    lengths: Mapping[str, int],
    dtype: str,
    *,
    chunk: int,
    region: int,
    channels: int,
    sharded: bool = True,
    depths: tuple[int, int] | None = None,
) -> ArrayPlan:
    """Plan an array of `axes` and `lengths` whose shards hold `channels` channels of a region of one plane.

    With `depths`, the planes of a chunk and of a region, of a region of a volume.
    """
    edges = {axis: chunk_edge(lengths[axis], chunk) for axis in "yx"}
    shards = {axis: shard_edge(lengths[axis], chunk, region) for axis in "yx"} | {"c": channels}
    if depths is not None:
        edges["z"], shards["z"] = depth_edges(lengths["z"], *depths)
    return ArrayPlan(
        path,
        axes,
        tuple(lengths[axis] for axis in axes),
        tuple(edges.get(axis, 1) for axis in axes),
        tuple(shards.get(axis, 1) for axis in axes) if sharded else None,
        dtype,
    )
