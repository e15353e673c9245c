"""Write the ground truth of an image: a TIFF of labels, or an OME-Zarr with the label image ``semantic``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from io import BytesIO

import numpy as np
import tifffile
from numpy.typing import NDArray

from chorus.pipeline.consensus.annotations import Labels
from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.ensembles.spec import COLORS
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import ClassInfo, ImageLayout
from chorus.pipeline.io.outputs.pyramid import write_pyramid
from chorus.pipeline.io.outputs.writer import prepare_image, write_region
from chorus.pipeline.io.storage_failures import storage_errors

# Edges of the blocks and of the OME-Zarr's chunks; any value gives the same labels.
_REGION, _CHUNK = 2048, 512
# Beyond this a TIFF may need the offsets of BigTIFF.
_LARGE = 2**31

Estimate = Callable[[int, int, Window], NDArray[np.unsignedinteger]]
"""Returns the labels of time point t, plane z and a window, (y, x)."""


def places(drawing: Labels) -> Iterator[tuple[int, int, Window]]:
    """Yield time point, plane and window of every block."""
    lengths = drawing.lengths
    grid = RegionGrid.make((lengths["y"], lengths["x"]), _REGION)
    for t in range(lengths["t"]):
        for z in range(lengths["z"]):
            for index in range(grid.count):
                yield t, z, grid.window(index)


def write_pixels(drawings: Sequence[Labels], target: str, classes: int, estimate: Estimate) -> None:
    """Write labels 0 to `classes` - 1 (at most 255): block by block if `target` is an ``.ome.zarr``, else as a TIFF.

    Raises
    ------
    OutputError
        If storage does not accept them.
    """
    if target.endswith(".ome.zarr"):
        _write_zarr(drawings, target, classes, estimate)
        return
    first = drawings[0]
    values = np.zeros([first.lengths[axis] for axis in "tzyx"], np.uint8)
    for t, z, window in places(first):
        values[t, z, window.y.slice, window.x.slice] = estimate(t, z, window)
    _write_tiff(values.reshape(first.shape), first.axes, target)


def write_objects(labels: NDArray[np.int32], target: str) -> None:
    """Write objects as a TIFF.

    Parameters
    ----------
    labels : (y, x) int32, 0 is background
    target : URL of the file

    Raises
    ------
    OutputError
        If storage does not accept it.
    """
    _write_tiff(labels.astype(np.uint16 if labels.max() < 2**16 else np.uint32), "yx", target)


def _write_tiff(values: NDArray[np.unsignedinteger], axes: str, target: str) -> None:
    buffer = BytesIO()
    tifffile.imwrite(
        buffer,
        values,
        photometric="minisblack",
        compression="zlib",
        metadata={"axes": axes.upper()},
        bigtiff=values.nbytes > _LARGE,
    )
    with storage_errors(target):
        storage.write_bytes(target, buffer.getvalue())


def _write_zarr(drawings: Sequence[Labels], target: str, classes: int, estimate: Estimate) -> None:
    layout = _layout(drawings, target, classes)
    prepare_image(layout)
    for t, z, window in places(drawings[0]):
        write_region(layout, t, z, window, None, estimate(t, z, window))
    write_pyramid(layout)


def _layout(drawings: Sequence[Labels], target: str, classes: int) -> ImageLayout:
    """Return a layout like the first drawing that is an OME-Zarr: its axes, sizes and position."""
    first = next(one for one in drawings if one.image is not None)
    assert first.image is not None
    image, level = first.image, first.image.levels[0]
    order = [image.axes.index(axis) for axis in first.axes]
    names = [ClassInfo("background", "#000000")]
    names += [ClassInfo(f"class {k}", COLORS[(k - 1) % len(COLORS)]) for k in range(1, classes)]
    return ImageLayout(
        url=target,
        labels_url=target,
        labels_ngff="0.5",
        source_url=first.url,
        axes=first.axes,
        shape=first.shape,
        scale=tuple(level.scale[index] for index in order),
        translation=tuple(level.translation[index] for index in order),
        units=tuple(image.units[index] for index in order),
        channels=(),
        dtype="float16",
        classes=tuple(names),
        chunk=_CHUNK,
        region=_REGION,
    )
