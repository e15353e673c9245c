"""Try the ensemble once on its device: does every member load and answer, how long it takes, how much it needs."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import psutil
import torch

from chorus.cluster.planning.plan import ResolvedSettings, inference_settings
from chorus.cluster.runtime.nodes import USABLE_MEMORY
from chorus.pipeline.backends.loading import load_members
from chorus.pipeline.core.posterior import SampleSums
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.inference.members import MemberGroup

# A batch that takes longer is not repeated: with large networks on cores that would be minutes.
_LONG_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured on one device.

    Attributes
    ----------
    weights, activations, process : bytes, see `chorus.cluster.planning.placement.Memory`
    device_memory : bytes that may be used of the device's, or of the node's where members run on cores
    seconds_per_tile : all members and augmentations, at the run's batch size
    device : its name
    """

    weights: int
    activations: int
    process: int
    device_memory: int
    seconds_per_tile: float
    device: str


def calibrate(ensemble: Ensemble, settings: ResolvedSettings) -> Calibration:
    """Load every member and run one batch; raises RefusedError naming the member that does not fit."""
    device = torch.device(settings.device)
    if device.type == "cpu":
        torch.set_num_threads(settings.threads)
    process = psutil.Process().memory_info().rss
    count = range(len(ensemble.spec.members))
    members = load_members(ensemble, count, device, settings.tile, settings.backend, settings.precision, check=True)
    inputs = ensemble.inputs(count, settings.tile)
    weights = sum(member.parameters_bytes() for member in members)
    before = _peak(device)
    inference = inference_settings(settings, ensemble)
    group = MemberGroup(members, inference, device, inputs.channels)
    batch = torch.zeros((settings.batch, inputs.count, settings.tile, settings.tile), device=device)

    def seconds() -> float:
        started = time.perf_counter()
        sums = SampleSums.zeros(settings.batch, inference.classes, settings.tile, device, flows=inference.flows)
        group.add_samples(batch, sums)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.inference_mode():
        best = seconds()
        # The first calls of converted networks convert them; others were called before, by their check.
        if settings.backend != "eager" or best < _LONG_SECONDS:
            best = min(best, seconds())
    return Calibration(
        weights=weights,
        activations=max(0, _peak(device) - before),
        process=process,
        device_memory=int(USABLE_MEMORY * _free(device)),
        seconds_per_tile=best / settings.batch,
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"{psutil.cpu_count()} cores",
    )


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available
