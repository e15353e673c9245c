"""Images most worth correcting, with the prediction as a draft; ``chorus train`` reads the corrections."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from chorus.pipeline.core.fields import CLASS_VARIANCES
from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.sources.ngff import open_image
from chorus.pipeline.io.sources.reading import open_level, read_window
from chorus.pipeline.io.storage_failures import storage_errors

# Edge of the blocks in which maps are read; sums of integers are the same for any value.
_BLOCK = 2048
# Windows start at every sixteenth of their edge, and at the end of the plane.
_STARTS = 16
_FIXED = 2**20
_NAMES = uuid.UUID("1f7a4a58-7a43-5b2b-8f0e-2a4d1f3f7c55")

ReadMap = Callable[[int, int, Window], NDArray[np.floating]]
"""Gives the map of time point t, plane z and a window, (y, x)."""


@dataclass(frozen=True)
class Drafted:
    """An image and the prediction that becomes the draft of its labels.

    Attributes
    ----------
    name : of the image in the run
    source_url, source_level, source_axes : where the pixels are that were segmented
    channels, channel_names : those that the ensemble saw
    results_url : group of the posterior, which has the maps
    labels_url, label : group and name of the label image; its axes are `axes`
    planes : numbers of time points and of z planes
    pixel_size_um : y and x; None where it is not known
    """

    name: str
    source_url: str
    source_level: str
    source_axes: str
    channels: tuple[int, ...]
    channel_names: tuple[str, ...]
    results_url: str
    labels_url: str
    label: str
    axes: str
    planes: tuple[int, int]
    height: int
    width: int
    pixel_size_um: tuple[float, float] | None


@dataclass(frozen=True)
class Place:
    """The plane and the window that are taken of an image."""

    t: int
    z: int
    window: Window


def draft(image: Drafted, size: int, image_url: str, label_url: str) -> Place:
    """Write pixels and draft labels of the most uncertain `size` x `size` pixels of an image as two TIFFs.

    An image of one plane that is no larger is taken whole.

    Raises
    ------
    ImageError : source or results cannot be read; or a larger image has no uncertainty map
    OutputError : storage does not take the files
    """
    place = _place(image, size)
    source = open_level(image.source_url, image.source_level)
    pixels = read_window(source, image.source_axes, place.t, place.z, image.channels, place.window)
    stored = open_level(image.labels_url, f"labels/{image.label}/s0")
    labels = read_window(stored, image.axes, place.t, place.z, (0,), place.window)[0]
    _write(image_url, _image_tiff(image, place, pixels))
    _write(label_url, _label_tiff(labels))
    return place


def _place(image: Drafted, size: int) -> Place:
    whole = Window.of(0, image.height, 0, image.width)
    if image.planes == (1, 1) and max(image.height, image.width) <= size:
        return Place(0, 0, whole)
    results = open_image(image.results_url, "image", "", image.name)
    name = next((field.name for field in CLASS_VARIANCES if field.name in results.channels), None)
    if name is None:
        raise ImageError(
            f"{image.results_url}: holds no uncertainty map by which {size} x {size} pixels of it could be chosen; run "
            f"predict with --save uncertainty, or give a larger --size"
        )
    array, channel = open_level(results.url, results.levels[0].path), results.channels.index(name)
    return most_doubtful(
        lambda t, z, window: read_window(array, results.axes, t, z, (channel,), window)[0],
        image.planes,
        (image.height, image.width),
        size,
    )


def most_doubtful(read: ReadMap, planes: tuple[int, int], shape: tuple[int, int], size: int) -> Place:
    """Find the window of `size` x `size` pixels (less where the plane is smaller) with the largest mean of a map.

    Windows start at multiples of a sixteenth of `size` and at the end of an axis; of equal ones the first is taken.

    Parameters
    ----------
    read : gives the map; it is read block by block, and summed up in fixed point
    planes : numbers of time points and of z planes
    shape : height and width of a plane
    """
    best, best_place = -1, Place(0, 0, Window.of(0, 0, 0, 0))
    rows, columns = (_Starts.make(length, size) for length in shape)
    for t in range(planes[0]):
        for z in range(planes[1]):
            cells = np.zeros((len(rows.cuts) - 1, len(columns.cuts) - 1), np.int64)
            grid = RegionGrid.make(shape, _BLOCK)
            for window in map(grid.window, range(grid.count)):
                values = np.rint(np.nan_to_num(read(t, z, window)).astype(np.float64) * _FIXED).astype(np.int64)
                down, right = rows.cells(window.y.start, window.y.stop), columns.cells(window.x.start, window.x.stop)
                sums = np.add.reduceat(np.add.reduceat(values, down[1], axis=0), right[1], axis=1)
                cells[np.ix_(down[0], right[0])] += sums
            sums = _window_sums(cells, rows, columns)
            if sums.max() > best:
                best = int(sums.max())
                y, x = (int(i) for i in np.unravel_index(np.argmax(sums), sums.shape))
                top, left = int(rows.starts[y]), int(columns.starts[x])
                best_place = Place(t, z, Window.of(top, top + rows.edge, left, left + columns.edge))
    return best_place


@dataclass(frozen=True)
class _Starts:
    """Start positions of windows on an axis, and the cuts between which a map is summed so that all can be compared."""

    edge: int
    starts: NDArray[np.int64]
    cuts: NDArray[np.int64]

    @classmethod
    def make(cls, length: int, size: int) -> _Starts:
        edge = min(size, length)
        starts = np.unique(np.append(np.arange(0, length - edge + 1, max(1, size // _STARTS)), length - edge))
        return cls(edge, starts, np.unique(np.concatenate([starts, starts + edge])))

    def cells(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the cells that pixels from `start` to `stop` lie in, and where each begins, counted from `start`."""
        first, last = np.searchsorted(self.cuts, [start, stop - 1], side="right") - 1
        cells = np.arange(first, last + 1)
        return cells, np.maximum(self.cuts[cells] - start, 0)


def _window_sums(cells: NDArray[np.int64], rows: _Starts, columns: _Starts) -> NDArray[np.int64]:
    """Sum all windows from the integral of the cells."""
    integral = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1), np.int64)
    integral[1:, 1:] = cells.cumsum(axis=0).cumsum(axis=1)
    top, bottom = (np.searchsorted(rows.cuts, rows.starts + n) for n in (0, rows.edge))
    left, right = (np.searchsorted(columns.cuts, columns.starts + n) for n in (0, columns.edge))
    sums: NDArray[np.int64] = integral[np.ix_(bottom, right)] - integral[np.ix_(top, right)]
    return sums - integral[np.ix_(bottom, left)] + integral[np.ix_(top, left)]


def _image_tiff(image: Drafted, place: Place, pixels: NDArray[np.generic]) -> bytes:
    """Encode pixels (channels, y, x) as OME-TIFF, with channel names and pixel size."""
    if pixels.dtype == np.float16:  # which OME does not know
        pixels = pixels.astype(np.float32)
    where = f"{image.name} {place.t} {place.z} {place.window}"
    metadata: dict[str, Any] = {
        "axes": "CYX",
        "Channel": {"Name": list(image.channel_names)},
        "UUID": str(uuid.uuid5(_NAMES, where)),  # or it would be another one every time
    }
    if image.pixel_size_um is not None:
        for axis, value in zip("YX", image.pixel_size_um, strict=True):
            metadata |= {f"PhysicalSize{axis}": value, f"PhysicalSize{axis}Unit": "µm"}
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, ome=True, photometric="minisblack", compression="zlib", metadata=metadata)
    return buffer.getvalue()


def _label_tiff(labels: NDArray[np.integer]) -> bytes:
    """Encode labels (y, x); renumbered from 1 if they exceed 16 bits, which all programs can paint in."""
    if labels.max(initial=0) > np.iinfo(np.uint16).max:
        from skimage.segmentation import relabel_sequential

        labels = relabel_sequential(labels.astype(np.int64))[0]  # type: ignore[no-untyped-call]
    small = labels.astype(np.uint8 if labels.dtype == np.uint8 else np.uint16)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, small, photometric="minisblack", compression="zlib", metadata={"axes": "YX"})
    return buffer.getvalue()


def _write(url: str, data: bytes) -> None:
    with storage_errors(url):
        storage.write_bytes(url, data)
