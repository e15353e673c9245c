"""A discrete-event simulation of a run's schedule: from one device to thousands, within seconds, without any hardware.

It simulates the blocks of the stream (`chorus.cluster.regions.ray_executor`): the driver creates and assigns one after
the other, an actor holds a few of them, whose regions take turns on its device, and nodes are preempted and come back.
Regions within a block are not separate events; their seconds are summed, so that 10^7 regions take moments.
`benchmarks/simulate.py` draws the curves, `benchmarks/scaling.py` measures the same on Ray, and `docs/scale.md`
compares both.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from chorus.cluster.planning.devices.schedule import Devices, Schedule, Simulated, Work, block_regions


def simulate(devices: Sequence[Devices], work: Work, schedule: Schedule, seed: int = 0) -> Simulated:
    """Simulate a run with discrete events; deterministic for a seed.

    Parameters
    ----------
    devices : kinds that work together, at least one device in all
    """
    return _Simulation(devices, work, schedule, np.random.default_rng(seed)).run()


# Regions and seconds below this are rounding errors and count as zero.
_NOTHING = 1e-6


@dataclass(slots=True)
class _Block:
    """A block: its regions, its work and what is left of it in units of a mean region, and seconds to wait before."""

    regions: float
    units: float
    left: float
    wait: float = 0.0


@dataclass(slots=True)
class _Actor:
    """An actor and the blocks that it holds; events for an earlier `version` of it are ignored."""

    kind: int
    seconds: float
    alive: bool = False
    blocks: list[_Block] = field(default_factory=list)
    since: float = 0.0
    version: int = 0


class _Simulation:
    """The state of a simulation.

    Events are (time, number, kind of event, index of its target, version of that actor).
    """

    def __init__(self, devices: Sequence[Devices], work: Work, schedule: Schedule, random: np.random.Generator) -> None:
        self._devices, self._work, self._schedule, self._random = devices, work, schedule, random
        self._actors = [_Actor(kind, one.region_seconds) for kind, one in enumerate(devices) for _ in range(one.count)]
        count = len(self._actors)
        self._size = block_regions(work.regions, count, schedule)
        full, rest = divmod(work.regions, self._size)
        sizes = np.array([self._size] * full + [rest] * bool(rest), np.float64)
        drawn = zip(sizes.tolist(), self._drawn(sizes), strict=True)
        self._waiting = deque(_Block(regions, units, units) for regions, units in drawn)
        self._blocks = self._open = len(sizes)
        self._at_once = min(schedule.blocks_per_actor, -(-self._blocks // count))
        self._nodes: list[tuple[int, list[int]]] = []
        first = 0
        for kind, one in enumerate(devices):
            for start in range(first, first + one.count, one.per_node):
                self._nodes.append((kind, list(range(start, min(start + one.per_node, first + one.count)))))
            first += one.count
        self._events: list[tuple[float, int, str, int, int]] = []
        self._number = 0
        self._driver_free = schedule.block_seconds_before * self._blocks
        self._driver = 0.0
        self._begun = self._ended = math.inf
        self._first_idle = math.inf
        self._finished = self._finishers_free = 0.0
        self._device = self._repeated = 0.0
        self._regions = [0.0] * len(devices)
        self._preemptions = 0

    def run(self) -> Simulated:
        """Run all events and return the result."""
        for node, (kind, _) in enumerate(self._nodes):
            self._later(max(self._devices[kind].start_seconds, self._driver_free), "start", node)
        while self._open:
            now, _, what, whom, version = heapq.heappop(self._events)
            if what == "block":
                if self._actors[whom].version == version:
                    self._block_ended(now, whom)
            elif what == "start":
                self._node_started(now, whom)
            else:
                self._node_lost(now, whom)
        stream = self._ended - self._begun
        busy = self._device / (len(self._actors) * stream) if stream else 1.0
        return Simulated(
            seconds=max(self._ended, self._finished),
            start_seconds=self._begun,
            stream_seconds=stream,
            tail_seconds=max(0.0, self._ended - min(self._first_idle, self._ended)),
            finish_seconds=max(0.0, self._finished - self._ended),
            busy=busy,
            device_seconds=self._device,
            repeated_seconds=self._repeated,
            regions=tuple(self._regions),
            blocks=self._blocks,
            block_regions=self._size,
            preemptions=self._preemptions,
            driver_busy=min(1.0, self._driver / stream) if stream else 0.0,
        )

    def _drawn(self, sizes: np.ndarray) -> list[float]:
        """Draw the work of each block in units of a mean region, gamma distributed like a sum over its regions.

        Parameters
        ----------
        sizes : (blocks,) float64, regions of each block
        """
        spread = self._work.spread
        if spread < _NOTHING:
            return [float(size) for size in sizes]
        return [float(value) for value in self._random.gamma(sizes / spread**2, spread**2)]

    def _later(self, when: float, what: str, whom: int, version: int = 0) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, what, whom, version))

    def _node_started(self, now: float, node: int) -> None:
        kind, actors = self._nodes[node]
        rate = self._devices[kind].preemptions_per_hour
        if rate:
            self._later(now + self._random.exponential(3600 / rate), "lost", node)
        self._begun = min(self._begun, now)
        for index in actors:
            actor = self._actors[index]
            actor.alive, actor.since = True, now
            self._fill(now, index)

    def _node_lost(self, now: float, node: int) -> None:
        """Lose the regions in progress; the node's blocks wait until it is back, as in Ray."""
        kind, actors = self._nodes[node]
        self._preemptions += 1
        for index in actors:
            actor = self._actors[index]
            self._advance(now, actor)
            actor.alive, actor.version = False, actor.version + 1
            if not actor.blocks:
                continue
            # Lost: half of the region on the device, and those that are being written (Little's law).
            rate = self._rate(actor) * len(actor.blocks)
            done = [block.units - block.left for block in actor.blocks]
            lost = min(0.5 + rate * self._work.write_seconds, sum(done))
            self._repeated += lost * actor.seconds
            self._device -= lost * actor.seconds
            for block, own in zip(actor.blocks, done, strict=True):
                block.left += lost * own / sum(done) if lost else 0.0
                # Recorded regions are looked up and skipped, which takes time of a thread, not of the device.
                block.wait = (block.units - block.left) * self._schedule.check_seconds
        self._later(now + self._devices[kind].start_seconds, "start", node)

    def _rate(self, actor: _Actor) -> float:
        """Return regions per second of each held block.

        The lowest of its share of the device, the pace of its thread, and the limit of storage.
        """
        work, blocks = self._work, len(actor.blocks)
        share = 1 / (blocks * actor.seconds) if actor.seconds else math.inf
        thread = work.read_seconds + actor.seconds + work.write_seconds
        allowed = self._schedule.regions_per_second / len(self._actors) / blocks
        return min(share, 1 / thread if thread else math.inf, allowed)

    def _advance(self, now: float, actor: _Actor) -> None:
        """Account for the work that an actor did since it was last updated."""
        passed = now - actor.since
        actor.since = now
        if not actor.alive or not actor.blocks or passed <= 0:
            return
        rate = self._rate(actor)
        for block in actor.blocks:
            waited = min(block.wait, passed)
            block.wait -= waited
            done = min(block.left, rate * (passed - waited))
            block.left -= done
            self._device += done * actor.seconds

    def _block_ended(self, now: float, index: int) -> None:
        actor = self._actors[index]
        self._advance(now, actor)
        for block in [one for one in actor.blocks if one.wait < _NOTHING and one.left < _NOTHING]:
            actor.blocks.remove(block)
            self._open -= 1
            self._regions[actor.kind] += block.regions
            self._at_driver(now, block.regions * self._schedule.status_seconds)
            self._finish(self._driver_free, block.regions)
            self._ended = self._driver_free
        self._fill(now, index)

    def _fill(self, now: float, index: int) -> None:
        """Assign blocks to an actor that has room, and schedule the end of its next one."""
        actor = self._actors[index]
        while len(actor.blocks) < self._at_once and self._waiting:
            block = self._waiting.popleft()
            self._at_driver(now, self._schedule.block_seconds)
            # This thread of the actor waits for the driver; the others do not.
            block.wait = self._driver_free - now
            actor.blocks.append(block)
        actor.version += 1
        if not actor.blocks:
            self._first_idle = min(self._first_idle, now)
            return
        rate = self._rate(actor)
        following = min(block.wait + block.left / rate for block in actor.blocks)
        self._later(now + following, "block", index, actor.version)

    def _at_driver(self, now: float, seconds: float) -> None:
        """Occupy the driver, which does one thing after the other."""
        self._driver_free = max(now, self._driver_free) + seconds
        self._driver += seconds

    def _finish(self, now: float, regions: float) -> None:
        """Finish the images of a block that ended, several at once; parts of images count as fractions."""
        work, schedule = self._work, self._schedule
        images = regions * work.images / work.regions
        if not work.finish_seconds:
            return
        self._at_driver(now, images * schedule.task_seconds)
        self._finishers_free = max(now, self._finishers_free) + images * work.finish_seconds / schedule.tasks
        self._finished = max(self._finished, self._finishers_free, now + work.finish_seconds)
