"""Plain tasks on Ray: `chorus.cluster.runtime.tasks.Tasks` without a stream of regions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from chorus.cluster.runtime.tasks import TaskResult, attempt_in_ray
from chorus.pipeline.core.retries import RETRIES
from chorus.pipeline.io.fences import passes


class RayTasks:
    """Implements `chorus.cluster.runtime.tasks.Tasks` on Ray, which must have been started.

    Parameters
    ----------
    most : tasks that are submitted to Ray at once
    cpus : cores that a task reserves
    """

    def __init__(self, most: int, cpus: float) -> None:
        self._most = most
        self._running: dict[Any, int] = {}
        self._waiting: deque[tuple[int, Callable[..., Any], tuple[Any, ...]]] = deque()
        # Spread: tasks that reserve no core would all be placed on the driver's node.
        remote = ray.remote(attempt_in_ray)
        self._attempt = remote.options(num_cpus=cpus, max_retries=RETRIES.task_retries, scheduling_strategy="SPREAD")

    def submit(self, key: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Queue a task; start it if fewer than `most` are running."""
        self._waiting.append((key, function, arguments))
        self._begin()

    def results(self, *, wait: bool) -> Iterator[TaskResult]:
        """Yield results of tasks that have ended; with `wait` until all have."""
        while self._running:
            ended, _ = ray.wait(list(self._running), num_returns=1, timeout=None if wait else 0)
            if not ended:
                return
            key = self._running.pop(ended[0])
            self._begin()
            try:
                result: TaskResult = ray.get(ended[0])
            except RayError as error:  # its process died repeatedly, such as of memory or of a fault in a decoder
                reason = str(error).strip().splitlines()[-1]
                result = TaskResult(key, None, f"the process that worked on it died ({reason}); see the logs of Ray")
            yield result

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self._most:
            key, function, arguments = self._waiting.popleft()
            self._running[self._attempt.remote(passes(), key, function, *arguments)] = key
