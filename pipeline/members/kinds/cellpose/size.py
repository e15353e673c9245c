"""The size model of Cellpose 1 to 3: the diameter of objects by linear regression from the style of their image."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage

SIZE_SUFFIX = "_size.npy"
_SMALLEST_PX = 5.0
_NAMES = ("A", "smean", "ymean", "diam_mean")
_MAGIC = b"\x93NUMPY"
_LARGEST_FILE = 1 << 20
# What `numpy.save` writes of a dictionary of arrays and numbers. None of these runs anything but `REDUCE` and `BUILD`,
# which meet only the inert stand-ins of `_Plain.find_class`.
_OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "APPEND", "SETITEM", "SETITEMS", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2",
    "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINPUT", "BINGET",
    "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip
_DTYPES = {"f4": np.float32, "f8": np.float64, "i4": np.int32, "i8": np.int64}


@dataclass(frozen=True)
class SizeModel:
    """Linear regression from a style to the logarithm of the diameter.

    Attributes
    ----------
    slope, mean : (features,) float64, the coefficients, and the style at which the regression is `offset`
    offset : of the logarithm of the diameter, over that of `diameter_px`
    diameter_px : to which objects were scaled when its network was trained
    """

    slope: NDArray[np.float64]
    mean: NDArray[np.float64]
    offset: float
    diameter_px: float

    def diameter(self, style: NDArray[np.floating[Any]]) -> float:
        """Return the diameter of the objects of an image, in pixels of the image that the network saw; 5 at least.

        Parameters
        ----------
        style : (features,) of length 1

        References
        ----------
        ``cellpose.models.SizeModel._size_estimation`` of Cellpose 3.1.
        """
        logarithm = float(self.slope @ (style - self.mean)) + math.log(self.diameter_px) + self.offset
        return max(_SMALLEST_PX, math.exp(min(logarithm, math.log(1e6))))


def size_model_url(weights: str) -> str:
    """Return the URL of the size model of the network at `weights`: as fine-tuning names it, or as published."""
    folder, _, name = weights.rpartition("/")
    published = f"{folder}/size_{name}.npy"
    return published if storage.exists(published) else f"{weights}{SIZE_SUFFIX}"


def read_size_model(url: str, data: bytes) -> SizeModel:
    """Read a size model, a dictionary that `numpy.save` has pickled, without running what is pickled.

    Parameters
    ----------
    url : of the file, for messages

    Raises
    ------
    RefusedError
        If it is none, is damaged, or holds more than arrays and numbers.
    """
    refusal = f"{url}: no size model of Cellpose, which holds {', '.join(_NAMES)} as numbers, and Chorus never runs"
    refusal += " pickled code; restore the file, or take it away"
    try:
        content = _content(data)
        numbers = {name: np.asarray(_plain(content[name]), np.float64) for name in _NAMES}
        slope, mean = numbers["A"].reshape(-1), numbers["smean"].reshape(-1)
        offset, diameter = numbers["ymean"].item(), numbers["diam_mean"].item()
    except (pickle.UnpicklingError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise RefusedError(refusal) from error
    finite = all(np.isfinite(number).all() for number in numbers.values())
    if slope.shape != mean.shape or not finite or diameter <= 0:
        raise RefusedError(refusal)
    return SizeModel(slope, mean, offset, diameter)


def _content(data: bytes) -> dict[str, Any]:
    """Return the dictionary in an ``.npy`` file of one pickled object, its arrays as `_Array` and `_Number`."""
    if not data.startswith(_MAGIC) or len(data) > _LARGEST_FILE:
        raise ValueError("no .npy file, or a large one")
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if shape != () or dtype != np.dtype(object):
        raise ValueError("no pickled object")
    body = data[file.tell() :]
    for opcode, argument, _ in pickletools.genops(body):
        if opcode.name not in _OPCODES or (isinstance(argument, int) and abs(argument) > _LARGEST_FILE):
            raise ValueError(f"{opcode.name} is in no size model")
    array = _Plain(io.BytesIO(body), encoding="latin1").load()
    if not isinstance(array, _Array) or not isinstance(array.objects, list) or not isinstance(array.objects[0], dict):
        raise TypeError("holds no dictionary")
    return array.objects[0]


def _plain(value: Any) -> Any:
    """Return a number or an array of numbers; raise TypeError for anything else."""
    if isinstance(value, _Array | _Number):
        return value.numbers
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{type(value).__name__} is no number")
    return value


class _Plain(pickle.Unpickler):
    """Reads the pickles of NumPy's arrays into stand-ins of this file; nothing else has a name."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy", "dtype"): _Dtype,
            ("numpy", "ndarray"): "ndarray",
            ("multiarray", "_reconstruct"): lambda *_: _Array(),
            ("multiarray", "scalar"): _Number,
            ("_codecs", "encode"): _bytes,
        }
        own = {"numpy.core.multiarray": "multiarray", "numpy._core.multiarray": "multiarray"}.get(module, module)
        try:
            return known[own, name]
        except KeyError as error:
            raise pickle.UnpicklingError(f"{module}.{name} is in no size model") from error


class _Dtype:
    """Stands for a type of numbers."""

    def __init__(self, kind: str, *_: object) -> None:
        self.type = None if kind == "O8" else _DTYPES[kind]

    def __setstate__(self, state: Iterable[object]) -> None:
        if ">" in state:
            raise ValueError("numbers of the other byte order")


class _Array:
    """Stands for an array: of numbers, or of the one object that the file holds."""

    objects: object = None
    numbers: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, object]) -> None:
        _, shape, dtype, _, data = state
        if dtype.type is None:
            self.objects = data
        else:
            self.numbers = np.frombuffer(_as_bytes(data), dtype.type).reshape(shape)


class _Number:
    """Stands for a scalar."""

    def __init__(self, dtype: _Dtype, data: object) -> None:
        if dtype.type is None:
            raise ValueError("an object in the place of a number")
        self.numbers = np.frombuffer(_as_bytes(data), dtype.type)[0]


def _as_bytes(data: object) -> bytes:
    return data if isinstance(data, bytes) else _bytes(data)


def _bytes(text: object, encoding: str = "latin1") -> bytes:
    """Return the bytes that protocols before 3 store as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("no bytes")
    return text.encode("latin1")
