"""Forecast of a run's time and cost on clusters that need not exist yet, from plan, calibration and prices."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chorus.cluster.costs.simulation import simulate
from chorus.cluster.planning.cost import Cost
from chorus.cluster.planning.devices.cluster_file import ClusterFile, NodeType, StoragePrices
from chorus.cluster.planning.devices.device_probe import DeviceProbe
from chorus.cluster.planning.devices.placement import Placement, estimate_memory, place, tasks_at_once
from chorus.cluster.planning.devices.schedule import Devices, Schedule, Simulated, Work
from chorus.cluster.planning.resolved_settings import ResolvedSettings
from chorus.cluster.runs.run import PlannedRun
from chorus.cluster.runtime.resources import USABLE_MEMORY, Resources
from chorus.pipeline.core.devices import of_cluster
from chorus.pipeline.errors import RefusedError

# Time to join Ray, check the ensemble and load it in actors, on nodes that are running (measured: 18 to 40 s).
_ACTOR_SECONDS = 30.0
# Seconds of one core, without storage: to decode and prepare a megapixel of one channel, to encode and record one,
# to finish an image and a megapixel of it (measured: docs/scale.md).
_READ_SECONDS, _WRITE_SECONDS = 0.02, 0.15
_FINISH_SECONDS, _FINISH_SECONDS_PER_MEGAPIXEL = 0.15, 0.10
# Requests per region and per image in addition to the chunks of the source (docs/buckets.md).
_REGION_READS, _REGION_WRITES, _IMAGE_READS, _IMAGE_WRITES = 3, 4, 12, 13
_PYRAMID = 4 / 3
_SEEDS = 5


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Work and cost of the nodes of one type.

    Attributes
    ----------
    devices : actors on them
    regions : that they process
    device_hours, node_hours : hours of device work; hours that are paid for
    preemptions : nodes that are taken away
    cost : of the nodes
    """

    name: str
    nodes: int
    devices: int
    regions: float
    device_hours: float
    node_hours: float
    preemptions: float
    cost: float


@dataclass(frozen=True, slots=True)
class DurationForecast:
    """A run on some nodes.

    Attributes
    ----------
    title : of the nodes
    problem : why the run is impossible there; empty if it is possible
    seconds : in total: `start_seconds` until the first region begins, `stream_seconds`, and `finish_seconds` after it;
        `tail_seconds` is the part of the stream in which some devices have nothing left to do
    busy : fraction of the devices' time in the stream
    repeated : fraction of the device hours that preemptions cost
    nodes : by type
    beside, requests, reading : cost of other services, of requests, of bytes read
    cost : total; None if the run is impossible
    per_gigapixel : `cost` per gigapixel segmented
    """

    title: str
    problem: str = ""
    seconds: float = 0.0
    start_seconds: float = 0.0
    stream_seconds: float = 0.0
    tail_seconds: float = 0.0
    finish_seconds: float = 0.0
    busy: float = 0.0
    repeated: float = 0.0
    nodes: tuple[NodeCost, ...] = ()
    beside: float = 0.0
    requests: float = 0.0
    reading: float = 0.0
    cost: float | None = None
    per_gigapixel: float | None = None


@dataclass(frozen=True, slots=True)
class CostForecast:
    """Forecast of time and cost of a run.

    Attributes
    ----------
    alone : each type of nodes by itself, at its minimum and maximum number of nodes if it may have several
    together : all types that can do the work; None if there is only one
    output_bytes : uncompressed, including pyramids
    kept_per_month : cost of storing them uncompressed; compressed they take less
    calibration : source of the seconds per tile
    failures : images that cannot be processed, name and reason
    """

    currency: str
    cost: Cost
    calibration: DeviceProbe
    alone: tuple[DurationForecast, ...]
    together: DurationForecast | None
    output_bytes: int
    kept_per_month: float
    failures: tuple[tuple[str, str], ...] = ()


def forecast_costs(job: PlannedRun, cost: Cost, measured: DeviceProbe, cluster: ClusterFile) -> CostForecast:
    """Predict the run on every type of nodes by itself, and on all of them together.

    Raises
    ------
    RefusedError
        If there is nothing to do.
    """
    if not cost.regions:
        raise RefusedError("none of the sources has an image that can be done, so there is nothing to predict")
    alone: list[DurationForecast] = []
    able: list[_Nodes] = []
    for one in cluster.node_types:
        for number in one.numbers:
            title = f"{number} x {one.name}"
            try:
                nodes = _placed(job, cost, measured, one, number)
            except RefusedError as error:
                alone.append(DurationForecast(title, problem=str(error)))
                continue
            alone.append(_predict(title, [nodes], job, cost, cluster))
            if number == one.most:
                able.append(nodes)
    together = _predict("all together", able, job, cost, cluster) if len(able) > 1 else None
    output = round(cost.bytes_out * _PYRAMID)
    kept = output / 1e9 * cluster.storage.price_per_gb_month
    failures = tuple((failed.name, failed.message) for failed in job.failures)
    return CostForecast(cluster.currency, cost, measured, tuple(alone), together, output, kept, failures)


@dataclass(frozen=True, slots=True)
class _Nodes:
    """Nodes of one type and what is placed on them."""

    type: NodeType
    number: int
    placement: Placement
    seconds_per_tile: float


def _placed(job: PlannedRun, cost: Cost, measured: DeviceProbe, one: NodeType, number: int) -> _Nodes:
    """Place the members on nodes of one type; raise RefusedError if they do not fit."""
    device = of_cluster(one.gpus)
    settings: ResolvedSettings = job.settings.model_copy(update={"device": device})
    usable = int(USABLE_MEMORY * 1e9 * (one.gpu_memory_gb or one.memory_gb))
    memory = estimate_memory(job.table, job.ensemble, settings, measured)
    resources = Resources(number * one.cpus, number * one.gpus, number, int(number * one.memory_gb * 1e9))
    run = job.request.run.model_copy(update={"actors": None, "address": None})
    seconds = one.seconds_per_tile or measured.seconds_per_tile / (one.relative_speed or 1.0)
    placement = place(job.ensemble, settings, run, resources, memory, cost, usable, seconds)
    return _Nodes(one, number, placement, seconds)


def _predict(
    title: str, all_nodes: list[_Nodes], job: PlannedRun, cost: Cost, cluster: ClusterFile
) -> DurationForecast:
    """Simulate the run on these nodes; where nodes may be preempted, average over several seeds."""
    kinds = [_devices(nodes, cost) for nodes in all_nodes]
    work, schedule = _work(job, cost, cluster.storage), _schedule(all_nodes, cluster.storage)
    by_chance = any(kind.preemptions_per_hour for kind in kinds)
    runs = [simulate(kinds, work, schedule, seed) for seed in range(_SEEDS if by_chance else 1)]

    def mean(name: str) -> float:
        return math.fsum(getattr(run, name) for run in runs) / len(runs)

    hours = mean("seconds") / 3600
    nodes = tuple(
        _node_cost(one, kind, index, runs, hours)
        for index, (one, kind) in enumerate(zip(all_nodes, kinds, strict=True))
    )
    requests = _requests(job, cost, cluster.storage)
    reading = cost.bytes_in / 1e9 * cluster.storage.price_per_gb_read
    beside = hours * cluster.price_per_hour
    whole = math.fsum(one.cost for one in nodes) + beside + requests + reading
    device, repeated = mean("device_seconds"), mean("repeated_seconds")
    return DurationForecast(
        title=title,
        seconds=mean("seconds"),
        start_seconds=mean("start_seconds"),
        stream_seconds=mean("stream_seconds"),
        tail_seconds=mean("tail_seconds"),
        finish_seconds=mean("finish_seconds"),
        busy=mean("busy"),
        repeated=repeated / (device + repeated) if device else 0.0,
        nodes=nodes,
        beside=beside,
        requests=requests,
        reading=reading,
        cost=whole,
        per_gigapixel=whole / (cost.megapixels / 1e3) if cost.megapixels else None,
    )


def _devices(nodes: _Nodes, cost: Cost) -> Devices:
    one, placement = nodes.type, nodes.placement
    return Devices(
        count=placement.actors,
        region_seconds=nodes.seconds_per_tile * cost.tiles / cost.regions,
        per_node=max(1, placement.actors // nodes.number),
        start_seconds=one.start_seconds + _ACTOR_SECONDS,
        preemptions_per_hour=one.preemptions_per_hour,
    )


def _work(job: PlannedRun, cost: Cost, storage: StoragePrices) -> Work:
    """Describe the work per region.

    The work of regions is taken as uniformly distributed around its mean, with `most_tiles` as its maximum.
    """
    mean_tiles = cost.tiles / cost.regions
    megapixels = cost.megapixels / cost.regions
    read, written = (
        size / cost.regions / 1e6 / storage.megabytes_per_second for size in (cost.bytes_in, cost.bytes_out)
    )
    channels = len(job.ensemble.spec.input.channels)
    return Work(
        regions=cost.regions,
        images=cost.images,
        spread=(cost.most_tiles - mean_tiles) / mean_tiles / math.sqrt(3),
        read_seconds=megapixels * channels * _READ_SECONDS + read + _REGION_READS * storage.seconds_per_request,
        write_seconds=megapixels * _WRITE_SECONDS + written + _REGION_WRITES * storage.seconds_per_request,
        finish_seconds=_FINISH_SECONDS
        + cost.megapixels / cost.images * _FINISH_SECONDS_PER_MEGAPIXEL
        + (_IMAGE_READS + _IMAGE_WRITES) * storage.seconds_per_request,
    )


def _schedule(all_nodes: list[_Nodes], storage: StoragePrices) -> Schedule:
    placement = all_nodes[0].placement
    asked = _REGION_READS + _REGION_WRITES
    return Schedule(
        regions_per_block=placement.regions_per_block,
        blocks_per_actor=placement.blocks_per_actor,
        tasks=tasks_at_once(sum(nodes.number * nodes.type.cpus for nodes in all_nodes)),
        regions_per_second=storage.requests_per_second / asked if storage.requests_per_second else math.inf,
    )


def _node_cost(nodes: _Nodes, kind: Devices, index: int, runs: list[Simulated], hours: float) -> NodeCost:
    regions = math.fsum(run.regions[index] for run in runs) / len(runs)
    return NodeCost(
        name=nodes.type.name,
        nodes=nodes.number,
        devices=kind.count,
        regions=regions,
        device_hours=regions * kind.region_seconds / 3600,
        node_hours=nodes.number * hours,
        preemptions=kind.preemptions_per_hour * nodes.number * hours,
        cost=nodes.number * hours * nodes.type.price_per_hour,
    )


def _requests(job: PlannedRun, cost: Cost, storage: StoragePrices) -> float:
    """Return the cost of requests, if chunks of the source are as large as those of the output."""
    chunks = (
        cost.megapixels
        * 1e6
        / (job.settings.chunk**2 * (job.settings.chunk_depth or 1))
        * len(job.ensemble.spec.input.channels)
    )
    reads = cost.regions * _REGION_READS + cost.images * _IMAGE_READS + chunks
    writes = cost.regions * _REGION_WRITES + cost.images * _IMAGE_WRITES
    return (reads * storage.price_per_million_reads + writes * storage.price_per_million_writes) / 1e6
