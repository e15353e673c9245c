"""Processes that have finished an image stay for the next one, though members hold every core."""

from __future__ import annotations

import os
import time

import psutil
import pytest
import ray

from chorus.cluster.runtime import session
from chorus.cluster.runtime.ray_tasks import RayTasks


@pytest.mark.long
def test_processes_of_tasks_stay_where_actors_hold_all_cores() -> None:
    class Holder:  # here, so that it travels to processes that do not know this file
        def there(self) -> bool:
            return True

    resources = session.start(None, staged=False)
    try:
        held = [ray.remote(num_cpus=1)(Holder).remote() for _ in range(resources.cpus)]
        assert all(ray.get([one.there.remote() for one in held]))
        tasks = RayTasks(1, cpus=0)
        used = []
        for _ in range(2):
            tasks.submit(0, os.getpid)
            used += [result.value for result in tasks.results(wait=True)]
            time.sleep(3)  # Ray ends idle processes after one, where there are more than it is to keep
        assert all(psutil.pid_exists(process) for process in used)
    finally:
        session.stop()
