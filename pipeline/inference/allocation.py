"""Memory allocation of processes that run networks on the CPU.

A network's activations are tens of megabytes each. By default glibc maps every one of them from the system, which
fills it with zeros page by page, and unmaps it when it is freed: 13 % of the time of a ResNet-18 U-Net at tile 256,
22 % at tile 512 (docs/performance.md). With the settings below a process keeps freed memory and reuses it for the next
tile; its size stays at its peak. Only glibc is known to need this; elsewhere the settings have no effect.
"""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's `mallopt`, <malloc.h>, and the variables that set them when a process starts. One arena: the
# arenas of threads cannot hold blocks this large, which would then be mapped from the system anyway.
_PARAMETERS = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_ARENA_MAX": (-8, 1),
}
ENVIRONMENT = {name: str(value) for name, (_, value) in _PARAMETERS.items()}
"""Environment for processes to be started; the only way if their threads run before any code of Chorus."""


def keep_freed_memory() -> None:
    """Make this process keep the memory that it frees; threads that already run are not affected."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for parameter, value in _PARAMETERS.values():
            library.mallopt(parameter, value)
