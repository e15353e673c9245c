"""What a simulated run is made of: devices, work, constants, outcome; see `chorus.cluster.costs.simulation`."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Of any stream: the driver takes two minutes to make them.
_MOST_BLOCKS = 100_000


@dataclass(frozen=True, slots=True)
class Devices:
    """Devices of one kind, an actor on each.

    Attributes
    ----------
    count : how many, over all nodes
    per_node : that start and vanish together
    region_seconds : that a device is held by a region, on the mean
    start_seconds : from asking for a node until its actors answer, at the beginning and after a preemption
    preemptions_per_hour : of a node
    """

    count: int
    region_seconds: float
    per_node: int = 1
    start_seconds: float = 0.0
    preemptions_per_hour: float = 0.0

    @property
    def nodes(self) -> int:
        """Return the number of nodes that hold `count` devices."""
        return -(-self.count // self.per_node)


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do.

    Attributes
    ----------
    regions, images : how many
    spread : standard deviation of a region's device seconds, as a share of their mean
    read_seconds, write_seconds : of a region, while another one may hold the device
    finish_seconds : of an image, its pyramid and scores, by a task beside the actors
    """

    regions: int
    images: int = 1
    spread: float = 0.0
    read_seconds: float = 0.0
    write_seconds: float = 0.0
    finish_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Constants of the design, and the driver's time per step (measured: `docs/scale.md`).

    Attributes
    ----------
    regions_per_block, blocks_per_actor, tasks : see `chorus.cluster.planning.devices.placement.Placement`
    most_blocks, most_blocks_per_actor : a stream has no more blocks than the larger of the two allows: few actors have
        enough of the first, and many need the second, or those that come last to a round of blocks stand idle
    least_blocks_per_actor : a stream has no fewer, so that all actors have work to the end where there are few regions
    block_seconds_before, block_seconds, status_seconds : the driver's, per block before the stream begins and while it
        goes on, and per region that ends
    task_seconds : the driver's, per image that is finished
    check_seconds : to find that a region is recorded already, when its block is retried
    regions_per_second : maximum that the storage accepts
    """

    regions_per_block: int = 1
    blocks_per_actor: int = 3
    tasks: int = 2
    most_blocks: int = 5_000
    most_blocks_per_actor: int = 64
    least_blocks_per_actor: int = 8
    block_seconds_before: float = 0.001
    block_seconds: float = 0.005
    status_seconds: float = 0.0002
    task_seconds: float = 0.002
    check_seconds: float = 0.03
    regions_per_second: float = math.inf


@dataclass(frozen=True, slots=True)
class Simulated:
    """The course of a simulated run.

    Attributes
    ----------
    seconds : from the first node that is asked for to the last image
    start_seconds : until the first region is begun
    stream_seconds : from then until the last region ended
    tail_seconds : of the stream, from the first time that a device has nothing left
    finish_seconds : after the stream, until the last image is finished
    busy : share of the devices' time in the stream that they were held by regions that count
    device_seconds, repeated_seconds : held by regions that count, and by those that were lost and repeated
    regions : of each kind of device
    blocks, block_regions : of the stream, and the regions of one
    preemptions : nodes that vanished
    driver_busy : share of the stream in which the driver was busy
    """

    seconds: float
    start_seconds: float
    stream_seconds: float
    tail_seconds: float
    finish_seconds: float
    busy: float
    device_seconds: float
    repeated_seconds: float
    regions: tuple[float, ...]
    blocks: int
    block_regions: int
    preemptions: int
    driver_busy: float


def block_regions(regions: int, actors: int, schedule: Schedule) -> int:
    """Return the number of regions in a block of the stream."""
    size = min(schedule.regions_per_block, regions // (schedule.least_blocks_per_actor * actors))
    most = max(schedule.most_blocks, min(_MOST_BLOCKS, schedule.most_blocks_per_actor * actors))
    return max(1, size, -(-regions // most))
