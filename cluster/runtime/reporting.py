"""The interface through which work reports its progress: to a terminal, a log, or nobody."""

from __future__ import annotations

from typing import Protocol

from chorus.cluster.runtime.status import RegionStatus


class Reporter(Protocol):
    """Receives the progress of work."""

    def phase(self, text: str) -> None:
        """Report that something begins that takes a while."""

    def begin(self, regions: int, pixels: int, devices: int) -> None:
        """Report that the stream begins: regions and pixels that are left, and devices."""

    def devices(self, count: int) -> None:
        """From here on so many devices work on the stream: what was left was handed to Ray."""

    def region(self, status: RegionStatus) -> None:
        """Report that a region ended."""

    def end(self) -> None:
        """Report that the stream ended."""


class Silent:
    """A reporter for programs and tests that ignores everything."""

    def phase(self, text: str) -> None:
        """Ignore the phase."""

    def forecast(self, forecast: object) -> None:
        """Ignore the forecast."""

    def begin(self, regions: int, pixels: int, devices: int) -> None:
        """Ignore the begin of the work."""

    def devices(self, count: int) -> None:
        """Ignore the number of devices."""

    def region(self, status: RegionStatus) -> None:
        """Ignore a region that ended."""

    def end(self) -> None:
        """Ignore the end of the work."""
