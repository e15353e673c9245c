"""How processes that run networks on the CPU get their memory.

A network's activations are tens of megabytes each. By default glibc maps every one of them from the system, which fills
it with zeros page by page, and gives it back when it is freed: 13 % of the time of a ResNet-18 U-Net at tile 256, 22 %
at tile 512 (docs/performance.md). Told to keep what was freed, a process stays as large as it once was, which is what
it needs again for the next tile. Only glibc is known to need it; elsewhere these settings mean nothing.
"""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's `mallopt`, <malloc.h>, and the variables that set them when a process starts. One arena: those
# of threads cannot hold blocks this large, so they would be mapped all the same.
_PARAMETERS = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_ARENA_MAX": (-8, 1),
}
ENVIRONMENT = {name: str(value) for name, (_, value) in _PARAMETERS.items()}
"""For processes that are to be started; the only way for those whose threads run before any code of ours."""


def keep_freed_memory() -> None:
    """Have this process keep what it frees; threads that run already are not concerned."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for parameter, value in _PARAMETERS.values():
            library.mallopt(parameter, value)
