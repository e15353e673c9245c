"""GPUs behind `chorus.pipeline.core.device.Device`, by the modules that torch has for them."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from chorus.pipeline.core.device import Device, Direction, Event, Stream

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
# Calls before a recording, in which libraries choose their algorithms and get their memory.
_WARMING = 3


class Gpu(Device):
    """A GPU with memory of its own, through the module of torch that is named as its kind."""

    has_streams = True

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self._sides: dict[Direction, Stream] = {}

    @property
    def _module(self) -> Any:
        import torch

        return torch.get_device_module(self.kind)

    def available(self) -> bool:
        return bool(self._module.is_available())

    def count(self) -> int:
        return int(self._module.device_count())

    def name(self) -> str:
        return str(self._module.get_device_name(self.index))

    def free_memory(self) -> int:
        return int(self._module.mem_get_info(self.index)[0])

    def total_memory(self) -> int:
        return int(self._module.mem_get_info(self.index)[1])

    def peak_memory(self) -> int:
        # Reserved and not allocated: recordings and libraries hold more than tensors do.
        return int(self._module.max_memory_reserved(self.index))

    def reset_peak_memory(self) -> None:
        self.release_memory()
        self._module.reset_peak_memory_stats(self.index)

    def release_memory(self) -> None:
        self._module.empty_cache()

    def synchronize(self) -> None:
        self._module.synchronize(self.index)

    def computing(self) -> Stream:
        stream: Stream = self._module.current_stream(self.index)
        return stream

    def copying(self, direction: Direction) -> Stream:
        if direction not in self._sides:
            self._sides.setdefault(direction, self._module.Stream(self.torch_device))
        return self._sides[direction]

    def on(self, stream: Stream) -> AbstractContextManager[Any]:
        within: AbstractContextManager[Any] = self._module.stream(stream)
        return within

    def event(self) -> Event:
        event: Event = self._module.Event()
        return event

    def keep(self, tensor: torch.Tensor, stream: Stream) -> None:
        tensor.record_stream(stream)  # type: ignore[arg-type]

    def finish(self) -> None:
        self.computing().synchronize()

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if tensor.numel() else tensor

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        import torch

        return torch.empty(shape, dtype=dtype, pin_memory=True)


class Cuda(Gpu):
    """A GPU of NVIDIA, or of AMD with PyTorch for ROCm."""

    kind = "cuda"
    title = "GPU"
    records_graphs = True
    fp32_settings = ("cudnn.conv", "cudnn.rnn", "cuda.matmul")

    def be_repeatable(self) -> None:
        import torch

        # The choice of algorithm must not depend on what ran before.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        # The older names first: by themselves they leave convolutions at "none", which means what others choose, and
        # torch refuses to say what they are where the newer ones say otherwise.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        super().be_repeatable()

    def onnx_provider(self) -> tuple[str, dict[str, str]]:
        return "CUDAExecutionProvider", {"device_id": str(self.index), "use_tf32": "0"}

    def event(self) -> Event:
        event: Event = self._module.Event(blocking=True)
        return event

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Record what `call` tells the device as a CUDA graph.

        Returns
        -------
        answers, replay : `answers` lie where `replay` writes them again, from what then lies where `call` reads. All
            recordings of a process share their memory: an answer is to be copied before another one is replayed.

        Raises
        ------
        RuntimeError
            Where something that `call` does cannot be recorded.
        """
        import torch

        self.be_repeatable()
        computing, aside = self.computing(), self._module.Stream(self.torch_device)
        aside.wait_stream(computing)
        with self.on(aside):
            for _ in range(_WARMING):
                call()
        computing.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on with what they do on the device.
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
        import torch

        torch.backends.mkldnn.deterministic = True  # type: ignore[assignment]
        super().be_repeatable()


class Mps(Device):
    """The GPU of an Apple processor: it shares the machine's memory, and there is one.

    Operations that it lacks run on the cores: ``chorus/__init__.py`` asks for that before torch is imported.
    """

    kind = "mps"
    title = "Apple GPU"
    ray_types = r"M\d"
    has_float64 = False
    compiles = False

    def available(self) -> bool:
        import torch

        return torch.backends.mps.is_available()

    def count(self) -> int:
        return int(self.available())

    def name(self) -> str:
        return f"GPU of {platform.processor() or platform.machine()}, {self.total_memory() / 1e9:.0f} GB"

    def slots(self, cpus: int, gpus: int) -> int:
        return min(1, gpus)  # a Ray of Apple's machines is one machine

    def free_memory(self) -> int:
        import torch

        held = torch.mps.driver_allocated_memory()
        return min(self.total_memory() - held, psutil.virtual_memory().available)

    def total_memory(self) -> int:
        import torch

        return torch.mps.recommended_max_memory()

    def peak_memory(self) -> int:
        import torch

        return torch.mps.driver_allocated_memory()  # it keeps what it took until `release_memory`

    def release_memory(self) -> None:
        import torch

        torch.mps.empty_cache()

    def synchronize(self) -> None:
        import torch

        torch.mps.synchronize()

    def finish(self) -> None:
        self.synchronize()

    @contextmanager
    def forked_random(self) -> Iterator[None]:
        import torch

        with torch.random.fork_rng(devices=[]):
            state = torch.mps.get_rng_state()
            try:
                yield
            finally:
                torch.mps.set_rng_state(state)


@cache
def _graph_pool() -> Any:
    """Memory that all recordings share: one is carried out after the other."""
    import torch

    return torch.cuda.graph_pool_handle()
