"""The device interface: everything that a run needs from the hardware that computes its members.

`chorus.pipeline.core.devices` lists the kinds of devices. Modules pass ``torch.device`` on, and call `device_of` there
for whatever depends on the kind. Importing either module does not import torch.
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
"""``auto`` is the best kind that is available."""
KINDS: tuple[DeviceKind, ...] = get_args(DeviceKind)
Direction = Literal["in", "out"]
T = TypeVar("T")


class Stream(Protocol):
    """A queue of operations of a device."""

    def wait_stream(self, stream: Any) -> None:
        """Make all later operations of this stream wait, on the device, for those queued in `stream` so far."""

    def synchronize(self) -> None:
        """Wait, on the host, for all operations queued so far."""


class Event(Protocol):
    """A marker in a stream that the host can wait for."""

    def record(self, stream: Any) -> None:
        """Place this marker after all operations queued in `stream` so far."""

    def synchronize(self) -> None:
        """Wait, on the host, until the stream has reached this marker."""


class Streams(ABC):
    """Queues of operations that a device works off beside each other."""

    @abstractmethod
    def computing(self) -> Stream:
        """Return the stream that the calling thread queues operations in."""

    @abstractmethod
    def copying(self, direction: Direction) -> Stream:
        """Return the process's own stream for copies to (``in``) or from (``out``) the device."""

    @abstractmethod
    def on(self, stream: Stream) -> AbstractContextManager[Any]:
        """Return a context in which operations are queued in `stream`."""

    @abstractmethod
    def event(self) -> Event:
        """Return an event; the host waits for it without spinning if the device supports that."""

    @abstractmethod
    def keep(self, tensor: torch.Tensor, stream: Stream) -> None:
        """Keep a tensor's memory from being reused before the operations queued in `stream` so far are complete.

        Parameters
        ----------
        tensor : on the device, any shape and dtype
        stream : that uses it
        """


class Recorder(ABC):
    """Records operations of a device, to launch all of them at once."""

    @abstractmethod
    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Record the operations that `call` queues on the device.

        Returns
        -------
        answers : the result of `call`
        replay : runs the recorded operations again: it reads the current contents of the memory that `call` read, and
            overwrites `answers`. All recordings of a process share their memory: copy an answer before another
            recording is replayed.

        Raises
        ------
        RuntimeError
            If an operation of `call` cannot be recorded.
        """


class Device(ABC):
    """One device of a process.

    Attributes
    ----------
    kind : its name for ``torch.device`` and ``--device``
    title : its name in messages
    accelerated : whether it computes beside the CPU cores, so that data must be copied to it
    ray_gpus : units of Ray's resource ``GPU`` that an actor reserves; if 0, it reserves cores
    ray_types : pattern of Ray's names of such accelerators (``accelerator_type`` of a node); "" for all others
    has_float64 : whether it computes in float64
    compiles : whether inductor compiles ahead of time for it
    call_pixels, most_pixels : pixels per call of a member, all augmentations counted: default without measurement, and
        maximum
    fp32_settings : parts of ``torch.backends`` whose `fp32_precision` defines what fp32 means on it
    """

    kind: ClassVar[DeviceKind]
    title: ClassVar[str]
    accelerated: ClassVar[bool] = True
    ray_gpus: ClassVar[int] = 1
    ray_types: ClassVar[str] = ""
    has_float64: ClassVar[bool] = True
    compiles: ClassVar[bool] = True
    call_pixels: ClassVar[int] = 1 << 22
    most_pixels: ClassVar[int] = 1 << 24
    fp32_settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, index: int = 0) -> None:
        self.index = index

    @property
    def torch_device(self) -> torch.device:
        """The same device for torch."""
        import torch

        return torch.device(self.kind, self.index)

    @property
    def streams(self) -> Streams | None:
        """Streams for copies beside the computation, through pinned memory; None if all operations are in one order."""
        return None

    @property
    def recorder(self) -> Recorder | None:
        """What records its operations; None if they can only be queued one by one."""
        return None

    @abstractmethod
    def available(self) -> bool:
        """Return whether this process can use such a device."""

    @abstractmethod
    def count(self) -> int:
        """Return how many such devices this process can use."""

    @abstractmethod
    def name(self) -> str:
        """Return the product name."""

    def require(self) -> None:
        """Raise RefusedError if this process cannot use such a device."""
        if not self.available():
            raise RefusedError(f"this machine has no {self.title} that PyTorch can use; use --device cpu")

    def slots(self, cpus: int, gpus: int) -> int:
        """Return how many actors with one device each fit on the given cores and units of Ray's resource ``GPU``."""
        return gpus // self.ray_gpus if self.ray_gpus else cpus

    def ray_options(self, threads: int) -> dict[str, int]:
        """Return the resources that an actor or task with this number of threads reserves."""
        return {"num_cpus": 0 if self.ray_gpus else threads, "num_gpus": self.ray_gpus}

    def use_threads(self, count: int) -> None:
        """Compute with this number of threads from now on; no effect on accelerators."""
        import torch

        if not self.accelerated:
            torch.set_num_threads(count)

    # Settings that results depend on

    def be_repeatable(self) -> None:
        """Make networks of this process give the same bits in every call from now on, and fp32 mean IEEE fp32.

        Call it before the first network is moved to the device: recordings keep the settings under which they were
        made.
        """
        for settings in fp32_settings(self.fp32_settings):
            settings.fp32_precision = "ieee"

    def fp32_policy(self) -> str:
        """Return what fp32 means on it now; part of the key of whatever was compared or compiled in this process."""
        current = zip(self.fp32_settings, fp32_settings(self.fp32_settings), strict=True)
        return " ".join(f"{name}={settings.fp32_precision}" for name, settings in current)

    def in_float64(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor in float64; on the host if the device cannot compute in it.

        Parameters
        ----------
        tensor : any shape and dtype

        Returns
        -------
        torch.Tensor
            Same shape, float64.
        """
        import torch

        return (tensor if self.has_float64 else tensor.cpu()).to(torch.float64)

    def onnx_provider(self) -> tuple[str, dict[str, str]] | None:
        """Return the execution provider of onnxruntime and its options; None if graphs run on the host."""
        return None

    def forked_random(self) -> AbstractContextManager[None]:
        """Return a context that restores torch's random state on exit, on the host and on the device."""
        import torch

        return torch.random.fork_rng(devices=[self.torch_device], device_type=self.kind)

    # Memory, in bytes

    @abstractmethod
    def free_memory(self) -> int:
        """Return the bytes of memory that nobody uses now."""

    @abstractmethod
    def total_memory(self) -> int:
        """Return the bytes of memory in total."""

    @abstractmethod
    def peak_memory(self) -> int:
        """Return the largest number of bytes that this process held since `reset_peak_memory`.

        If the peak cannot be reset, it is that since the process began.
        """

    def reset_peak_memory(self) -> None:
        """Release unused memory, and measure the peak from now on."""
        self.release_memory()

    @abstractmethod
    def release_memory(self) -> None:
        """Release the memory that torch holds and does not use."""

    # Order of work

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all operations queued so far are complete."""

    @abstractmethod
    def finish(self) -> None:
        """Wait for the stream of the calling thread; other streams are not waited for."""

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy of a host tensor in pinned memory; the tensor itself if the device has no pinned memory.

        Parameters
        ----------
        tensor : on the host, any shape and dtype

        Returns
        -------
        torch.Tensor
            Same shape and dtype.
        """
        return tensor

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Allocate an uninitialised tensor in host memory that the device can write to directly.

        Parameters
        ----------
        shape, dtype : of the tensor

        Returns
        -------
        torch.Tensor
            `shape` of `dtype`, on the host.
        """
        import torch

        return torch.empty(shape, dtype=dtype)


def fp32_settings(names: Iterable[str]) -> list[Any]:
    """Return the parts of ``torch.backends`` with these names; each has a `fp32_precision`."""
    import torch

    values = []
    for name in names:
        settings: Any = torch.backends
        for part in name.split("."):
            settings = getattr(settings, part)
        values.append(settings)
    return values
