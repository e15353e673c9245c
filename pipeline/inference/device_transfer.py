"""Copies to and from the device beside its computation: through pinned memory, on streams of their own.

::

    copies in      [region 2]
    members        [batch 1 of region 1][batch 2 of region 1][batch 1 of region 2]
    copies out                          [rows]               [rows]

On the device, members wait for the copies that they need, and copies out wait for the results that they copy. The host
does not wait, except for a `landing`. Devices without streams copy synchronously: a copy is complete when the call
returns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.core.devices import device_of

Landing = Callable[[], None]
"""Blocks until all operations that were queued on the device before its creation are complete, copies included."""


def to_device(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copy an array to the device, ready for all operations queued from now on.

    Parameters
    ----------
    array : any shape and dtype that torch has
    device : where to copy it

    Returns
    -------
    torch.Tensor
        Same shape and dtype, on `device`; on a CPU it shares the array's memory.
    """
    source, target = torch.from_numpy(array), device_of(device)
    streams = target.streams
    if streams is None:
        return source.to(device)
    computing, copying = streams.computing(), streams.copying("in")
    with streams.on(copying):
        copied = target.pinned(source).to(device, non_blocking=True)
    computing.wait_stream(copying)
    streams.keep(copied, computing)  # its memory is not reused before the members are done with it
    return copied


def host_array(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Allocate an uninitialised tensor in host memory that `device` can write to directly.

    Parameters
    ----------
    shape, dtype : of the tensor
    device : that will write to it

    Returns
    -------
    torch.Tensor
        `shape` of `dtype`, on the host.
    """
    return device_of(device).host_memory(shape, dtype)


def to_host(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy `source` into a part of a `host_array` of the same shape, converted to that array's dtype.

    The copy is complete after a `landing`.

    Parameters
    ----------
    target, source : (maps, y, x), the rows of each of target's maps contiguous in memory
    """
    streams = device_of(source.device).streams
    if streams is None:
        target.copy_(source.cpu())
        return
    converted = source.to(target.dtype).contiguous()
    computing, copying = streams.computing(), streams.copying("out")
    copying.wait_stream(computing)
    with streams.on(copying):
        for rows, wanted in zip(target, converted, strict=True):
            rows.copy_(wanted, non_blocking=True)
    streams.keep(converted, copying)


def landing(device: torch.device) -> Landing:
    """Return a function that waits until all operations and copies queued so far are complete; see `Landing`."""
    streams = device_of(device).streams
    if streams is None:
        return lambda: None
    copying = streams.copying("out")
    copying.wait_stream(streams.computing())
    landed = streams.event()
    landed.record(copying)
    return landed.synchronize
