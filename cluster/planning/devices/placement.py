"""Which members live where: the whole ensemble in every actor, or groups of members in a chain of stages."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from chorus.cluster.planning.cost import Cost
from chorus.cluster.planning.devices.device_probe import DeviceProbe
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.planning.resolved_settings import ResolvedSettings, inference_settings
from chorus.cluster.planning.settings import RunSettings
from chorus.cluster.runtime.resources import Machine, Resources
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.adaptive import tiles_in_wave

# Tiles in a block of the stream, at least: small regions are grouped where a device does thousands of tiles a second.
_GPU_TILES_PER_BLOCK = 512
# Blocks that an actor holds at once. On a GPU one is read, one is inferred, one is written; a fast GPU needs more
# (`_blocks_at_once`). On a core inference takes nearly all of the time, so that one is inferred while the other
# is written and the next one read; a third would only wait here while another actor is idle.
_GPU_BLOCKS, _MOST_GPU_BLOCKS, _CPU_BLOCKS = 3, 6, 2
# Seconds that a megapixel takes beside inference: read, scored and written, 0.15 to 0.2 of a core on a disk
# (benchmarks/feeding.py), and the same again for the latency of a bucket.
_BESIDE_SECONDS = 0.33
# Images are finished beside the actors, one at a time per so many cores, within bounds: two on a small machine; no more
# than the driver can follow, which looks at all of them whenever a region ends (docs/scale.md).
_CORES_PER_TASK, _LEAST_TASKS, _MOST_TASKS = 4, 2, 1_024


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that an actor needs.

    Attributes
    ----------
    weights, activations : on the device, of all members and of one call
    regions : pixels, sums and results of the regions that it works on at once
    process : the interpreter and its libraries
    """

    weights: int
    activations: int
    regions: int
    process: int

    @property
    def total(self) -> int:
        """Return the sum of all parts, in bytes."""
        return self.weights + self.activations + self.regions + self.process


@dataclass(frozen=True, slots=True)
class Placement:
    """How members and regions are distributed.

    Attributes
    ----------
    groups : members of each stage; one group where every actor hosts all
    actors_per_stage : that fit on the cluster now
    least_actors_per_stage : the minimum that is requested; above `actors_per_stage` where the cluster must scale up
    cpus_per_actor, gpus_per_actor : reserved
    regions_per_block : rows of the stream that are sent, and retried, together
    blocks_per_actor : that it works on at once
    tasks : that run beside the actors at once
    most_actors_per_stage : up to which the pool scales while nodes join; None for a fixed pool
    memory_per_actor : bytes of the node's memory that are reserved; 0 for actors on GPUs
    """

    groups: tuple[range, ...]
    actors_per_stage: int
    least_actors_per_stage: int
    cpus_per_actor: float
    gpus_per_actor: float
    regions_per_block: int
    blocks_per_actor: int
    tasks: int
    most_actors_per_stage: int | None = None
    memory_per_actor: int = 0

    @property
    def actors(self) -> int:
        """Return the number of actors over all stages."""
        return self.actors_per_stage * len(self.groups)

    @property
    def kind(self) -> str:
        """Return ``replicated`` where every actor hosts all members, else ``staged``."""
        return "replicated" if len(self.groups) == 1 else "staged"


def estimate_memory(table: ImageTable, ensemble: Ensemble, settings: ResolvedSettings, measured: DeviceProbe) -> Memory:
    """Estimate the memory of an actor that hosts all members.

    It is the sum of the measured weights and activations, and of its largest regions.

    Per pixel of a region: the source's channels as stored and normalised, and the posterior (`Posterior`) with a
    copy of the maps that are kept; per pixel of a row of tiles: the sums of every member and of the ensemble. With
    adaptive effort also the samples of a wave.
    """
    members, classes = len(ensemble.spec.members), len(ensemble.probability_names)
    channels = len(ensemble.spec.input.channels)
    windows = [_largest_window(image, settings.tile_shape) for image in table.kinds[0]]
    pixels = max((math.prod(window) for window in windows), default=0)
    row = max((math.prod(window[1:]) for window in windows), default=0)
    blended = inference_settings(settings, ensemble).maps
    per_pixel = channels * 8 + (blended + 1) * 8 + (members + 2)
    sums = 4 * (members * classes + blended) * 2
    at_once = _GPU_BLOCKS if device_of(settings.device).accelerated else _CPU_BLOCKS
    regions = at_once * per_pixel * pixels + sums * settings.tile_shape[0] * row + _wave(ensemble, settings)
    return Memory(measured.weights, measured.activations, regions, measured.process)


def _wave(ensemble: Ensemble, settings: ResolvedSettings) -> int:
    """Return the bytes of the samples that adaptive effort holds: one per member and tile of a wave, and their sums."""
    inference = inference_settings(settings, ensemble)
    if inference.effort is None:
        return 0
    held = (len(ensemble.spec.members) + 3) * inference.maps
    return 4 * held * tiles_in_wave(inference) * math.prod(settings.tile_shape)


def _largest_window(image: PlannedImage, tile: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the pixels that a region needs: of the image or of the model, whichever are more."""

    def axis(length: int, model_length: int, region: int, tile: int) -> int:
        factor = model_length / length
        return max(
            min(length, math.ceil(region + 2 * tile / factor)),
            min(model_length, math.ceil(region * factor + 2 * tile)),
        )

    axes = zip(image.layer_shape, image.model_shape, image.grid.sizes, tile, strict=True)
    return tuple(axis(*one) for one in axes)


def place(
    ensemble: Ensemble,
    settings: ResolvedSettings,
    run: RunSettings,
    resources: Resources,
    memory: Memory,
    cost: Cost,
    device_memory: int,
    tile_seconds: float = 0.0,
) -> Placement:
    """Distribute the ensemble over the resources of the cluster.

    Parameters
    ----------
    memory : of an actor that hosts all members
    device_memory : bytes of one device: of a GPU, or of a node where members run on its cores. Where GPUs differ the
        smallest counts, since an actor may start on any; cores are given out by what each node has.
    tile_seconds : for one tile, all members and augmentations; 0 where unknown

    Raises
    ------
    RefusedError
        If it does not fit; the message says what is needed, what is available and the remedy.
    """
    device = device_of(settings.device)
    on_gpu = device.accelerated
    devices = device.slots(resources.cpus, resources.gpus)
    device_memory = _smallest(resources, device_memory) if on_gpu else _largest(resources, device_memory)
    stages = 1 if run.placement == "replicated" else run.stages if run.placement == "staged" else None
    if stages is None:
        stages = _fewest_stages(len(ensemble.spec.members), memory, device_memory)
    if settings.bound is not None and stages > 1:
        raise RefusedError(
            "--effort adaptive: needs all members in one actor, and here they are in stages; use --effort full, or a "
            "smaller --region, --batch or --tile with --placement replicated"
        )
    groups = tuple(member_groups(len(ensemble.spec.members), stages))
    largest = max(len(group) for group in groups) / len(ensemble.spec.members)
    needed = memory.total - int(memory.weights * (1 - largest))
    most_cores = max([machine.cpus for machine in _with_cores(resources)], default=resources.cpus)
    if not on_gpu and settings.threads > most_cores:
        raise RefusedError(f"--threads {settings.threads}: no machine has more than {most_cores} cores; ask for fewer")
    fitting = devices if on_gpu else _on_cores(resources, device_memory, needed, settings.threads)
    if needed > device_memory or fitting < len(groups):
        raise RefusedError(
            f"an actor needs {needed / 1e9:.1f} GB and there are {device_memory / 1e9:.1f} GB on {devices} devices; "
            f"use a smaller --region, --batch or --tile, or --placement staged with more --stages"
        )
    wanted = max(1, (run.actors or fitting) // len(groups))
    # A cluster may get more nodes; a single machine does not.
    if wanted * len(groups) > fitting and run.address is None:
        raise RefusedError(
            f"--actors {run.actors}: there is room for {fitting} ({needed / 1e9:.1f} GB each); ask for fewer"
        )
    # No more actors than there are regions: each costs seconds to start and its own weights.
    wanted = max(1, min(wanted, cost.regions))
    grows = run.address is not None and run.actors is None
    tiles = max(1, cost.tiles // max(1, cost.regions))
    reserved = device.ray_options(settings.threads)
    return Placement(
        groups=groups,
        actors_per_stage=min(wanted, fitting // len(groups)),
        least_actors_per_stage=wanted,
        cpus_per_actor=reserved["num_cpus"],
        gpus_per_actor=reserved["num_gpus"],
        regions_per_block=max(1, _GPU_TILES_PER_BLOCK // tiles) if on_gpu else 1,
        blocks_per_actor=_blocks_at_once(cost, tile_seconds) if on_gpu else _CPU_BLOCKS,
        tasks=tasks_at_once(resources.cpus),
        most_actors_per_stage=max(1, cost.regions) if grows else None,
        memory_per_actor=0 if on_gpu else needed,
    )


def _blocks_at_once(cost: Cost, tile_seconds: float) -> int:
    """Return the blocks an actor holds: the one in inference, and as many as are read, scored or written meanwhile."""
    seconds = cost.tiles * tile_seconds
    wanted = 1 + math.ceil(_BESIDE_SECONDS * cost.megapixels / seconds) if seconds else 0
    return min(max(wanted, _GPU_BLOCKS), _MOST_GPU_BLOCKS)


def _smallest(resources: Resources, device_memory: int) -> int:
    """Return the bytes of the smallest GPU whose memory is known."""
    return min([machine.gpu_memory for machine in resources.machines if machine.gpu_memory] + [device_memory])


def _largest(resources: Resources, device_memory: int) -> int:
    """Return the memory in bytes of the largest node; `device_memory` was measured on one of the nodes."""
    nodes = _with_cores(resources)
    return max(machine.memory for machine in nodes) if len(nodes) > 1 else device_memory


def _on_cores(resources: Resources, device_memory: int, needed: int, cores: int) -> int:
    """Return how many actors with this much memory, and this many cores each, fit on the nodes."""
    nodes = _with_cores(resources)
    if len(nodes) > 1:
        return sum(min(machine.cpus // cores, machine.memory // needed) for machine in nodes)
    memory = min([device_memory, *(machine.memory for machine in nodes)])
    return min(resources.cpus // cores, (len(nodes) or resources.nodes) * (memory // needed))


def _with_cores(resources: Resources) -> list[Machine]:
    return [machine for machine in resources.machines if machine.cpus]


def tasks_at_once(cores: int) -> int:
    """Return the number of tasks that run beside the actors of a cluster with so many cores."""
    return max(_LEAST_TASKS, min(_MOST_TASKS, cores // _CORES_PER_TASK))


def require_devices(settings: ResolvedSettings, run: RunSettings, resources: Resources) -> None:
    """Raise RefusedError where the cluster has no device for the members and the run does not ask it to scale up."""
    device = device_of(settings.device)
    if device.accelerated and not device.slots(resources.cpus, resources.gpus) and not may_grow(run):
        raise RefusedError(
            f"the cluster has no {device.title}; use --device cpu, an --address that has one, or --actors N on a "
            f"cluster that gets machines when it is asked for them"
        )
    if not resources.cpus:
        raise RefusedError("the cluster has no cores for tasks; start it with --num-cpus, or use another --address")


def may_grow(run: RunSettings) -> bool:
    """Return whether to wait for devices that do not exist yet: on a cluster, by the number that was asked for."""
    return run.address is not None and run.actors is not None


def _fewest_stages(members: int, memory: Memory, device_memory: int) -> int:
    """Return the smallest number of stages whose members fit into device memory; `members` where none does."""
    for stages in range(1, members + 1):
        if memory.total - memory.weights + memory.weights * -(-members // stages) // members <= device_memory:
            return stages
    return members


def member_groups(members: int, stages: int) -> list[range]:
    """Return the members of each stage, in order, as evenly as possible."""
    if stages > members:
        raise RefusedError(f"{stages} stages for {members} members; give at most {members}")
    edges = [round(stage * members / stages) for stage in range(stages + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]
