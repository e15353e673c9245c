"""The nodes of a cluster, one by one: they may differ, and more may join."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from chorus.cluster.runtime.cancellation import cancel_running
from chorus.cluster.runtime.resources import USABLE_MEMORY, Machine
from chorus.pipeline.core.device import DeviceKind
from chorus.pipeline.core.devices import device_of

# Time for a process to start on every node with GPUs and to measure one; busy nodes stay unknown.
_PROBE_SECONDS = 60.0
# Of a resource that a node with accelerators has beside their number.
_TYPE = "accelerator_type:"
log = logging.getLogger("chorus")


def machines() -> tuple[Machine, ...]:
    """Return the nodes that are alive; Ray must have been started."""
    return tuple(_machine(node) for node in ray.nodes() if node["Alive"])


def _machine(node: dict[str, Any]) -> Machine:
    has: dict[str, float] = node["Resources"]
    return Machine(
        id=node["NodeID"],
        host=node["NodeManagerAddress"],
        cpus=int(has.get("CPU", 0)),
        gpus=int(has.get("GPU", 0)),
        memory=int(has.get("memory", 0)),
        gpu_type=next((name.removeprefix(_TYPE) for name in sorted(has) if name.startswith(_TYPE)), ""),
    )


def with_gpu_memory(machines: Iterable[Machine], kind: DeviceKind) -> tuple[Machine, ...]:
    """Return the nodes with their GPU memory filled in, measured on each node if several nodes have GPUs."""
    machines = tuple(machines)
    tasks: dict[Any, Machine] = {}
    if sum(machine.gpus > 0 for machine in machines) > 1:
        ask = ray.remote(max_calls=1, max_retries=0)(_usable_memory)
        for machine in machines:
            if machine.gpus:
                there = NodeAffinitySchedulingStrategy(machine.id, soft=False)
                tasks[ask.options(**device_of(kind).ray_options(0), scheduling_strategy=there).remote(kind)] = machine
    known: dict[str, int] = {}
    if tasks:
        ready, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=_PROBE_SECONDS)
        cancel_running(late)
        for task in ready:
            try:
                known[tasks[task].id] = ray.get(task)
            except RayError:
                log.debug("the GPU of %s was not measured", tasks[task].host, exc_info=True)
    return tuple(replace(machine, gpu_memory=known.get(machine.id, 0)) for machine in machines)


def _usable_memory(kind: DeviceKind) -> int:
    device = device_of(kind)
    return int(USABLE_MEMORY * device.free_memory()) if device.available() else 0
