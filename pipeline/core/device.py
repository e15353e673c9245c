"""What a device is: all that a run asks of what computes its members.

`chorus.pipeline.core.devices` knows which kinds there are. Modules pass ``torch.device`` on, and ask `device_of` there
for what depends on the kind. Importing either does not import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, get_args

from chorus.pipeline.errors import RefusedError

if TYPE_CHECKING:
    import torch

DeviceKind = Literal["cpu", "cuda", "mps", "xpu"]
DeviceChoice = Literal["auto", DeviceKind]
"""``auto`` is the best kind that is there."""
KINDS: tuple[DeviceKind, ...] = get_args(DeviceKind)
Direction = Literal["in", "out"]
T = TypeVar("T")


class Stream(Protocol):
    """A queue of operations of a device."""

    def wait_stream(self, stream: Any) -> None:
        """Have what comes next wait, on the device, for what `stream` was told so far."""

    def synchronize(self) -> None:
        """Wait, on the host, for what this stream was told so far."""


class Event(Protocol):
    """A mark in a stream that the host can wait for."""

    def record(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...


class Device(ABC):
    """One device of a process.

    Attributes
    ----------
    kind : what ``torch.device`` and ``--device`` call it
    title : what people call such devices
    accelerated : whether it computes beside the cores, so that it must be fed
    ray_gpus : units of Ray's resource ``GPU`` that an actor reserves; where 0 it reserves cores
    ray_types : pattern of what Ray calls such accelerators (``accelerator_type`` of a node); "" for all others
    has_streams : whether copies go on streams of their own, through pinned memory
    has_float64 : whether it computes in float64
    records_graphs : whether `record` works
    compiles : whether inductor compiles ahead of time for it
    call_pixels, most_pixels : that a call of a member sees where nothing was measured, and at most; all augmentations
        counted
    fp32_settings : of ``torch.backends``, whose `fp32_precision` says what fp32 means on it
    """

    kind: ClassVar[DeviceKind]
    title: ClassVar[str]
    accelerated: ClassVar[bool] = True
    ray_gpus: ClassVar[int] = 1
    ray_types: ClassVar[str] = ""
    has_streams: ClassVar[bool] = False
    has_float64: ClassVar[bool] = True
    records_graphs: ClassVar[bool] = False
    compiles: ClassVar[bool] = True
    call_pixels: ClassVar[int] = 1 << 22
    most_pixels: ClassVar[int] = 1 << 24
    fp32_settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, index: int = 0) -> None:
        self.index = index

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device(self.kind, self.index)

    @abstractmethod
    def available(self) -> bool:
        """Whether this process sees one."""

    @abstractmethod
    def count(self) -> int:
        """How many of them this process sees."""

    @abstractmethod
    def name(self) -> str:
        """What it is called by its maker."""

    def require(self) -> None:
        """Raise RefusedError where this process sees none."""
        if not self.available():
            raise RefusedError(f"this machine has no {self.title} that PyTorch can use; use --device cpu")

    def slots(self, cpus: int, gpus: int) -> int:
        """How many actors with one device each fit on so many cores and units of Ray's resource ``GPU``."""
        return gpus // self.ray_gpus if self.ray_gpus else cpus

    def ray_options(self, threads: int) -> dict[str, int]:
        """Reserved by an actor or task of so many threads."""
        return {"num_cpus": 0 if self.ray_gpus else threads, "num_gpus": self.ray_gpus}

    def use_threads(self, count: int) -> None:
        """Compute with so many threads from now on, where cores compute."""
        import torch

        if not self.accelerated:
            torch.set_num_threads(count)

    # What a result depends on

    def be_repeatable(self) -> None:
        """Have networks of this process give the same bits in every call from now on, and fp32 mean IEEE fp32.

        Belongs before the first network comes to the device: recordings keep what was set when they were made.
        """
        for settings in fp32_settings(self.fp32_settings):
            settings.fp32_precision = "ieee"

    def fp32_policy(self) -> str:
        """What fp32 means on it now; part of the key of whatever was compared or compiled in this process."""
        found = zip(self.fp32_settings, fp32_settings(self.fp32_settings), strict=True)
        return " ".join(f"{name}={settings.fp32_precision}" for name, settings in found)

    def in_float64(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in float64; on the host where the device cannot compute in it."""
        import torch

        return (tensor if self.has_float64 else tensor.cpu()).to(torch.float64)

    def onnx_provider(self) -> tuple[str, dict[str, str]] | None:
        """Execution provider of onnxruntime and its options; None where graphs run on the host."""
        return None

    def forked_random(self) -> AbstractContextManager[None]:
        """Restore the state of torch's random numbers afterwards, on the host and on the device."""
        import torch

        return torch.random.fork_rng(devices=[self.torch_device], device_type=self.kind)

    # Memory, in bytes

    @abstractmethod
    def free_memory(self) -> int:
        """That nobody uses now."""

    @abstractmethod
    def total_memory(self) -> int: ...

    @abstractmethod
    def peak_memory(self) -> int:
        """That this process held at most since `reset_peak_memory`, or since it began where that cannot be reset."""

    def reset_peak_memory(self) -> None:
        """Give back what is held and not used, and measure the peak from now on."""
        self.release_memory()

    @abstractmethod
    def release_memory(self) -> None:
        """Give back what torch holds and does not use."""

    # Order of work

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until it has done all that it was told."""

    def computing(self) -> Stream:
        """The stream that the calling thread gives operations to now."""
        raise NotImplementedError(f"{self.kind} has no streams")

    def copying(self, direction: Direction) -> Stream:
        """The process's own stream for copies to or from the device."""
        raise NotImplementedError(f"{self.kind} has no streams")

    def on(self, stream: Stream) -> AbstractContextManager[Any]:
        """Give operations within to that stream."""
        raise NotImplementedError(f"{self.kind} has no streams")

    def event(self) -> Event:
        """An event on which the host waits without spinning, where that can be had."""
        raise NotImplementedError(f"{self.kind} has no streams")

    def keep(self, tensor: torch.Tensor, stream: Stream) -> None:
        """Do not give the tensor's memory away before what `stream` was told so far is done."""
        raise NotImplementedError(f"{self.kind} has no streams")

    @abstractmethod
    def finish(self) -> None:
        """Wait for the stream that the calling thread gives operations to; others go on."""

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor of the host in memory that the device reads by itself; the tensor where there is none."""
        return tensor

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of the host, not filled, that the device can write to by itself."""
        import torch

        return torch.empty(shape, dtype=dtype)

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Record what `call` tells the device; see `Cuda.record`."""
        raise NotImplementedError(f"{self.kind} does not record graphs")


def fp32_settings(names: Iterable[str]) -> list[Any]:
    """The parts of ``torch.backends`` of these names; each has a `fp32_precision`."""
    import torch

    found = []
    for name in names:
        settings: Any = torch.backends
        for part in name.split("."):
            settings = getattr(settings, part)
        found.append(settings)
    return found
