"""Files of `torch.save`, read as tensors and plain values; whatever else is in them is refused, and nothing runs."""

from __future__ import annotations

import codecs
import io
import pickle
import struct
from importlib import import_module
from typing import Any

import numpy as np
import torch


def load_tensors(data: bytes, *, numpy: bool = False) -> Any:
    """Load a file of `torch.save` on the CPU.

    Parameters
    ----------
    data : content of the file
    numpy : whether it may hold NumPy's arrays and numbers too

    Raises
    ------
    pickle.UnpicklingError
        If it is none, is damaged, or holds more than tensors and plain values.
    """
    try:
        # weights_only: anything that would run code is refused by torch.
        with torch.serialization.safe_globals(_NUMPY if numpy else []):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (
        # All of what torch's unpickler lets through of bytes that are no pickle.
        ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError,
        OSError, RecursionError, RuntimeError, TypeError, ValueError, struct.error,
    ) as error:  # fmt: skip
        raise pickle.UnpicklingError(str(error)) from error


def _numpy_globals() -> list[Any]:
    """List what a pickle of NumPy arrays refers to, under names before and since NumPy 2; pure data."""
    core = import_module("numpy._core.multiarray")
    allowed: list[Any] = [np.ndarray, np.dtype, codecs.encode]
    for name in ("_reconstruct", "scalar"):
        allowed += [(getattr(core, name), f"numpy.{core_name}.multiarray.{name}") for core_name in ("core", "_core")]
    return allowed + [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "uint8")]


_NUMPY = _numpy_globals()
