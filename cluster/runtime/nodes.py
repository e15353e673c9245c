"""The nodes of a cluster, one by one: they need not be alike, and more may come."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from chorus.cluster.runtime.cancellation import cancel_running

# For a process to start on every node with GPUs and to look at one; those of a node that is busy stay unknown.
_PROBE_SECONDS = 60.0
# Of the memory that is free: the rest is for the object store, the system and what others do meanwhile.
USABLE_MEMORY = 0.8
log = logging.getLogger("chorus")


@dataclass(frozen=True, slots=True)
class Machine:
    """A node.

    Attributes
    ----------
    id, host : how Ray knows it, and its address
    cpus, gpus : that Ray gives out
    memory : bytes that Ray gives out to those who ask for memory
    gpu_memory : bytes that may be used of each of its GPUs; 0 where that is not known
    """

    id: str
    host: str
    cpus: int
    gpus: int
    memory: int
    gpu_memory: int = 0


def machines() -> tuple[Machine, ...]:
    """The nodes that are there. Ray must have been started."""
    return tuple(_machine(node) for node in ray.nodes() if node["Alive"])


def _machine(node: dict[str, Any]) -> Machine:
    has: dict[str, float] = node["Resources"]
    return Machine(
        id=node["NodeID"],
        host=node["NodeManagerAddress"],
        cpus=int(has.get("CPU", 0)),
        gpus=int(has.get("GPU", 0)),
        memory=int(has.get("memory", 0)),
    )


def with_gpu_memory(found: Iterable[Machine]) -> tuple[Machine, ...]:
    """The same, with the memory of their GPUs where there are several nodes that have some: each is asked."""
    found = tuple(found)
    tasks: dict[Any, Machine] = {}
    if sum(machine.gpus > 0 for machine in found) > 1:
        ask = ray.remote(max_calls=1, max_retries=0)(_usable_gpu_memory)
        for machine in found:
            if machine.gpus:
                there = NodeAffinitySchedulingStrategy(machine.id, soft=False)
                tasks[ask.options(num_cpus=0, num_gpus=1, scheduling_strategy=there).remote()] = machine
    known: dict[str, int] = {}
    if tasks:
        ready, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=_PROBE_SECONDS)
        cancel_running(late)
        for task in ready:
            try:
                known[tasks[task].id] = ray.get(task)
            except RayError:
                log.debug("the GPU of %s was not measured", tasks[task].host, exc_info=True)
    return tuple(replace(machine, gpu_memory=known.get(machine.id, 0)) for machine in found)


def _usable_gpu_memory() -> int:
    import torch

    return int(USABLE_MEMORY * torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else 0
