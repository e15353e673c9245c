"""One row per object of a volume: position, size, shape, intensity and uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from chorus.pipeline.instances.shapes import CUBIC, Spacing, cut_out, shape_rows
from chorus.pipeline.instances.volumes.blocks import Box
from chorus.pipeline.instances.volumes.regions import BlockObjects


def volume_rows(
    objects: BlockObjects,
    block: Box,
    volume: tuple[int, int, int],
    maps: Sequence[str],
    read: Callable[[int], Sequence[NDArray[np.number]]],
    spacing: Spacing = CUBIC,
) -> pd.DataFrame:
    """Measure the objects whose first voxel, in the order z, y, x, is in the block: each object is in one block's rows.

    Parameters
    ----------
    objects : of `chorus.pipeline.instances.volumes.regions.label_block`
    block : box of the block
    volume : shape of the volume
    maps : names of the maps whose means are measured
    read : returns these maps for a plane of the crop by its index, (y, x) each; called for planes with such objects
        alone
    spacing : of the voxels

    Returns
    -------
    pandas.DataFrame
        Columns: ``name`` (uint64, of the anchor), ``volume`` (voxels), ``z0 y0 x0 z1 y1 x1`` (bounding box, half-open),
        ``z y x`` (centroid, voxels), those of `chorus.pipeline.instances.shapes.shape_rows`, ``touches_border``,
        ``flow_error`` (NaN) and the means; sorted by name. Sums are taken plane by plane over the object alone, so that
        they are the same in every crop.
    """
    chosen = _first_voxels_inside(objects, block)
    numbers = np.zeros(len(objects.anchors), np.int32)
    numbers[chosen] = np.arange(1, len(chosen) + 1)
    labels, count = numbers[objects.around], len(chosen)
    boxes = ndimage.find_objects(labels, count)
    sides = np.array([[side for part in box for side in (part.start, part.stop)] for box in boxes], np.int64)
    sides = (
        sides.reshape(count, 3, 2)
        + np.array([objects.crop.z.start, objects.crop.y.start, objects.crop.x.start])[:, None]
    )
    sums, totals = np.zeros((4, count + 1), np.int64), np.zeros((len(maps), count + 1))
    for z, plane in enumerate(labels):
        pixels = np.flatnonzero(plane)
        if not len(pixels):
            continue
        number, (y, x) = plane.ravel()[pixels], np.divmod(pixels, plane.shape[1])
        counts = np.bincount(number, minlength=count + 1)
        sums += np.stack([counts, z * counts, *(_sums(number, values, count) for values in (y, x))])
        for total, values in zip(totals, read(z) if maps else (), strict=True):
            total += np.bincount(number, values.ravel()[pixels].astype(np.float64), minlength=count + 1)
    voxels = sums[0, 1:]
    rows = pd.DataFrame({"name": objects.anchors[chosen], "volume": voxels})
    for end, suffix in enumerate("01"):
        for axis, letter in enumerate("zyx"):
            rows[letter + suffix] = sides[:, axis, end]
    starts = (objects.crop.z.start, objects.crop.y.start, objects.crop.x.start)
    for total, letter, start in zip(sums[1:, 1:], "zyx", starts, strict=True):
        # Relative to the volume's origin before the division: the same number in every crop.
        rows[letter] = (total + start * voxels) / voxels
    shapes = shape_rows(lambda index: cut_out(labels, index + 1, boxes[index]), count, spacing)
    rows[list(shapes.columns)] = shapes
    rows["touches_border"] = ((sides[..., 0] == 0) | (sides[..., 1] == np.array(volume))).any(axis=1)
    rows["flow_error"] = np.nan
    for name, total in zip(maps, totals, strict=True):
        rows[name] = total[1:] / voxels
    return rows


def _sums(number: NDArray[np.int32], values: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Sum integers by number; exact, since those of a plane are far below 2**53."""
    return np.bincount(number, values, minlength=count + 1).astype(np.int64)


def _first_voxels_inside(objects: BlockObjects, block: Box) -> NDArray[np.int64]:
    """Return the objects whose first voxel in row-major order is in the block, sorted by their names."""
    first = np.full(len(objects.anchors), -1, np.int64)
    size = objects.around[0].size
    for plane in range(len(objects.around) - 1, -1, -1):
        flat = objects.around[plane].ravel()
        pixels = np.flatnonzero(flat)[::-1]
        first[flat[pixels]] = plane * size + pixels  # the last to be written is the first voxel
    places = np.unravel_index(np.maximum(first, 0), objects.around.shape)
    crops, blocks = (objects.crop.z, objects.crop.y, objects.crop.x), (block.z, block.y, block.x)
    inside = first >= 0
    for voxels, crop, own in zip(places, crops, blocks, strict=True):
        inside &= (voxels + crop.start >= own.start) & (voxels + crop.start < own.stop)
    chosen = np.flatnonzero(inside)
    result: NDArray[np.int64] = chosen[np.argsort(objects.anchors[chosen])]
    return result
