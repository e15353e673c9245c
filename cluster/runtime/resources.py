"""What there is to work on, in numbers: of a cluster of Ray, or of this machine alone."""

from __future__ import annotations

from dataclasses import dataclass

from chorus.pipeline.core.device import DeviceKind
from chorus.pipeline.core.devices import of_cluster

# Of the memory that is free: the rest is for the object store, the system and what others do meanwhile.
USABLE_MEMORY = 0.8


@dataclass(frozen=True, slots=True)
class Machine:
    """A node.

    Attributes
    ----------
    id, host : how Ray knows it, and its address
    cpus, gpus : that Ray gives out
    memory : bytes that Ray gives out to those who ask for memory
    gpu_memory : bytes that may be used of each of its GPUs; 0 where that is not known
    gpu_type : what Ray calls its GPUs, where it knows that
    """

    id: str
    host: str
    cpus: int
    gpus: int
    memory: int
    gpu_memory: int = 0
    gpu_type: str = ""


@dataclass(frozen=True, slots=True)
class Resources:
    """What the cluster has: cores, GPUs, nodes, and bytes of memory; `logs` is the folder of Ray's own logs.

    `machines` are its nodes one by one, where they are known.
    """

    cpus: int
    gpus: int
    nodes: int
    memory: int
    logs: str = ""
    machines: tuple[Machine, ...] = ()

    @property
    def device(self) -> DeviceKind:
        """What ``--device auto`` takes there."""
        return of_cluster(self.gpus, [machine.gpu_type for machine in self.machines if machine.gpu_type])
