"""Files of `torch.save`, read as tensors and plain values; whatever else is in them is refused, and nothing runs."""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any

import torch


def load_tensors(data: bytes) -> Any:
    """Load a file of `torch.save` on the CPU.

    Raises
    ------
    pickle.UnpicklingError
        If it is none, is damaged, or holds more than tensors and plain values.
    """
    try:
        # weights_only: anything that would run code is refused by torch.
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (
        # All of what torch's unpickler lets through of bytes that are no pickle.
        ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError,
        OSError, RecursionError, RuntimeError, TypeError, ValueError, struct.error,
    ) as error:  # fmt: skip
        raise pickle.UnpicklingError(str(error)) from error
