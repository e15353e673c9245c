"""What a benchmark notes of a run while it goes on: times of regions, and the memory of its processes."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import psutil

from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.runtime.status import RegionStatus

# Adding up the pages of processes of gigabytes takes a core a tenth of a second: at once a second, two actors on two
# cores were 3 % slower.
EVERY = 10.0


@dataclass
class Watch(Silent):
    """Notes when regions come in, and what they took."""

    first: float | None = None
    last: float = 0.0
    regions: int = 0
    tiles: int = 0
    pixels: int = 0
    busy: float = 0.0
    devices: int = 0

    def begin(self, regions: int, pixels: int, devices: int) -> None:
        self.devices = devices

    def region(self, status: RegionStatus) -> None:
        if status.state != "done":
            raise RuntimeError(status.message)
        self.last = time.monotonic()
        begun = self.last - status.seconds
        self.first = begun if self.first is None else min(begun, self.first)
        self.regions += 1
        self.tiles += status.tiles
        self.pixels += status.pixels
        self.busy += status.device_seconds


@dataclass
class Memory:
    """The largest sizes, bytes, of this process and of all of Ray's that it started (shared pages once)."""

    driver: int = 0
    workers: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Memory:
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _look(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(EVERY):
            self.driver = max(self.driver, me.memory_info().rss)
            total = 0
            for child in me.children(recursive=True):
                try:
                    if child.name().startswith("ray::") or "ray::" in " ".join(child.cmdline()):
                        total += child.memory_full_info().pss
                except psutil.Error:
                    continue
            self.workers = max(self.workers, total)
