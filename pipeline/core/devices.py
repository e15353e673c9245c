"""The kinds of devices, and the choice of one. Nothing else compares kinds, or calls ``torch.cuda`` and its like.

======  =====================  ================  ===========  ==================================
kind    computes on            side streams and  CUDA graphs  memory
                               pinned memory
======  =====================  ================  ===========  ==================================
cpu     cores of the machine   no                no           the machine's
cuda    GPU of NVIDIA or AMD   yes               yes          its own
xpu     GPU of Intel           yes               no           its own
mps     GPU of Apple           no                no           the machine's; one per machine
======  =====================  ================  ===========  ==================================

To add a kind: name it in `chorus.pipeline.core.device.DeviceKind`, derive a class from `Device` or from `gpus.Gpu`, and
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
    call_pixels = 0  # one tile per call: a tile of 256 takes 112 to 128 ms, with 1 to 8 tiles in a batch
    most_pixels = 1 << 20

    @property
    def torch_device(self) -> torch.device:
        """The CPU for torch."""
        import torch

        return torch.device("cpu")

    def available(self) -> bool:
        """Return True: every machine has one."""
        return True

    def count(self) -> int:
        """Return 1: all cores are one device."""
        return 1

    def name(self) -> str:
        """Return the number of cores as text."""
        return f"{psutil.cpu_count()} cores"

    def onnx_provider(self) -> tuple[str, dict[str, str]]:
        """Return the execution provider of onnxruntime for CPUs."""
        return "CPUExecutionProvider", {}

    def forked_random(self) -> AbstractContextManager[None]:
        """Return a context that restores the state of torch's random generator of the host on exit."""
        import torch

        return torch.random.fork_rng(devices=[])

    def free_memory(self) -> int:
        """Return the bytes of memory that are available on the machine."""
        return psutil.virtual_memory().available

    def total_memory(self) -> int:
        """Return the bytes of memory of the machine."""
        return psutil.virtual_memory().total

    def peak_memory(self) -> int:
        """Return the largest resident size of this process in bytes, since it began."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def release_memory(self) -> None:
        """Do nothing: no memory is held."""

    def synchronize(self) -> None:
        """Do nothing: operations are complete when a call returns."""

    def finish(self) -> None:
        """Do nothing: operations are complete when a call returns."""


# In the order of preference of `auto`.
REGISTRY: dict[str, type[Device]] = {one.kind: one for one in (Cuda, Xpu, Mps, Cpu)}


def device_of(device: torch.device | str) -> Device:
    """Return the `Device` of a torch device, or the first one of a kind."""
    if isinstance(device, str):
        return _made(REGISTRY[device], 0)
    return _made(REGISTRY[device.type], device.index or 0)


@cache
def _made(kind: type[Device], index: int) -> Device:
    return kind(index)


def best() -> DeviceKind:
    """Return the best kind of device that this process can use."""
    return next(kind for kind in _preferred() if device_of(kind).available())


def chosen(choice: DeviceChoice) -> DeviceKind:
    """Return the kind of device that ``--device`` selects in this process.

    Raises
    ------
    RefusedError
        If this process can use no such device.
    """
    kind = best() if choice == "auto" else choice
    device_of(kind).require()
    return kind


def of_cluster(gpus: int, types: Iterable[str] = ()) -> DeviceKind:
    """Return the kind of device that ``auto`` selects on a Ray cluster.

    Parameters
    ----------
    gpus : units of Ray's resource ``GPU``, of any vendor
    types : Ray's names of the accelerators of its nodes, as far as they are known
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
    """Return the kinds of devices for which `fit` is true, in the order of `DeviceKind`."""
    return [kind for kind in KINDS if fit(device_of(kind))]


def _preferred() -> list[DeviceKind]:
    return [one.kind for one in REGISTRY.values()]


@contextmanager
def fp32_policy_kept() -> Iterator[None]:
    """Restore the meaning of fp32 on exit: importing some packages switches it to TF32 for the whole process."""
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
