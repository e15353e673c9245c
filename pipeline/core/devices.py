"""The kinds of devices, and which one is meant. Nothing else compares kinds, or calls ``torch.cuda`` and its like.

======  =====================  ================  ===========  ==================================
kind    computes on            side streams and  CUDA graphs  memory
                               pinned memory
======  =====================  ================  ===========  ==================================
cpu     cores of the machine   no                no           the machine's
cuda    GPU of NVIDIA or AMD   yes               yes          its own
xpu     GPU of Intel           yes               no           its own
mps     GPU of Apple           no                no           the machine's; one per machine
======  =====================  ================  ===========  ==================================

To add a kind: name it in `chorus.pipeline.core.device.DeviceKind`, derive a class from it or from `gpus.Gpu`, and
add that to `REGISTRY`.
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import TYPE_CHECKING

import psutil

from chorus.pipeline.core.device import KINDS, Device, DeviceChoice, DeviceKind, fp32_settings
from chorus.pipeline.core.gpus import Cuda, Mps, Xpu

if TYPE_CHECKING:
    import torch


class Cpu(Device):
    """The cores of this machine."""

    kind = "cpu"
    title = "CPU"
    accelerated = False
    ray_gpus = 0
    call_pixels = 0  # one tile: 112 to 128 ms a tile of 256 with 1 to 8 in a batch
    most_pixels = 1 << 20

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cpu")

    def available(self) -> bool:
        return True

    def count(self) -> int:
        return 1

    def name(self) -> str:
        return f"{psutil.cpu_count()} cores"

    def onnx_provider(self) -> tuple[str, dict[str, str]]:
        return "CPUExecutionProvider", {}

    def forked_random(self) -> AbstractContextManager[None]:
        import torch

        return torch.random.fork_rng(devices=[])

    def free_memory(self) -> int:
        return psutil.virtual_memory().available

    def total_memory(self) -> int:
        return psutil.virtual_memory().total

    def peak_memory(self) -> int:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def release_memory(self) -> None:
        """Nothing is held."""

    def synchronize(self) -> None:
        """It is done when a call returns."""

    def finish(self) -> None:
        """It is done when a call returns."""


# In the order in which `auto` chooses.
REGISTRY: dict[str, type[Device]] = {one.kind: one for one in (Cuda, Xpu, Mps, Cpu)}


def device_of(device: torch.device | str) -> Device:
    """What is known of a device, or of the first one of a kind."""
    if isinstance(device, str):
        return _made(REGISTRY[device], 0)
    return _made(REGISTRY[device.type], device.index or 0)


@cache
def _made(kind: type[Device], index: int) -> Device:
    return kind(index)


def best() -> DeviceKind:
    """The best kind that this process sees."""
    return next(kind for kind in _preferred() if device_of(kind).available())


def chosen(choice: DeviceChoice) -> DeviceKind:
    """What ``--device`` means in this process; raises RefusedError where there is no such device."""
    kind = best() if choice == "auto" else choice
    device_of(kind).require()
    return kind


def of_cluster(gpus: int, types: Iterable[str] = ()) -> DeviceKind:
    """The kind of device that ``auto`` takes on a cluster of Ray.

    Parameters
    ----------
    gpus : units of Ray's resource ``GPU``, whoever made them
    types : what Ray calls the accelerators of its nodes, where that is known
    """
    types = set(types)
    if not gpus:
        return "cpu"
    for kind in _preferred():
        pattern = device_of(kind).ray_types
        if pattern and types and all(re.match(pattern, one) for one in types):
            return kind
    return _preferred()[0]


def kinds_that(fit: Callable[[Device], bool]) -> list[DeviceKind]:
    """Kinds for which something holds, in the order of `DeviceKind`."""
    return [kind for kind in KINDS if fit(device_of(kind))]


def _preferred() -> list[DeviceKind]:
    return [one.kind for one in REGISTRY.values()]


@contextmanager
def fp32_policy_kept() -> Iterator[None]:
    """Undo what happens within to the meaning of fp32: importing some packages lets it be TF32 for the process."""
    import torch

    names = [name for kind in KINDS for name in device_of(kind).fp32_settings]
    before = [settings.fp32_precision for settings in fp32_settings(names)]
    try:
        yield
    finally:
        # The older name first, see `Cuda.be_repeatable`; it sets the same flag.
        torch.backends.cuda.matmul.allow_tf32 = before[names.index("cuda.matmul")] == "tf32"
        for settings, value in zip(fp32_settings(names), before, strict=True):
            settings.fp32_precision = value
