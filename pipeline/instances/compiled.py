"""Loops over pixels that are compiled to machine code.

No `fastmath`, so that what is computed are the same operations in the same order as in the source: no fused
multiply-add, the same bits in vectors as one by one, on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(function: Loop) -> Loop:
    """Compile a function when it is first called, and keep the code for other processes.

    The code is kept beside the module, or in the user's cache folder where that cannot be written, or in
    ``NUMBA_CACHE_DIR``; where nothing can be written each process compiles for itself.
    """
    try:
        return cast(Loop, numba.njit(cache=True)(function))
    except RuntimeError:  # numba finds no folder for its cache
        return cast(Loop, numba.njit(function))
