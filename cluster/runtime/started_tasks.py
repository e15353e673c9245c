"""Plain tasks where they belong: in this process, on Ray, or first here and what is left there."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from chorus.cluster.runtime.break_even import SERIAL_SECONDS, ray_is_up, several_cores
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.signals import STOPPED
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.runtime.tasks import TaskResult, Tasks, attempt
from chorus.pipeline.errors import CutShortError, OutputError

Executor = Literal["auto", "ray", "serial"]
"""What carries work out; for ``auto`` see `chorus.cluster.runtime.break_even`."""
Call = tuple[int, Callable[..., Any], tuple[Any, ...]]
Item = TypeVar("Item")


class SerialTasks:
    """See `chorus.cluster.runtime.tasks.Tasks`. A task runs when its result is asked for, one after the other."""

    def __init__(self) -> None:
        self._waiting: deque[Call] = deque()

    def submit(self, key: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Queue `function(*arguments)` under `key`."""
        self._waiting.append((key, function, arguments))

    def results(self, *, wait: bool) -> Iterator[TaskResult]:
        """Run the queued tasks one by one, and yield the result of each."""
        while self._waiting:
            key, function, arguments = self._waiting.popleft()
            yield attempt(key, function, *arguments)


class AutoTasks(SerialTasks):
    """Tasks in this process until they have taken `patience` seconds; those that are left then go elsewhere.

    Parameters
    ----------
    elsewhere : starts what carries them out then
    """

    def __init__(self, elsewhere: Callable[[], Tasks], patience: float = SERIAL_SECONDS) -> None:
        super().__init__()
        self._elsewhere, self._patience = elsewhere, patience
        self._there: Tasks | None = None
        self._taken = 0.0

    def submit(self, key: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Queue `function(*arguments)` under `key`, on Ray once it has started, else in this process."""
        if self._there is not None:
            self._there.submit(key, function, *arguments)
        else:
            super().submit(key, function, *arguments)

    def results(self, *, wait: bool) -> Iterator[TaskResult]:
        """Yield results: of tasks run in this process first, of the rest on Ray once patience has run out."""
        while self._waiting:
            # One that is alone takes as long anywhere.
            if self._taken >= self._patience and len(self._waiting) > 1:
                self._there = self._elsewhere()
                while self._waiting:
                    key, function, arguments = self._waiting.popleft()
                    self._there.submit(key, function, *arguments)
                break
            key, function, arguments = self._waiting.popleft()
            begun = time.monotonic()
            result = attempt(key, function, *arguments)
            self._taken += time.monotonic() - begun
            yield result
        if self._there is not None:
            yield from self._there.results(wait=wait)


@contextmanager
def started_tasks(
    executor: Executor, address: str | None, count: int, reporter: Reporter
) -> Iterator[tuple[Tasks, int]]:
    """Yield what runs `count` tasks, and on how many cores; start or join Ray, and leave it at the end."""
    if executor == "serial" or not count:
        yield SerialTasks(), 1
    elif executor == "ray" or address is not None or ray_is_up():
        with _on_ray(address, reporter) as started:
            yield started
    elif count == 1 or not several_cores():
        yield SerialTasks(), 1
    else:
        with ExitStack() as stack:

            def elsewhere() -> Tasks:
                tasks, cores = stack.enter_context(_on_ray(None, reporter))
                reporter.devices(cores)
                return tasks

            yield AutoTasks(elsewhere), 1


@contextmanager
def _on_ray(address: str | None, reporter: Reporter) -> Iterator[tuple[Tasks, int]]:
    # Imported where it is needed alone: it takes seconds.
    from chorus.cluster.runtime import session
    from chorus.cluster.runtime.ray_tasks import RayTasks

    if not ray_is_up():
        reporter.phase("starting Ray" if address is None else f"connecting to Ray at {address}")
    cores = max(1, session.start(address, staged=False).cpus)
    try:
        # Twice as many as cores, so that a core that is done has the next one at hand.
        yield RayTasks(2 * cores, cpus=1), cores
    finally:
        session.stop()


@dataclass
class Ending:
    """How work ended.

    Attributes
    ----------
    state : ``complete`` or ``interrupted``
    message : why it was interrupted
    """

    state: Literal["complete", "interrupted"] = "complete"
    message: str = ""


@contextmanager
def interruptible() -> Iterator[Ending]:
    """Do work inside the context; what interrupts it is noted in the ending and goes no further.

    Work is interrupted if storage does not take its results, or if the process is told to stop.
    """
    ending = Ending()
    try:
        yield ending
    except CutShortError as error:
        ending.state, ending.message = "interrupted", str(error)
    except KeyboardInterrupt:
        ending.state, ending.message = "interrupted", STOPPED


class Work(Protocol):
    """Tasks to carry out; further ones may follow from the results of the first."""

    def begin(self, tasks: Tasks, cores: int) -> None:
        """Submit the first tasks."""
        ...

    def take(self, result: TaskResult) -> RegionStatus:
        """Keep the result of a task, and submit those that follow from it; return what to report of it."""
        ...


def carry_out(
    work: Work, executor: Executor, address: str | None, reporter: Reporter, *, items: int, steps: int, pixels: int
) -> None:
    """Carry out all tasks of `work`, and report each as it ends.

    Parameters
    ----------
    items : number of independent parts of the work, by which `executor` is chosen
    steps, pixels : number of tasks, and of pixels in them, for the reporter

    Raises
    ------
    OutputError
        If storage does not take the results of a task; the tasks after it are left.
    """
    with started_tasks(executor, address, items, reporter) as (tasks, cores):
        reporter.begin(steps, pixels, cores)
        try:
            work.begin(tasks, cores)
            for result in tasks.results(wait=True):
                reporter.region(work.take(result))
                if result.unwritable:
                    raise OutputError(result.error or "")
        finally:
            reporter.end()


@dataclass(frozen=True)
class ItemEnd:
    """What to report of an item that has ended; `failure` is empty if it is done."""

    pixels: int = 0
    seconds: float = 0.0
    failure: str = ""


class Items(Generic[Item]):
    """Implements `Work`: a task for each of some items that need nothing of one another.

    Parameters
    ----------
    items : one by one
    call : returns the function of an item's task and its arguments
    take : keeps the result of an item
    """

    def __init__(
        self,
        items: Sequence[Item],
        call: Callable[[Item], tuple[Callable[..., object], tuple[object, ...]]],
        take: Callable[[Item, TaskResult], ItemEnd],
    ) -> None:
        self._items, self._call, self._take = items, call, take

    def begin(self, tasks: Tasks, cores: int) -> None:
        """Submit all tasks."""
        for index, item in enumerate(self._items):
            function, arguments = self._call(item)
            tasks.submit(index, function, *arguments)

    def take(self, result: TaskResult) -> RegionStatus:
        """Keep the result of an item."""
        end = self._take(self._items[result.key], result)
        state: Literal["failed", "done"] = "failed" if end.failure else "done"
        return RegionStatus(
            region=result.key,
            image=result.key,
            region_in_image=0,
            state=state,
            message=end.failure,
            pixels=end.pixels,
            device_seconds=end.seconds,
            seconds=end.seconds,
        )

    def carry_out(self, executor: Executor, address: str | None, reporter: Reporter, *, pixels: int = 0) -> Ending:
        """Carry all of them out; `pixels` is their number in all, if it is known."""
        count = len(self._items)
        with interruptible() as ending:
            carry_out(self, executor, address, reporter, items=count, steps=count, pixels=pixels)
        return ending
