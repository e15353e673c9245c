"""Plain tasks, in this process or on Ray: `chorus.cluster.runtime.tasks.Tasks` without a stream of regions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import ray
from ray.exceptions import RayError

from chorus.cluster.runtime import session
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.runtime.tasks import TaskResult, Tasks, attempt, attempt_in_ray
from chorus.pipeline.core.retries import RETRIES
from chorus.pipeline.errors import OutputError


class SerialTasks:
    """See `chorus.cluster.runtime.tasks.Tasks`. A task runs when its result is asked for, one after the other."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Callable[..., Any], tuple[Any, ...]]] = deque()

    def submit(self, key: int, function: Callable[..., Any], *arguments: Any) -> None:
        self._waiting.append((key, function, arguments))

    def results(self, *, wait: bool) -> Iterator[TaskResult]:
        while self._waiting:
            key, function, arguments = self._waiting.popleft()
            yield attempt(key, function, *arguments)


class RayTasks:
    """See `chorus.cluster.runtime.tasks.Tasks`. Ray must have been started (`chorus.cluster.runtime.session`).

    Parameters
    ----------
    most : tasks that are handed to Ray at once
    cpus : cores that a task reserves
    """

    def __init__(self, most: int, cpus: float) -> None:
        self._most = most
        self._running: dict[Any, int] = {}
        self._waiting: deque[tuple[int, Callable[..., Any], tuple[Any, ...]]] = deque()
        # Spread: those that reserve no core would all be put on the driver's node.
        remote = ray.remote(attempt_in_ray)
        self._attempt = remote.options(num_cpus=cpus, max_retries=RETRIES.task_retries, scheduling_strategy="SPREAD")

    def submit(self, key: int, function: Callable[..., Any], *arguments: Any) -> None:
        self._waiting.append((key, function, arguments))
        self._begin()

    def results(self, *, wait: bool) -> Iterator[TaskResult]:
        while self._running:
            ended, _ = ray.wait(list(self._running), num_returns=1, timeout=None if wait else 0)
            if not ended:
                return
            key = self._running.pop(ended[0])
            self._begin()
            try:
                result: TaskResult = ray.get(ended[0])
            except RayError as error:  # its process died again and again, as of memory or of a fault in a decoder
                reason = str(error).strip().splitlines()[-1]
                result = TaskResult(key, None, f"the process that worked on it died ({reason}); see the logs of Ray")
            yield result

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self._most:
            key, function, arguments = self._waiting.popleft()
            self._running[self._attempt.remote(key, function, *arguments)] = key


@contextmanager
def started_tasks(
    executor: Literal["ray", "serial"], address: str | None, count: int, reporter: Reporter
) -> Iterator[tuple[Tasks, int]]:
    """What carries `count` tasks out, and on how many cores; Ray is started or joined, and left at the end."""
    if executor == "serial" or not count:
        yield SerialTasks(), 1
        return
    if not ray.is_initialized():
        reporter.phase("starting Ray" if address is None else f"connecting to Ray at {address}")
    cores = max(1, session.start(address, staged=False).cpus)
    try:
        # Twice as many as cores, so that a core that is done has the next one at hand.
        yield RayTasks(2 * cores, cpus=1), cores
    finally:
        session.stop()


Call = tuple[int, Callable[..., Any], tuple[Any, ...]]
Row = dict[str, Any]


def rows_of_calls(
    executor: Literal["ray", "serial"],
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
