"""Arrays to the device and back beside its work: through pinned memory, on streams of their own, nobody waits.

::

    copies in      [region 2]
    members        [batch 1 of region 1][batch 2 of region 1][batch 1 of region 2]
    copies out                          [rows]               [rows]

What the members are told next waits for what they need, and copies out for what they copy: on the device. The process
goes on, and waits only for a `landing`. Devices without streams copy at once: copies are done when they return.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.core.devices import device_of

Landing = Callable[[], None]
"""Returns when all that the device was told before it was made is done, and its copies have arrived."""


def to_device(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """`array` on the device, for what it is told from now on; on a CPU the array's own memory."""
    source, target = torch.from_numpy(array), device_of(device)
    if not target.has_streams:
        return source.to(device)
    computing, copying = target.computing(), target.copying("in")
    with target.on(copying):
        copied = target.pinned(source).to(device, non_blocking=True)
    computing.wait_stream(copying)
    target.keep(copied, computing)  # its memory is not given away before the members are done with it
    return copied


def host_array(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory of the host, not filled, that `device` can write to by itself."""
    return device_of(device).host_memory(shape, dtype)


def to_host(target: torch.Tensor, source: torch.Tensor) -> None:
    """Have the device write `source` into a part of a `host_array` of the same shape, in that one's type.

    It is there after a `landing`.

    Parameters
    ----------
    target, source : (maps, y, x), the rows of each of target's maps one after the other in memory
    """
    device = device_of(source.device)
    if not device.has_streams:
        target.copy_(source.cpu())
        return
    converted = source.to(target.dtype).contiguous()
    computing, copying = device.computing(), device.copying("out")
    copying.wait_stream(computing)
    with device.on(copying):
        for rows, wanted in zip(target, converted, strict=True):
            rows.copy_(wanted, non_blocking=True)
    device.keep(converted, copying)


def landing(device: torch.device) -> Landing:
    """See `Landing`."""
    waited = device_of(device)
    if not waited.has_streams:
        return lambda: None
    copying = waited.copying("out")
    copying.wait_stream(waited.computing())
    landed = waited.event()
    landed.record(copying)
    return landed.synchronize
