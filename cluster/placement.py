"""Which members live where: the whole ensemble in every actor, or groups of members in a chain of stages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.calibration import Calibration
from cluster.images import ImageTable, PlannedImage
from cluster.plan import Cost, ResolvedSettings
from cluster.session import Resources
from cluster.settings import RunSettings
from cluster.worker import member_groups
from pipeline.ensemble import Ensemble
from pipeline.errors import RefusedError

# Tiles in a block of the stream, at least: small regions are grouped where a device does thousands of tiles a second.
_GPU_TILES_PER_BLOCK = 512
# Blocks that an actor holds at once. On a GPU one is read, one is inferred, one is written. On a core inference takes
# nearly all of the time, so that one is inferred while the other is written and the next one read; a third would
# only wait, and be missed by an actor that has nothing left.
_GPU_BLOCKS, _CPU_BLOCKS = 3, 2


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
        return self.weights + self.activations + self.regions + self.process


@dataclass(frozen=True, slots=True)
class Placement:
    """How members and regions are spread.

    Attributes
    ----------
    groups : members of each stage; one group where every actor hosts all
    actors_per_stage, least_actors_per_stage : the pool's bounds
    cpus_per_actor, gpus_per_actor : reserved
    regions_per_block : rows of the stream that travel, and are retried, together
    blocks_per_actor : that it works on at once
    tasks : that run beside the actors at once
    """

    groups: tuple[range, ...]
    actors_per_stage: int
    least_actors_per_stage: int
    cpus_per_actor: float
    gpus_per_actor: float
    regions_per_block: int
    blocks_per_actor: int
    tasks: int

    @property
    def actors(self) -> int:
        return self.actors_per_stage * len(self.groups)

    @property
    def kind(self) -> str:
        return "replicated" if len(self.groups) == 1 else "staged"


def estimate_memory(table: ImageTable, ensemble: Ensemble, settings: ResolvedSettings, measured: Calibration) -> Memory:
    """What an actor that hosts all members needs: measured weights and activations, and its largest regions.

    Per pixel of a region: the source's channels as stored and normalised, and the posterior (`Posterior`) with a
    copy of the maps that are kept; per pixel of a row of tiles: the sums of every member and of the ensemble.
    """
    members, classes = len(ensemble.spec.members), len(ensemble.probability_names)
    channels = len(ensemble.spec.input.channels)
    windows = [_largest_window(image, settings.tile) for image in table.kinds[0]]
    pixels = max((height * width for height, width in windows), default=0)
    widest = max((width for _, width in windows), default=0)
    per_pixel = channels * 8 + (classes + 3) * 8 + (members + 2)
    sums = 4 * (members * classes + classes + 2) * 2
    at_once = _GPU_BLOCKS if settings.device == "cuda" else _CPU_BLOCKS
    regions = at_once * per_pixel * pixels + sums * settings.tile * widest
    return Memory(measured.weights, measured.activations, regions, measured.process)


def _largest_window(image: PlannedImage, tile: int) -> tuple[int, int]:
    """Height and width of what a whole region needs, in pixels of the image or of the model, whichever are more."""

    def axis(length: int, model_length: int) -> int:
        factor = model_length / length
        return max(
            min(length, math.ceil(image.region + 2 * tile / factor)),
            min(model_length, math.ceil(image.region * factor + 2 * tile)),
        )

    return axis(image.height, image.model_height), axis(image.width, image.model_width)


def place(
    ensemble: Ensemble,
    settings: ResolvedSettings,
    run: RunSettings,
    resources: Resources,
    memory: Memory,
    cost: Cost,
    device_memory: int,
) -> Placement:
    """Spread the ensemble over what the cluster has.

    Parameters
    ----------
    memory : of an actor that hosts all members
    device_memory : bytes of one device: of a GPU, or of a node where members run on its cores

    Raises
    ------
    RefusedError
        If it cannot fit: what is needed, what there is, and the mend.
    """
    on_gpu = settings.device == "cuda"
    devices = resources.gpus if on_gpu else resources.cpus
    stages = 1 if run.placement == "replicated" else run.stages if run.placement == "staged" else None
    if stages is None:
        stages = _fewest_stages(len(ensemble.spec.members), memory, device_memory)
    groups = tuple(member_groups(len(ensemble.spec.members), stages))
    largest = max(len(group) for group in groups) / len(ensemble.spec.members)
    needed = memory.total - int(memory.weights * (1 - largest))
    fitting = devices if on_gpu else min(devices, resources.nodes * (device_memory // needed))
    if needed > device_memory or fitting < len(groups):
        raise RefusedError(
            f"an actor needs {needed / 1e9:.1f} GB and there are {device_memory / 1e9:.1f} GB on {devices} devices; "
            f"use a smaller --region, --batch or --tile, or --placement staged with more --stages"
        )
    wanted = max(1, (run.actors or fitting) // len(groups))
    if wanted * len(groups) > fitting:
        raise RefusedError(
            f"--actors {run.actors}: there is room for {fitting} ({needed / 1e9:.1f} GB each); ask for fewer"
        )
    # No more actors than there are regions: each costs seconds to start and its own weights.
    wanted = max(1, min(wanted, cost.regions))
    tiles = max(1, cost.tiles // max(1, cost.regions))
    return Placement(
        groups=groups,
        actors_per_stage=wanted,
        least_actors_per_stage=wanted,
        cpus_per_actor=0 if on_gpu else 1,
        gpus_per_actor=1 if on_gpu else 0,
        regions_per_block=max(1, _GPU_TILES_PER_BLOCK // tiles) if on_gpu else 1,
        blocks_per_actor=_GPU_BLOCKS if on_gpu else _CPU_BLOCKS,
        tasks=2,
    )


def require_devices(settings: ResolvedSettings, resources: Resources) -> None:
    """Raises RefusedError where the cluster has nothing that the members could run on."""
    if settings.device == "cuda" and not resources.gpus:
        raise RefusedError("the cluster has no GPU; use --device cpu, or an --address that has one")
    if not resources.cpus:
        raise RefusedError("the cluster has no cores for tasks; start it with --num-cpus, or use another --address")


def _fewest_stages(members: int, memory: Memory, device_memory: int) -> int:
    """As few groups as leave room for the rest; the whole ensemble in one where it fits."""
    for stages in range(1, members + 1):
        if memory.total - memory.weights + memory.weights * -(-members // stages) // members <= device_memory:
            return stages
    return members
