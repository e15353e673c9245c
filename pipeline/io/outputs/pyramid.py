"""The coarser levels of an image's results, one destination shard at a time.

A shard of a level is computed from the at most four shards of the finer level that it covers, and has one
writer, so any number of shards of a level may be written at once, in any order, and again::

    level - 1                          level
    +-----------+-----------+          +-----------+
    |  shard 0  |  shard 1  |          |  0  |  1  |
    +-----------+-----------+   -->    |-----+-----|   one shard, one put
    |  shard 2  |  shard 3  |          |  2  |  3  |
    +-----------+-----------+          +-----------+

Only y and x are halved, rounded up; also of volumes. The posterior is the mean of 2 x 2 pixels (of those that
exist at an odd edge), labels are the upper left of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import RegionGrid, Span, Window
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.outputs.arrays import LabelImage, posterior_axes, region_grid, semantic_labels
from chorus.pipeline.io.outputs.writer import open_labels, open_posterior, write_labels, write_region
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.io.stored_files import StoredFiles


@dataclass(frozen=True, slots=True)
class PyramidShard:
    """One shard to be made.

    Attributes
    ----------
    level : 1 or more
    t, z : the plane; 0 where the image has no such axis, or the window has a z axis of its own
    window : what it covers, in pixels of `level`
    """

    level: int
    t: int
    z: int
    window: Window


def pyramid_shards(layout: ImageLayout, level: int) -> Iterator[PyramidShard]:
    """Yield the shards of `level`, plane by plane and row by row; all need `level` - 1 to be complete."""
    lengths = dict(zip(layout.axes, layout.shape, strict=True))
    grid = region_grid(layout, level)
    depths = 1 if layout.region_depth else lengths.get("z", 1)
    for t in range(lengths.get("t", 1)):
        for z in range(depths):
            for index in range(grid.count):
                yield PyramidShard(level, t, z, grid.window(index))


def write_pyramid_shard(layout: ImageLayout, shard: PyramidShard) -> StoredFiles:
    """Compute one shard of posterior and labels from the level below it and write it; may be repeated.

    Returns the files that were written, by path below the image's group.

    Raises
    ------
    RefusedError : the finer level has no arrays
    OutputError : storage does not give or take it
    """
    posterior = _coarser_posterior(layout, shard) if layout.channels else None
    labels = _coarser_labels(layout, semantic_labels(layout), shard)
    return write_region(layout, shard.t, shard.z, shard.window, posterior, labels, level=shard.level)


def write_pyramid(layout: ImageLayout) -> StoredFiles:
    """Write every level after the first, in order; return the files that were written."""
    files: StoredFiles = {}
    for level in range(1, layout.levels):
        for shard in pyramid_shards(layout, level):
            files |= write_pyramid_shard(layout, shard)
    return files


def write_label_pyramid(layout: ImageLayout, label: LabelImage) -> StoredFiles:
    """Write the pyramid of one label image alone, as `write_pyramid` does."""
    files: StoredFiles = {}
    for level in range(1, layout.levels):
        for shard in pyramid_shards(layout, level):
            labels = _coarser_labels(layout, label, shard)
            files |= write_labels(layout, label, level, shard.t, shard.z, shard.window, labels)
    return files


def _coarser_posterior(layout: ImageLayout, shard: PyramidShard) -> NDArray[Any]:
    finer, channels = shard.level - 1, len(layout.channels)
    posterior = np.zeros((channels, *shard.window.shape), layout.dtype)
    with storage_errors(layout.url):
        array = open_posterior(layout.url, finer)
        for piece, source in pieces(region_grid(layout, finer), shard.window):
            fine = _read(array, posterior_axes(layout), shard, source).reshape(channels, *source.shape)
            for channel in range(channels):
                posterior[channel][..., *piece] = half(fine[channel])
    return posterior


def _coarser_labels(layout: ImageLayout, label: LabelImage, shard: PyramidShard) -> NDArray[np.integer[Any]]:
    finer = shard.level - 1
    labels = np.zeros(shard.window.shape, label.dtype)
    with storage_errors(layout.labels_url):
        array = open_labels(layout.labels_url, finer, label.name)
        for piece, source in pieces(region_grid(layout, finer), shard.window):
            labels[..., *piece] = nearest_half(_read(array, layout.axes, shard, source).reshape(source.shape))
    return labels


def half(plane: NDArray[Any]) -> NDArray[Any]:
    """Halve planes by the mean of 2 x 2 pixels, in its own dtype: integers are rounded, halves up.

    Floating-point pixels are rounded once: float32 does not hold the sum of any four of float16.

    Parameters
    ----------
    plane : (..., y, x) of any dtype

    Returns
    -------
    NDArray
        (..., y / 2, x / 2), rounded up, of the dtype of `plane`; an odd last row or column is averaged alone.
    """
    # Repeating the last row or column of an odd edge leaves the mean of what exists, exactly.
    odd = [(0, 0)] * (plane.ndim - 2) + [(0, length % 2) for length in plane.shape[-2:]]
    is_float = plane.dtype.kind == "f"
    even = np.pad(plane, odd, mode="edge").astype(np.float64 if is_float else np.int64)
    total = (even[..., 0::2, 0::2] + even[..., 0::2, 1::2]) + (even[..., 1::2, 0::2] + even[..., 1::2, 1::2])
    return (total / 4 if is_float else (total + 2) // 4).astype(plane.dtype)


def nearest_half(plane: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Halve planes of labels by their upper left pixels of 2 x 2.

    Parameters
    ----------
    plane : (..., y, x) labels of any integer dtype

    Returns
    -------
    NDArray
        (..., y / 2, x / 2), rounded up, a view.
    """
    return plane[..., ::2, ::2]


def pieces(fine: RegionGrid, window: Window) -> Iterator[tuple[tuple[slice, slice], Window]]:
    """Yield parts of a destination `window`, (y, x) in its own pixels, each with its source window in the finer level.

    With an even region that is one shard of the finer level: one object read whole, one in memory at a time.
    """
    parts = RegionGrid.make(window.plane.shape, max(1, fine.sizes[-1] // 2))
    fine_height, fine_width = fine.shape[-2:]
    for index in range(parts.count):
        part = parts.window(index)
        y, x = 2 * (window.y.start + part.y.start), 2 * (window.x.start + part.x.start)
        height, width = part.shape
        rows, columns = Span(y, min(y + 2 * height, fine_height)), Span(x, min(x + 2 * width, fine_width))
        yield (part.y.slice, part.x.slice), Window(*window.spans[:-2], rows, columns)


def _read(array: zarr.Array[Any], axes: str, shard: PyramidShard, window: Window) -> NDArray[Any]:
    """Read all channels of a window of the shard's plane or volume, of the finer level."""
    at = {"t": slice(shard.t, shard.t + 1), "z": slice(shard.z, shard.z + 1), "c": slice(None)}
    at |= {axis: span.slice for axis, span in window.by_axis.items()}
    return np.asarray(array[tuple(at[axis] for axis in axes)])
