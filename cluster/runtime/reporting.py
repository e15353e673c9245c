"""Whoever shows how long work goes on: a terminal, a log, or nobody."""

from __future__ import annotations

from typing import Protocol

from chorus.cluster.runtime.status import RegionStatus


class Reporter(Protocol):
    """Is told how work goes on."""

    def phase(self, text: str) -> None:
        """Something that takes a while begins."""

    def begin(self, regions: int, pixels: int, devices: int) -> None:
        """The stream begins: regions and pixels still to do."""

    def devices(self, count: int) -> None:
        """From here on so many devices work on the stream: what was left was handed to Ray."""

    def region(self, status: RegionStatus) -> None:
        """A region ended."""

    def end(self) -> None:
        """The stream ended."""


class Silent:
    """A reporter for programs and tests."""

    def phase(self, text: str) -> None: ...
    def forecast(self, forecast: object) -> None: ...
    def begin(self, regions: int, pixels: int, devices: int) -> None: ...
    def devices(self, count: int) -> None: ...
    def region(self, status: RegionStatus) -> None: ...
    def end(self) -> None: ...
