"""Read HDF5 in windows, as ilastik and PlantSeg write it: each dataset that is an image is one.

ilastik names axes in the attribute ``axistags`` or ``DIMENSION_LABELS``; PlantSeg writes (z, y, x) or (c, z, y, x) with
``element_size_um`` in the order z, y, x. Datasets of labels and predictions (``label``, ``prediction``, ...) are not
images to segment where there is a ``raw``. Nothing that lies in another file is followed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.formats.kind import FormatKind
from chorus.pipeline.io.formats.numpy_files import meaning_of
from chorus.pipeline.io.formats.rasters import MEND, Raster, decoding_errors, raster_of_array
from chorus.pipeline.io.formats.tiff_metadata import TiffDescription

# Where a file has one of these, its other datasets are what was made of it.
_RAW = ("raw", "exported_data", "volume/data", "data", "image")
_CHUNK_BYTES = 1 << 30


@contextmanager
def _open(url: str, _data: bytes | None, dtypes: Collection[str]) -> Iterator[list[Raster]]:
    h5py: Any = import_module("h5py")
    with decoding_errors(url):
        storage.check_regular(*storage.filesystem(url))
        file = h5py.File(storage.normalise(url), "r", locking=False)
    with file:
        with decoding_errors(url):
            datasets = _datasets(h5py, file, url)
            rasters = [_image(url, name, dataset, dtypes) for name, dataset in datasets.items()]
        if not rasters:
            raise ImageError(f"{url}: holds no dataset of an image (2 to 5 axes); {MEND}")
        yield rasters


def _datasets(h5py: Any, file: Any, url: str) -> dict[str, Any]:
    """Return the datasets that are images, by their names, sorted; the raw one alone where there is one."""
    datasets: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:  # not called for soft and external links
        if isinstance(item, h5py.Dataset) and item.ndim >= 2 and item.dtype.kind in "biuf":
            datasets[name] = item

    file.visititems(visit)
    for name, dataset in datasets.items():
        if dataset.external or dataset.is_virtual:
            raise ImageError(f"{url}: the pixels of {name} are in another file; save it as one file with the pixels")
        if dataset.chunks and int(np.prod(dataset.chunks, dtype=object)) * dataset.dtype.itemsize > _CHUNK_BYTES:
            raise ImageError(f"{url}: the chunks of {name} take more than {_CHUNK_BYTES >> 30} GiB each; save it again")
    raw = next((name for name in _RAW if name in datasets), None)
    return dict(sorted(datasets.items())) if raw is None else {raw: datasets[raw]}


def _image(url: str, name: str, dataset: Any, dtypes: Collection[str]) -> Raster:
    meaning = _meaning(dataset)
    if not meaning:
        raise ImageError(f"{url}: {name} has the shape {dataset.shape}, and its axes are not known; {MEND}")
    description = TiffDescription(scale=_scale(dataset, meaning))
    return replace(raster_of_array(url, dataset, meaning, description, dtypes), name=name)


def _meaning(dataset: Any) -> str:
    """Return a letter of ``tczyx`` per axis: as ilastik names them, or by their number."""
    named = _axistags(dataset.attrs.get("axistags")) or [dim.label for dim in dataset.dims]
    letters = "".join(str(label).lower() for label in named)
    if (
        len(letters) == dataset.ndim
        and {"y", "x"} <= set(letters) <= set("tczyx")
        and len(set(letters)) == len(letters)
    ):
        return letters
    return meaning_of(dataset.shape, dataset.dtype)


def _axistags(text: Any) -> list[str]:
    """Return the keys of axes that vigra wrote as JSON; none where they cannot be read."""
    try:
        axes = json.loads(text)["axes"]
        return [str(axis["key"]) for axis in axes]
    except (TypeError, ValueError, LookupError):
        return []


def _scale(dataset: Any, meaning: str) -> dict[str, float]:
    """Return micrometers per pixel as PlantSeg writes them, in the order of the spatial axes."""
    sizes = dataset.attrs.get("element_size_um")
    values: Sequence[Any] = () if sizes is None else np.atleast_1d(sizes).tolist()
    if len(values) != 3 or not all(isinstance(value, int | float) and 0 < value < np.inf for value in values):
        return {}
    return {axis: float(value) for axis, value in zip("zyx", values, strict=True) if axis in meaning}


KIND = FormatKind(
    name="HDF5",
    suffixes=(".h5", ".hdf5"),
    open=_open,
    reader="h5py",
    licence="BSD-3-Clause",
    modules=("h5py",),
    extra="hdf5",
    windows=True,
    in_folders=False,
)
