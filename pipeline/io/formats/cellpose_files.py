"""Read the masks in Cellpose's ``_seg.npy`` files: a pickled dictionary, of which nothing is run.

Its pickle may name NumPy's arrays, scalars and types; whatever else it names becomes an object that does nothing.
"""

from __future__ import annotations

import pickle
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.errors import ImageError

SUFFIX = "_seg.npy"

_NUMPY = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.multiarray", name): getattr(np._core.multiarray, name)  # type: ignore[attr-defined]
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
}


def read_masks(url: str, data: bytes) -> NDArray[np.integer]:
    """(y, x) or (z, y, x) labels, 0 is background.

    Parameters
    ----------
    data : content of the file

    Raises
    ------
    ImageError : it is damaged, or holds no masks
    """
    try:
        content = _content(data)
    except Exception as error:  # a damaged pickle raises whatever its opcodes come upon
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"{url}: is no file of Cellpose ({reason}); save it again, or its masks as TIFF") from error
    masks = content.get("masks") if isinstance(content, dict) else None
    if not isinstance(masks, np.ndarray) or masks.dtype.kind not in "iu" or masks.ndim not in (2, 3):
        raise ImageError(f"{url}: holds no masks of (y, x) or (z, y, x); save them as TIFF")
    return masks


class _Inert:
    """Stands for an object of any other type."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _NUMPY.get((module, name), _Inert)


def _content(data: bytes) -> Any:
    """Return what `numpy.save` has pickled."""
    stream = BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.kind != "O" or shape != ():
        raise ValueError(f"an array of {dtype} and shape {shape}")
    array = _Unpickler(stream).load()
    return array.item() if isinstance(array, np.ndarray) and array.size == 1 else None
