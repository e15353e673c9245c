"""Arrays to the device and back beside its work: through pinned memory, on streams of their own, nobody waits.

::

    copies in      [region 2]
    members        [batch 1 of region 1][batch 2 of region 1][batch 1 of region 2]
    copies out                          [rows]               [rows]

What the members are told next waits for what they need, and copies out for what they copy: on the device. The process
goes on, and waits only for a `landing`. On a CPU both sides are the same memory: copies are done when they return.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

Landing = Callable[[], None]
"""Returns when all that the device was told before it was made is done, and its copies have arrived."""


def to_device(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """`array` on the device, for what it is told from now on; on a CPU the array's own memory."""
    here = torch.from_numpy(array)
    if device.type != "cuda":
        return here.to(device)
    computing, copying = torch.cuda.current_stream(device), _stream(device, "in")
    with torch.cuda.stream(copying):
        there = (here.pin_memory() if here.numel() else here).to(device, non_blocking=True)
    computing.wait_stream(copying)
    there.record_stream(computing)  # its memory is not given away before the members are done with it
    return there


def host_array(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory of the host, not filled, that `device` can write to by itself."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def to_host(target: torch.Tensor, source: torch.Tensor) -> None:
    """Have the device write `source` into a part of a `host_array` of the same shape, in that one's type.

    It is there after a `landing`.

    Parameters
    ----------
    target, source : (maps, y, x), the rows of each of target's maps one after the other in memory
    """
    if source.device.type != "cuda":
        target.copy_(source)
        return
    found = source.to(target.dtype).contiguous()
    computing, copying = torch.cuda.current_stream(source.device), _stream(source.device, "out")
    copying.wait_stream(computing)
    with torch.cuda.stream(copying):
        for here, there in zip(target, found, strict=True):
            here.copy_(there, non_blocking=True)
    found.record_stream(copying)


def landing(device: torch.device) -> Landing:
    """See `Landing`."""
    if device.type != "cuda":
        return lambda: None
    copying = _stream(device, "out")
    copying.wait_stream(torch.cuda.current_stream(device))
    landed = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    landed.record(copying)
    return landed.synchronize


@cache
def _stream(device: torch.device, way: Literal["in", "out"]) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
