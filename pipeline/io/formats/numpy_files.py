"""Read NumPy's arrays: NPY mapped into memory, NPZ whole. Nothing is unpickled.

Axes are taken from the number of them: (y, x), (z, y, x), (c, z, y, x), (t, c, z, y, x); a last axis of 3 or 4 with
uint8, on (y, x), holds colours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.decompression import check_memory
from chorus.pipeline.io.formats.kind import FormatKind
from chorus.pipeline.io.formats.rasters import MEND, Raster, decoding_errors, raster_of_array
from chorus.pipeline.io.formats.tiff_metadata import TiffDescription


@contextmanager
def _open_npy(url: str, _data: bytes | None, dtypes: Collection[str]) -> Iterator[list[Raster]]:
    with decoding_errors(url):
        path = storage.normalise(url)
        storage.check_regular(*storage.filesystem(url))
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ImageError(f"{url}: holds no array; {MEND}")
        raster = _image(url, array, dtypes)
    yield [raster]


@contextmanager
def _open_npz(url: str, _data: bytes | None, dtypes: Collection[str]) -> Iterator[list[Raster]]:
    with decoding_errors(url):
        storage.check_regular(*storage.filesystem(url))
        rasters = []
        with np.load(storage.normalise(url), allow_pickle=False) as arrays:
            check_memory(url, sum(info.file_size for info in arrays.zip.infolist()))
            for name in arrays.files:
                array = arrays[name]
                if array.ndim >= 2:  # others describe
                    rasters.append(replace(_image(url, array, dtypes), name=name))
        if not rasters:
            raise ImageError(f"{url}: holds no array of an image; {MEND}")
    yield rasters


def _image(url: str, array: np.ndarray[Any, Any], dtypes: Collection[str]) -> Raster:
    meaning = meaning_of(array.shape, array.dtype)
    if not meaning:
        raise ImageError(f"{url}: has the shape {array.shape}, but an image has 2 to 5 axes; {MEND}")
    return raster_of_array(url, array, meaning, TiffDescription(), dtypes)


def meaning_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    """Return a letter of ``tczyxs`` per axis of an array that does not name them; empty if it is no image."""
    if len(shape) == 3 and shape[2] in (3, 4) and dtype == np.uint8:
        return "yxs"
    return {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}.get(len(shape), "")


NPY = FormatKind(
    name="NumPy",
    suffixes=(".npy",),
    open=_open_npy,
    reader="NumPy",
    licence="BSD-3-Clause",
    windows=True,
    in_folders=False,
    parallel=True,
)
NPZ = FormatKind(
    name="NumPy archive",
    suffixes=(".npz",),
    open=_open_npz,
    reader="NumPy",
    licence="BSD-3-Clause",
    in_folders=False,
)
