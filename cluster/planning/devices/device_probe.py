"""Try the ensemble once on its device: whether every member loads and predicts, how long it takes, and its memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import torch

from chorus.cluster.planning.resolved_settings import ResolvedSettings, inference_settings
from chorus.cluster.runtime.resources import USABLE_MEMORY
from chorus.pipeline.backends.loading import load_members
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.sample_sums import SampleSums
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.inference.members import MemberGroup

# A batch that takes longer is not repeated: with large networks on cores that would be minutes.
_LONG_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class DeviceProbe:
    """What was measured on one device.

    Attributes
    ----------
    weights, activations, process : bytes, see `chorus.cluster.planning.devices.placement.Memory`
    device_memory : bytes that may be used of the device's, or of the node's where members run on cores; of what was
        free before members were loaded
    seconds_per_tile : all members and augmentations, at the run's batch size
    device : its name
    """

    weights: int
    activations: int
    process: int
    device_memory: int
    seconds_per_tile: float
    device: str


def probe_device(ensemble: Ensemble, settings: ResolvedSettings, *, once: bool = False) -> DeviceProbe:
    """Load every member and run one batch.

    Parameters
    ----------
    ensemble, settings : of the run
    once : do not repeat the batch for a finer time, as where the run is hardly longer than the trial

    Raises
    ------
    RefusedError
        Naming the member that does not fit.
    """
    compute_device = device_of(settings.device)
    device = compute_device.torch_device
    compute_device.use_threads(settings.threads)
    process, free = psutil.Process().memory_info().rss, compute_device.free_memory()
    count = range(len(ensemble.spec.members))
    members = load_members(ensemble, count, device, settings.tile, settings.backend, settings.precision, check=True)
    inputs = ensemble.inputs(count, settings.tile)
    weights = sum(member.parameters_bytes() for member in members)
    compute_device.reset_peak_memory()
    before = compute_device.peak_memory()
    inference = inference_settings(settings, ensemble)
    group = MemberGroup(members, inference, device, inputs.channels)
    batch = torch.zeros((settings.batch, inputs.count, *settings.tile_shape), device=device)

    def seconds() -> float:
        started = time.perf_counter()
        sums = SampleSums.zeros(inference.outputs, settings.batch, inference.covered, device)
        group.add_samples(batch, sums)
        compute_device.synchronize()
        return time.perf_counter() - started

    with torch.inference_mode():
        best = seconds()
        # The first calls of converted networks convert them; others were called before, by their check.
        if settings.backend != "eager" or (best < _LONG_SECONDS and not once):
            best = min(best, seconds())
    return DeviceProbe(
        weights=weights,
        activations=max(0, compute_device.peak_memory() - before),
        process=process,
        device_memory=int(USABLE_MEMORY * free),
        seconds_per_tile=best / settings.batch,
        device=compute_device.name(),
    )
