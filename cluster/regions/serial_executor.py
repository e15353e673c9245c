"""The executor that does everything in this process, one region after the other: for tests and for debugging."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from chorus.cluster.planning.devices.placement import member_groups
from chorus.cluster.planning.plan import RunContext
from chorus.cluster.regions.worker import RegionWorker
from chorus.cluster.runtime.started_tasks import SerialTasks
from chorus.cluster.runtime.status import RegionStatus
from chorus.pipeline.ensembles.ensemble import read_ensemble


class SerialExecutor(SerialTasks):
    """See `chorus.cluster.regions.executor.Executor`.

    Parameters
    ----------
    stages : groups of members that a region passes through, 1 for all members at once
    """

    actors = 1

    def __init__(self, stages: int = 1) -> None:
        super().__init__()
        self._stages = stages

    def regions(self, context: RunContext, todo: np.ndarray) -> Generator[RegionStatus]:
        """Process the regions `todo` one after the other in this process; yield the status of each.

        Parameters
        ----------
        todo : (n,) int64, numbers of regions in the run
        """
        device = torch.device(context.settings.device)
        members = len(read_ensemble(context.ensemble).spec.members)
        workers = [RegionWorker(context, device, group) for group in member_groups(members, self._stages)]
        for region in todo.tolist():
            yield self._region(workers, region)

    @staticmethod
    def _region(workers: list[RegionWorker], region: int) -> RegionStatus:
        if len(workers) == 1:
            return workers[0].process(region)
        state = workers[0].start(region)
        for worker in workers[1:-1]:
            if not isinstance(state, RegionStatus):
                state = worker.proceed(region, state)
        return state if isinstance(state, RegionStatus) else workers[-1].conclude(region, state)
