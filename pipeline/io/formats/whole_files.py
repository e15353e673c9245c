"""Files that are read whole: PNG, JPEG, NIfTI, NRRD, MHA, and Cellpose's masks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BytesIO

import imagecodecs
import numpy as np
from PIL import Image

from chorus.pipeline.io import storage
from chorus.pipeline.io.decompression import check_growth, check_memory
from chorus.pipeline.io.formats import cellpose_files, itk_files
from chorus.pipeline.io.formats.kind import FormatKind
from chorus.pipeline.io.formats.rasters import Raster, decoding_errors, raster_of_array
from chorus.pipeline.io.formats.tiff_metadata import TiffDescription

# Pillow refuses large images as an attack; here the user names the files.
Image.MAX_IMAGE_PIXELS = None


@contextmanager
def _open_picture(url: str, data: bytes | None, dtypes: Collection[str]) -> Iterator[list[Raster]]:
    with decoding_errors(url):
        if data is None:
            data = storage.read_bytes(url)
        with Image.open(BytesIO(data), formats=["PNG", "JPEG"]) as image:
            unpacked = image.width * image.height * len(image.getbands())
            check_growth(len(data), unpacked)
            check_memory(url, unpacked)
        # Pillow would cut 16 bits of colour to 8.
        if data.startswith(b"\x89PNG") and data[24:25] == b"\x10":
            pixels = imagecodecs.png_decode(data)
        else:
            with Image.open(BytesIO(data), formats=["PNG", "JPEG"]) as image:
                pixels = np.asarray(image.convert("RGB") if image.mode in ("CMYK", "YCbCr") else image)
        raster = raster_of_array(url, pixels, "yxs"[: pixels.ndim], TiffDescription(), dtypes)
    yield [raster]


@contextmanager
def _open_itk(url: str, data: bytes | None, dtypes: Collection[str]) -> Iterator[list[Raster]]:
    with decoding_errors(url):
        raster = raster_of_array(url, *itk_files.read_itk(url, data), dtypes)
    yield [raster]


@contextmanager
def _open_cellpose(url: str, data: bytes | None, dtypes: Collection[str]) -> Iterator[list[Raster]]:
    with decoding_errors(url):
        masks = cellpose_files.read_masks(url, storage.read_bytes(url) if data is None else data)
        raster = raster_of_array(url, masks, "zyx"[-masks.ndim :], TiffDescription(), dtypes)
    yield [raster]


PICTURES = FormatKind(
    name="PNG, JPEG",
    suffixes=(".png", ".jpeg", ".jpg"),
    open=_open_picture,
    reader="Pillow, imagecodecs",
    licence="MIT-CMU, BSD-3-Clause",
    in_memory=True,
)
ITK = FormatKind(
    name="NIfTI, NRRD, MHA",
    suffixes=itk_files.SUFFIXES,
    open=_open_itk,
    reader="SimpleITK",
    licence="Apache-2.0",
    in_memory=True,
)
CELLPOSE = FormatKind(
    name="Cellpose masks",
    suffixes=(cellpose_files.SUFFIX,),
    open=_open_cellpose,
    reader="NumPy",
    licence="BSD-3-Clause",
    in_memory=True,
    labels=True,
)
