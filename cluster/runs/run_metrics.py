"""The driver's counts of a run, exact, from the statuses of its regions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from chorus.cluster.planning.plan import RunContext
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.telemetry.metrics import (
    DEVICES,
    IMAGES,
    IMAGES_FINISHING,
    PASSES,
    PIXELS,
    REGIONS,
    REGIONS_OPEN,
    RESTARTS,
    RETRIES,
    TILES,
    driver_recorder,
)


class RunMetrics:
    """The driver's counts of a run.

    Parameters
    ----------
    passes : forward passes of a tile with full effort
    """

    def __init__(self, context: RunContext, passes: int) -> None:
        self._recorder = driver_recorder(context.out, context.ensemble_name)
        self._passes = passes
        # Start at zero, so that the first increase is seen, and that alerts find every series.
        for metric in (TILES, PIXELS, PASSES, RETRIES, RESTARTS):
            self._recorder.add(metric, 0)
        for state in ("done", "failed", "quarantined", "unwritable"):
            self._recorder.add(REGIONS, 0, state=state)
        for state in ("done", "empty", "failed"):
            self._recorder.add(IMAGES, 0, state=state)

    @contextmanager
    def active(self, regions: int, devices: int) -> Iterator[None]:
        """Count `regions` as open and `devices` as in use while the context lasts."""
        self._recorder.set(REGIONS_OPEN, regions)
        self._recorder.set(DEVICES, devices)
        try:
            yield
        finally:
            for gauge in (REGIONS_OPEN, DEVICES, IMAGES_FINISHING):
                self._recorder.set(gauge, 0)

    def region(self, status: RegionStatus) -> None:
        """Count a region that ended."""
        self._recorder.add(REGIONS, state=status.state)
        self._recorder.add(REGIONS_OPEN, -1)
        self._recorder.add(TILES, status.tiles)
        self._recorder.add(PIXELS, status.pixels)
        self._recorder.add(PASSES, status.passes or status.tiles * self._passes)
        self._recorder.add(RETRIES, status.attempts - 1)

    def finishing(self, change: int) -> None:
        """Add `change` to the number of images being finished."""
        self._recorder.add(IMAGES_FINISHING, change)

    def image(self, state: str, count: int = 1) -> None:
        """Count images that ended."""
        self._recorder.add(IMAGES, count, state=state)
