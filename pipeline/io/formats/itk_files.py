"""Read NIfTI, NRRD and MetaImage files (MHA) by SimpleITK, whole.

Pixels stay in the order in which they are stored: a file's orientation in a patient or a scanner is not applied.
Pixel sizes are in millimetres where a file does not name another unit, as ITK takes them; where all of them are 1, it
says nothing of them. NIfTI's scaling of values (``scl_slope``) is applied.
"""

from __future__ import annotations

import math
import struct
import tempfile
import zlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.decompression import check_growth, check_memory, unpack_gzip
from chorus.pipeline.io.formats.tiff_metadata import TiffDescription, in_micrometers

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")

_MEND = "copy or export the file again, or leave it out"
_ALONE = "save it as one file with the pixels in it (.nrrd, .mha, .nii)"
_HEADER_BYTES = 1 << 16
# Of NIfTI-1 and NIfTI-2, by the size of their headers: where lengths, bits of a value and the begin of pixels are.
_NIFTI = {348: ("8h", 40, 72, "f", 108), 540: ("8q", 16, 14, "q", 168)}


def read_itk(url: str, data: bytes | None) -> tuple[NDArray[Any], str, TiffDescription]:
    """Read a file's pixels, one letter of ``tczyx`` per axis, and its pixel sizes.

    Parameters
    ----------
    data : the file, if it is in memory; then `url` is only its name

    Returns
    -------
    pixels : NDArray
        With the axes named by the letters, in the file's dtype.
    axes : str
        A letter of ``tczyx`` for each axis of `pixels`.
    description : TiffDescription
        Pixel sizes.

    Raises
    ------
    ImageError : it is damaged, or its pixels are in another file
    OSError : it cannot be read from storage
    """
    data = storage.read_bytes(url) if data is None else data
    name = url.lower()
    suffix = next(suffix for suffix in SUFFIXES if name.endswith(suffix))
    if suffix == ".nii.gz":
        data, suffix = _unpacked(url, data), ".nii"
    _check_whole(url, data, suffix)
    sitk = import_module("SimpleITK")  # seconds to import
    with tempfile.TemporaryDirectory(prefix="chorus-itk-") as folder:
        path = Path(folder) / f"image{suffix}"  # ITK reads from files alone
        path.write_bytes(data)
        try:
            _check_growth(url, sitk, path, len(data))
            image = sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise ImageError(f"{url}: is damaged, or no {suffix} file; {_MEND}") from error
    letters = "tzyx"[-image.GetDimension() :] if image.GetDimension() <= 4 else ""
    if not letters:
        raise ImageError(
            f"{url}: has {image.GetDimension()} axes, more than time, z, y and x; save it as several files"
        )
    several = image.GetNumberOfComponentsPerPixel() > 1
    units = _units(data, suffix, letters)
    sizes = dict(zip(letters, reversed(image.GetSpacing()), strict=True))
    if suffix == ".nii":  # stored as float32: the shortest number that is the same one there
        sizes = {axis: float(str(np.float32(size))) for axis, size in sizes.items()}
    scale = _scale(sizes, units)
    return sitk.GetArrayFromImage(image), letters + "c" * several, TiffDescription(scale=scale)


def _check_growth(url: str, sitk: Any, path: Path, stored: int) -> None:
    """Raise ValueError where a file promises more than so many bytes unpack to, ImageError for more than fits."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    one = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    pixel = one.GetSizeOfPixelComponent() * one.GetNumberOfComponentsPerPixel()
    unpacked = math.prod(map(int, reader.GetSize())) * pixel
    check_growth(stored, unpacked)
    check_memory(url, unpacked)


def _unpacked(url: str, data: bytes) -> bytes:
    """Decompress a NIfTI file up to the end that its header promises."""
    try:
        header = unpack_gzip(data, _HEADER_BYTES)
        end = _nifti_end(header)
        if end is None or end <= len(header):
            return header
        check_growth(len(data), end)
        check_memory(url, end)
        return unpack_gzip(data, end)
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{url}: is cut short or no gzip file; {_MEND}") from error


def _check_whole(url: str, data: bytes, suffix: str) -> None:
    """Refuse pixels in another file, which could name any file, and NIfTI that ITK would fill with zeros."""
    if suffix == ".nii":
        end = _nifti_end(data)
        if end is None or len(data) < end:
            raise ImageError(f"{url}: is cut short, or no NIfTI file; {_MEND}")
        return
    lines = _header(data, suffix)
    if suffix == ".nrrd" and any(key in ("data file", "datafile") for key in lines):
        raise ImageError(f"{url}: its pixels are in another file; {_ALONE}")
    if suffix == ".mha" and lines.get("elementdatafile", "local").lower() != "local":
        raise ImageError(f"{url}: its pixels are in another file; {_ALONE}")


def _nifti_end(data: bytes) -> int | None:
    """Return the bytes that a NIfTI file must have; None if it is none."""
    for order in "<>":
        size = struct.unpack(f"{order}i", data[:4])[0] if len(data) >= 4 else 0
        if size not in _NIFTI or len(data) < size:
            continue
        lengths_as, lengths_at, bits_at, offset_as, offset_at = _NIFTI[size]
        count, *lengths = struct.unpack_from(f"{order}{lengths_as}", data, lengths_at)
        (bits,) = struct.unpack_from(f"{order}h", data, bits_at)
        (offset,) = struct.unpack_from(f"{order}{offset_as}", data, offset_at)
        if not 1 <= count <= 7 or min(lengths[:count]) < 1 or not math.isfinite(offset):
            return None
        return int(offset) + math.prod(map(int, lengths[:count])) * int(bits) // 8
    return None


def _header(data: bytes, suffix: str) -> dict[str, str]:
    """Read keys, in lower case, and values of the text header of an NRRD or MetaImage file."""
    text = data[:_HEADER_BYTES].decode("latin-1")
    between = ":" if suffix == ".nrrd" else "="
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, sign, value = line.partition(between)
        if suffix == ".nrrd" and not line.strip():
            break  # pixels follow
        if sign:
            fields.setdefault(key.strip().lower(), value.strip())
        if suffix == ".mha" and key.strip().lower() == "elementdatafile":
            break
    return fields


def _units(data: bytes, suffix: str, letters: str) -> Mapping[str, str]:
    """Return the unit of each spatial axis; millimetres if the file names none, and for NIfTI, which ITK converts."""
    spatial = [axis for axis in letters if axis != "t"]
    units = dict.fromkeys(spatial, "mm")
    if suffix == ".nrrd":
        header = _header(data, suffix)
        named = [part for part in header.get("space units", header.get("units", "")).split('"') if part.strip()]
        if len(named) >= len(spatial):  # from x on, as all of NRRD
            units |= dict(zip(reversed(spatial), named, strict=False))
    return units


def _scale(sizes: Mapping[str, float], units: Mapping[str, str]) -> dict[str, float]:
    """Return the pixel size in micrometres along each spatial axis where it is known."""
    if all(size == 1 for axis, size in sizes.items() if axis != "t"):
        return {}
    micrometers = {axis: in_micrometers(sizes[axis], unit) for axis, unit in units.items()}
    return {axis: size for axis, size in micrometers.items() if size is not None}
