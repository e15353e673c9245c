"""Compilation of loops over pixels to machine code.

Without `fastmath`, so that the same operations run in the same order as in the source: no fused multiply-add, and the
same bits with vector instructions as without, on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(function: Loop) -> Loop:
    """Compile a function at its first call, and cache the code for other processes.

    The cache lies beside the module, or in the user's cache folder if that is not writable, or in ``NUMBA_CACHE_DIR``;
    if no folder is writable, each process compiles for itself.
    """
    try:
        return cast(Loop, numba.njit(cache=True)(function))
    except RuntimeError:  # numba finds no folder for its cache
        return cast(Loop, numba.njit(function))
