"""Cancels Ray tasks whose results nobody needs any more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ray


def cancel_running(tasks: Iterable[Any]) -> None:
    """Cancel the tasks that are still running, with their processes: a cluster outlives its drivers.

    Finished tasks are left alone: the driver crashes if a cancellation meets the end of a task (ray-project/ray#54785).
    """
    asked = list(tasks)
    if asked:
        _, running = ray.wait(asked, num_returns=len(asked), timeout=0)
        for task in running:
            ray.cancel(task, force=True)
