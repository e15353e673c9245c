"""A device that computes on the cores, has what a GPU has, and counts what it is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import torch

from chorus.pipeline.core.device import Direction, Recorder, Streams
from chorus.pipeline.core.devices import REGISTRY, Cpu

T = TypeVar("T")
GIGABYTE = 10**9


@dataclass(eq=False)
class CountedStream:
    """Operations are done when they are told; what it waits for is noted."""

    name: str
    waited_for: list[str] = field(default_factory=list)

    def wait_stream(self, stream: CountedStream) -> None:
        self.waited_for.append(stream.name)

    def synchronize(self) -> None:
        self.waited_for.append("host")


class CountedDevice(Cpu, Streams, Recorder):
    """Takes the place of the CPU in the registry: see `counted_device`.

    Attributes
    ----------
    asked : how often, by what was asked
    order : what was asked and may not be in another order
    """

    title = "counting GPU"
    accelerated = True
    has_float64 = False
    call_pixels = 4 * 64**2

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.asked: Counter[str] = Counter()
        self.order: list[str] = []
        self.side = {name: CountedStream(name) for name in ("computing", "in", "out")}
        self.now = self.side["computing"]
        self.free, self.peak = 40 * GIGABYTE, 0

    @property
    def streams(self) -> Streams:
        return self

    @property
    def recorder(self) -> Recorder:
        return self

    def name(self) -> str:
        return "counting GPU 40 GB"

    def be_repeatable(self) -> None:
        self.order.append("repeatable")

    def fp32_policy(self) -> str:
        return "counted=ieee"

    def in_float64(self, tensor: torch.Tensor) -> torch.Tensor:
        self.asked["float64 on the host"] += 1
        return super().in_float64(tensor)

    def free_memory(self) -> int:
        self.order.append("free memory")
        return self.free

    def peak_memory(self) -> int:
        return self.peak

    def reset_peak_memory(self) -> None:
        self.order.append("peak reset")
        self.peak = 0

    def release_memory(self) -> None:
        self.asked["memory released"] += 1

    def synchronize(self) -> None:
        self.asked["synchronised"] += 1

    def computing(self) -> CountedStream:
        return self.now

    def copying(self, direction: Direction) -> CountedStream:
        return self.side[direction]

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        before, self.now = self.now, stream
        self.asked[f"on {stream.name}"] += 1
        try:
            yield
        finally:
            self.now = before

    def event(self) -> CountedEvent:
        return CountedEvent(self.asked)

    def keep(self, tensor: torch.Tensor, stream: Any) -> None:
        self.asked[f"kept for {stream.name}"] += 1

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        self.asked["pinned"] += 1
        return tensor.clone()

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        self.asked["host memory"] += 1
        return torch.empty(shape, dtype=dtype)

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        self.order.append("recorded")
        answers: Any = call()

        def replay() -> None:
            for kept, new in zip(answers, call(), strict=True):  # type: ignore[call-overload]
                kept.copy_(new)

        return answers, replay


class CountedEvent:
    """Marks that were recorded, and those that the host waited for."""

    def __init__(self, asked: Counter[str]) -> None:
        self._asked, self._stream = asked, ""

    def record(self, stream: Any) -> None:
        self._stream = stream.name

    def synchronize(self) -> None:
        self._asked[f"waited for {self._stream}"] += 1


def counted_device(monkeypatch: pytest.MonkeyPatch) -> CountedDevice:
    """The device that stands for the CPU until the test ends."""
    made = CountedDevice()

    class Own(CountedDevice):
        """A class of this test alone, as the registry makes one device of each."""

        def __new__(cls, index: int = 0) -> Any:
            return made

        def __init__(self, index: int = 0) -> None:
            """Made already."""

    monkeypatch.setitem(REGISTRY, "cpu", Own)
    return made
