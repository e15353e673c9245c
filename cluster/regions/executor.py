"""Where regions are carried out, behind one small interface: Ray Data, or this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from chorus.cluster.planning.plan import RunContext
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.runtime.tasks import Tasks


class Executor(Tasks, Protocol):
    """Carries out regions, and tasks beside them. Regions end in any order, too."""

    @property
    def actors(self) -> int:
        """Devices at work, for the share of time that they are busy."""
        ...

    def regions(self, context: RunContext, todo: np.ndarray) -> Iterator[RegionStatus]:
        """Work through the regions `todo`, int64; every one comes back exactly once."""
        ...
