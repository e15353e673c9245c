"""The interface of executors, which process the regions of a run: Ray Data, or this process."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from chorus.cluster.planning.plan import RunContext
from chorus.cluster.runtime.late_writers import settle
from chorus.cluster.runtime.signals import held_back
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.runtime.tasks import Tasks


class Executor(Tasks, Protocol):
    """Processes regions, and tasks beside them. Regions may end in any order."""

    @property
    def actors(self) -> int:
        """Number of devices at work, from which the busy fraction is computed."""
        ...

    def regions(self, context: RunContext, todo: np.ndarray) -> Generator[RegionStatus]:
        """Process the regions `todo`; yield the status of each exactly once.

        Parameters
        ----------
        todo : (n,) int64, ascending numbers of regions in the run
        """
        ...


@contextmanager
def ended(statuses: Generator[RegionStatus]) -> Iterator[Generator[RegionStatus]]:
    """End a stream of regions at the end of the context, as a whole, whatever ends the context.

    Where another run has the output, processes of this run that wrote late take that back before they are ended.
    """
    try:
        yield statuses
    finally:
        with held_back():
            settle()
            statuses.close()
