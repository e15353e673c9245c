"""The interface of executors, which process the regions of a run: Ray Data, or this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from chorus.cluster.planning.plan import RunContext
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.runtime.tasks import Tasks


class Executor(Tasks, Protocol):
    """Processes regions, and tasks beside them. Regions may end in any order."""

    @property
    def actors(self) -> int:
        """Number of devices at work, from which the busy fraction is computed."""
        ...

    def regions(self, context: RunContext, todo: np.ndarray) -> Iterator[RegionStatus]:
        """Process the regions `todo`; yield the status of each exactly once.

        Parameters
        ----------
        todo : (n,) int64, ascending numbers of regions in the run
        """
        ...
