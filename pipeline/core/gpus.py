"""GPUs behind the interface `chorus.pipeline.core.device.Device`, through torch's module for each kind."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from chorus.pipeline.core.device import Device, Direction, Event, Recorder, Stream, Streams

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
# Warm-up calls before a recording, in which libraries choose their algorithms and allocate memory.
_WARMING = 3


class Gpu(Device, Streams):
    """A GPU with memory of its own, through the torch module named after its kind."""

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self._sides: dict[Direction, Stream] = {}

    @property
    def streams(self) -> Streams:
        """Its streams: those of the torch module."""
        return self

    @property
    def _module(self) -> Any:
        import torch

        return torch.get_device_module(self.kind)

    def available(self) -> bool:
        """Return whether torch can use such a GPU."""
        return bool(self._module.is_available())

    def count(self) -> int:
        """Return the number of GPUs that torch can use."""
        return int(self._module.device_count())

    def name(self) -> str:
        """Return the product name."""
        return str(self._module.get_device_name(self.index))

    def free_memory(self) -> int:
        """Return the free bytes of its memory."""
        return int(self._module.mem_get_info(self.index)[0])

    def total_memory(self) -> int:
        """Return the bytes of its memory."""
        return int(self._module.mem_get_info(self.index)[1])

    def peak_memory(self) -> int:
        """Return the largest number of bytes that torch reserved since `reset_peak_memory`."""
        # Reserved rather than allocated memory: recordings and libraries hold more than tensors do.
        return int(self._module.max_memory_reserved(self.index))

    def reset_peak_memory(self) -> None:
        """Release unused memory, and measure the peak from now on."""
        self.release_memory()
        self._module.reset_peak_memory_stats(self.index)

    def release_memory(self) -> None:
        """Release the memory that torch's allocator caches."""
        self._module.empty_cache()

    def synchronize(self) -> None:
        """Wait until all operations queued on this GPU are complete."""
        self._module.synchronize(self.index)

    def computing(self) -> Stream:
        """Return the current stream of the calling thread."""
        stream: Stream = self._module.current_stream(self.index)
        return stream

    def copying(self, direction: Direction) -> Stream:
        """Return the process's own stream for copies in this direction; it is created at the first call."""
        if direction not in self._sides:
            self._sides.setdefault(direction, self._module.Stream(self.torch_device))
        return self._sides[direction]

    def on(self, stream: Stream) -> AbstractContextManager[Any]:
        """Return a context in which operations are queued in `stream`."""
        within: AbstractContextManager[Any] = self._module.stream(stream)
        return within

    def event(self) -> Event:
        """Return a new event."""
        event: Event = self._module.Event()
        return event

    def keep(self, tensor: torch.Tensor, stream: Stream) -> None:
        """Keep a tensor's memory for `stream`; see `Streams.keep`."""
        tensor.record_stream(stream)  # type: ignore[arg-type]

    def finish(self) -> None:
        """Wait for the current stream of the calling thread."""
        self.computing().synchronize()

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy of a host tensor in pinned memory; the tensor itself if it is empty.

        Parameters
        ----------
        tensor : on the host, any shape and dtype

        Returns
        -------
        torch.Tensor
            Same shape and dtype.
        """
        return tensor.pin_memory() if tensor.numel() else tensor

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Allocate an uninitialised host tensor in pinned memory.

        Parameters
        ----------
        shape, dtype : of the tensor

        Returns
        -------
        torch.Tensor
            `shape` of `dtype`, on the host.
        """
        import torch

        return torch.empty(shape, dtype=dtype, pin_memory=True)


class Cuda(Gpu, Recorder):
    """A GPU of NVIDIA, or of AMD with PyTorch for ROCm."""

    kind = "cuda"
    title = "GPU"
    fp32_settings = ("cudnn.conv", "cudnn.rnn", "cuda.matmul")

    @property
    def recorder(self) -> Recorder:
        """Its recorder: CUDA graphs."""
        return self

    def be_repeatable(self) -> None:
        """Make networks of this process give the same bits in every call, and fp32 mean IEEE fp32."""
        import torch

        # The choice of algorithm must not depend on what ran before.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        # The older names first: by themselves they leave convolutions at "none", which means that others choose, and
        # torch refuses to read them if they disagree with the newer ones.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        super().be_repeatable()

    def onnx_provider(self) -> tuple[str, dict[str, str]]:
        """Return onnxruntime's execution provider for CUDA, with TF32 disabled."""
        return "CUDAExecutionProvider", {"device_id": str(self.index), "use_tf32": "0"}

    def event(self) -> Event:
        """Return an event on which the host waits without spinning."""
        event: Event = self._module.Event(blocking=True)
        return event

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Record the operations that `call` queues as a CUDA graph; see `Recorder.record`."""
        import torch

        self.be_repeatable()
        computing, aside = self.computing(), self._module.Stream(self.torch_device)
        aside.wait_stream(computing)
        with self.on(aside):
            for _ in range(_WARMING):
                call()
        computing.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device during the recording.
        with torch.cuda.graph(graph, pool=_graph_pool(), capture_error_mode="thread_local"):
            answers = call()
        return answers, graph.replay


class Xpu(Gpu):
    """A GPU of Intel."""

    kind = "xpu"
    title = "Intel GPU"
    ray_types = "Intel-GPU"
    has_float64 = False  # Arc has none
    fp32_settings = ("mkldnn.conv", "mkldnn.rnn", "mkldnn.matmul")

    def be_repeatable(self) -> None:
        """Make networks of this process give the same bits in every call, and fp32 mean IEEE fp32."""
        import torch

        torch.backends.mkldnn.deterministic = True  # type: ignore[assignment]
        super().be_repeatable()


class Mps(Device):
    """The GPU of an Apple processor: it shares the machine's memory, and there is one per machine.

    Operations that it lacks run on the CPU: ``chorus/__init__.py`` enables that fallback before torch is imported.
    """

    kind = "mps"
    title = "Apple GPU"
    ray_types = r"M\d"
    has_float64 = False
    compiles = False

    def available(self) -> bool:
        """Return whether torch can use it."""
        import torch

        return torch.backends.mps.is_available()

    def count(self) -> int:
        """Return 1 if torch can use it, else 0."""
        return int(self.available())

    def name(self) -> str:
        """Return the processor and the GPU's memory as text."""
        return f"GPU of {platform.processor() or platform.machine()}, {self.total_memory() / 1e9:.0f} GB"

    def slots(self, cpus: int, gpus: int) -> int:
        """Return how many actors fit: at most one, since a Ray cluster on Apple hardware is a single machine."""
        return min(1, gpus)  # a Ray cluster on Apple hardware is a single machine

    def free_memory(self) -> int:
        """Return the free bytes: what the GPU may still use, at most what is available on the machine."""
        import torch

        held = torch.mps.driver_allocated_memory()
        return min(self.total_memory() - held, psutil.virtual_memory().available)

    def total_memory(self) -> int:
        """Return the bytes of memory that the GPU should use at most."""
        import torch

        return torch.mps.recommended_max_memory()

    def peak_memory(self) -> int:
        """Return the bytes that the driver holds; they only shrink by `release_memory`."""
        import torch

        return torch.mps.driver_allocated_memory()  # the driver keeps memory until `release_memory`

    def release_memory(self) -> None:
        """Release the memory that torch's allocator caches."""
        import torch

        torch.mps.empty_cache()

    def synchronize(self) -> None:
        """Wait until all queued operations are complete."""
        import torch

        torch.mps.synchronize()

    def finish(self) -> None:
        """Wait until all queued operations are complete."""
        self.synchronize()

    @contextmanager
    def forked_random(self) -> Iterator[None]:
        """Restore the state of torch's random generators on exit, on the host and on the GPU."""
        import torch

        with torch.random.fork_rng(devices=[]):
            state = torch.mps.get_rng_state()
            try:
                yield
            finally:
                torch.mps.set_rng_state(state)


@cache
def _graph_pool() -> Any:
    """Return the memory pool that all recordings share: they are replayed one after the other."""
    import torch

    return torch.cuda.graph_pool_handle()
