"""Plain tasks where they belong: in this process, on Ray, or first here and what is left there."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from chorus.cluster.runtime.break_even import SERIAL_SECONDS, ray_is_up, several_cores
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.runtime.tasks import TaskResult, Tasks, attempt
from chorus.pipeline.errors import OutputError

Executor = Literal["auto", "ray", "serial"]
"""What carries work out; for ``auto`` see `chorus.cluster.runtime.break_even`."""
Call = tuple[int, Callable[..., Any], tuple[Any, ...]]
Row = dict[str, Any]


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


def rows_of_calls(
    executor: Executor,
    address: str | None,
    calls: Sequence[Call],
    reporter: Reporter,
    take: Callable[[TaskResult], Row],
) -> tuple[str, str]:
    """Carry out calls that need nothing of each other, (key, function, arguments), and show each as it ends.

    `take` keeps a result and gives its row, with ``status``, ``message``, ``pixels`` and ``seconds``.

    Returns
    -------
    ``complete`` or ``interrupted``, and why: storage did not take results, or the run was told to stop
    """
    try:
        with started_tasks(executor, address, len(calls), reporter) as (tasks, cores):
            for key, function, arguments in calls:
                tasks.submit(key, function, *arguments)
            reporter.begin(len(calls), 0, cores)
            try:
                for result in tasks.results(wait=True):
                    reporter.region(_status(result.key, take(result)))
                    if result.unwritable:
                        raise OutputError(result.error or "")
            finally:
                reporter.end()
    except OutputError as error:
        return "interrupted", str(error)
    except KeyboardInterrupt:
        return "interrupted", "stopped; run the same command again to go on"
    return "complete", ""


def _status(key: int, row: Row) -> RegionStatus:
    failed = row["status"] == "failed"
    return RegionStatus(
        region=key,
        image=key,
        place=0,
        state="failed" if failed else "done",
        message=row["message"] if failed else "",
        pixels=row["pixels"],
        device_seconds=row["seconds"],
        seconds=row["seconds"],
    )
