"""One device for many regions: tiles of all that wait fill its batches together, none waits for another to end."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from pipeline.features import TileFeatures
from pipeline.geometry import Window
from pipeline.inference import Engine
from pipeline.posterior import Posterior
from pipeline.tiles import PlaneWindow, RegionOnItsWay
from pipeline.transfer import Landing

log = logging.getLogger("chorus")
Answered = tuple[Posterior, float]
"""The posterior of a region, and the seconds that the device worked for it."""
# Regions whose sums are held at once. More would all be late; fewer would let large ones keep small ones waiting.
_ON_THEIR_WAY = 4


class BusyError(Exception):
    """Too much waits for the device; `retry_after` says in how many seconds it may have room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many regions wait for the device")
        self.retry_after = retry_after


class LateError(Exception):
    """The region was not done in time."""


@dataclass(eq=False)
class _Ticket:
    """A region that waits for its posterior.

    Attributes
    ----------
    until : monotonic time after which nobody waits for it any more
    alone : whether no other tiles come into its batches, since a batch failed that it was a part of
    seconds : that the device worked for it
    """

    engine: Engine
    plane: PlaneWindow
    target: Window
    features: TileFeatures | None
    tiles: int
    until: float
    answer: Future[Answered] = field(default_factory=Future)
    region: RegionOnItsWay | None = None
    alone: bool = False
    seconds: float = 0.0

    def begin(self) -> RegionOnItsWay:
        if self.region is None:
            self.region = self.engine.begin(self.plane, self.target, self.features)
        return self.region

    def again(self) -> None:
        """From its first tile, by itself."""
        self.region, self.alone = None, True
        self.tiles = self.plane.grid.tile_count(self.target)
        if self.features is not None:
            self.features.clear()


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch that the device was told, with so many tiles of each ticket.

    Attributes
    ----------
    regions : that are complete with it, each with its ticket
    landing : of all that is said of it
    started : by `time.perf_counter`
    """

    shares: list[tuple[_Ticket, int]]
    regions: list[tuple[_Ticket, RegionOnItsWay]]
    landing: Landing
    started: float


@dataclass(frozen=True, slots=True)
class Load:
    """What a device has done and has to do.

    Attributes
    ----------
    waiting : tiles that did not go out yet
    calls, tiles : of the members so far; `tiles` less than calls times the batch's size, as some were not full
    seconds : that the members were called for
    """

    waiting: int
    calls: int
    tiles: int
    seconds: float


class SharedDevice:
    """The only thread that calls members on a device.

    A GPU is told the next batch while it works on one (`Engine.ahead`); a region is answered when its last batch has
    landed.

    Parameters
    ----------
    most_waiting : tiles that may wait; a region beyond is refused, unless nothing else waits. None: any number
    fair : whether those that wait get equal parts of a batch, so that small ones are done soon; else the first one gets
        what it can use, so that regions are done one after the other
    """

    def __init__(self, most_waiting: int | None = None, *, fair: bool = True) -> None:
        self._most, self._fair = most_waiting, fair
        self._changed = threading.Condition()
        self._tickets: deque[_Ticket] = deque()
        self._calls = self._tiles = 0
        self._seconds = 0.0
        self._landed = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it goes on answering."""
        return self._thread.is_alive()

    @property
    def load(self) -> Load:
        with self._changed:
            waiting = sum(ticket.tiles for ticket in self._tickets)
            return Load(waiting, self._calls, self._tiles, self._seconds)

    def submit(
        self, engine: Engine, plane: PlaneWindow, target: Window, features: TileFeatures | None, until: float
    ) -> Future[Answered]:
        """Have a region answered, as by `Engine.posterior`; cancelling what is returned takes it back at any time.

        Parameters
        ----------
        until : of `time.monotonic`; after it the answer is a LateError

        Raises
        ------
        BusyError : too many tiles wait
        """
        ticket = _Ticket(engine, plane, target, features, plane.grid.tile_count(target), until)
        with self._changed:
            waiting = sum(one.tiles for one in self._tickets)
            full = self._most is not None and self._tickets and waiting + ticket.tiles > self._most
            if self._closed or full:
                pace = self._seconds / max(1, self._tiles)
                raise BusyError(max(1, min(60, round(waiting * pace))))
            self._tickets.append(ticket)
            self._changed.notify()
        return ticket.answer

    def close(self) -> None:
        """End when all that waits is answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        flights: deque[_Flight] = deque()
        with torch.inference_mode():
            while (chosen := self._next(idle=not flights)) is not None or flights:
                if chosen and (flight := self._begin(chosen)) is not None:
                    flights.append(flight)
                ahead = chosen[0][0].engine.ahead if chosen else 0
                while len(flights) > ahead:
                    self._land(flights.popleft())

    def _next(self, *, idle: bool) -> list[tuple[_Ticket, int]] | None:
        """Who takes part in the next batch, with so many tiles each; None where there is none.

        An idle device waits for it until it is closed.
        """
        with self._changed:
            while True:
                self._drop()
                if self._tickets:
                    break
                if self._closed or not idle:
                    return None
                self._changed.wait()
            first = self._tickets[0]
            batch = first.engine.batch
            fellows = [one for one in self._tickets if one.engine is first.engine and not one.alone][:_ON_THEIR_WAY]
            if first.alone:
                fellows = [first]
            waiting = [ticket.tiles for ticket in fellows]
            shares = _shares(waiting, batch) if self._fair else _first_come(waiting, batch)
            # Whose turn it was goes behind those that it goes on its way with.
            for ticket in fellows[: sum(share > 0 for share in shares)] if self._fair else []:
                self._tickets.remove(ticket)
                self._tickets.insert(min(_ON_THEIR_WAY - 1, len(self._tickets)), ticket)
            return [(ticket, share) for ticket, share in zip(fellows, shares, strict=True) if share]

    def _drop(self) -> None:
        """Let go of those whom nobody waits for."""
        now = time.monotonic()
        for ticket in list(self._tickets):
            if ticket.answer.cancelled():
                self._tickets.remove(ticket)
            elif ticket.until < now:
                self._tickets.remove(ticket)
                _fail(ticket, LateError("the region was not done in time"))

    def _begin(self, chosen: list[tuple[_Ticket, int]]) -> _Flight | None:
        """Tell the device a batch; None where that failed."""
        started = time.perf_counter()
        engine = chosen[0][0].engine
        try:
            engine.answer([(ticket.begin(), share) for ticket, share in chosen])
            landing = engine.landing()
        except Exception as error:
            log.exception("a batch failed")
            self._failed([ticket for ticket, _ in chosen], error)
            return None
        regions = []
        with self._changed:
            for ticket, _ in chosen:
                region = ticket.begin()
                ticket.tiles = region.waiting
                if not region.waiting:
                    self._tickets.remove(ticket)
                    regions.append((ticket, region))
        return _Flight(chosen, regions, landing, started)

    def _land(self, flight: _Flight) -> None:
        """Wait for a batch, and answer the regions that are complete with it."""
        try:
            flight.landing()
        except Exception as error:
            log.exception("a batch failed")
            with self._changed:
                for ticket in [ticket for ticket, _ in flight.shares if ticket in self._tickets]:
                    self._tickets.remove(ticket)
            for ticket, _ in flight.shares:
                _fail(ticket, error)
            return
        now = time.perf_counter()
        # The device worked on it since it was told, or since it was done with what it was told before.
        took, count = now - max(flight.started, self._landed), sum(share for _, share in flight.shares)
        self._landed = now
        with self._changed:
            self._calls += 1
            self._tiles += count
            self._seconds += took
        for ticket, share in flight.shares:
            ticket.seconds += took * share / count
        for ticket, region in flight.regions:
            if _awaited(ticket):
                ticket.answer.set_result((region.posterior(), ticket.seconds))

    def _failed(self, tickets: list[_Ticket], error: Exception) -> None:
        """Who was alone in a batch that failed has failed; of several each is tried again by itself."""
        if len(tickets) > 1:
            with self._changed:
                for ticket in tickets:
                    ticket.again()
            return
        with self._changed:
            self._tickets.remove(tickets[0])
        _fail(tickets[0], error)


class SharedEngine:
    """An engine on a shared device, for whoever waits on a thread of its own: see `cluster.worker.Answering`.

    Parameters
    ----------
    seconds : that a region may wait
    """

    def __init__(self, device: SharedDevice, engine: Engine, seconds: float = math.inf) -> None:
        self._device, self._engine, self._seconds = device, engine, seconds

    @property
    def tiles_per_call(self) -> int:
        return self._engine.tiles_per_call

    def answer(self, plane: PlaneWindow, target: Window, features: TileFeatures | None = None) -> Answered:
        """See `Engine.posterior`; raises LateError when it took too long."""
        until = time.monotonic() + self._seconds
        while True:
            try:
                return self._device.submit(self._engine, plane, target, features, until).result()
            except BusyError as error:
                if time.monotonic() > until:
                    raise LateError("the device had no room in time") from error
                time.sleep(error.retry_after)


def _shares(waiting: list[int], batch: int) -> list[int]:
    """Equal parts of a batch, as far as each has tiles; what is left goes to the first that have more."""
    shares = [0] * len(waiting)
    left = batch
    while left and (hungry := [i for i, tiles in enumerate(waiting) if shares[i] < tiles]):
        part = max(1, left // len(hungry))
        for index in hungry:
            given = min(part, waiting[index] - shares[index], left)
            shares[index] += given
            left -= given
    return shares


def _first_come(waiting: list[int], batch: int) -> list[int]:
    """All of a batch to the first, as far as it has tiles; what is left goes to the next."""
    shares, left = [], batch
    for tiles in waiting:
        shares.append(min(tiles, left))
        left -= shares[-1]
    return shares


def _awaited(ticket: _Ticket) -> bool:
    """Whether somebody still waits for its answer; an earlier batch of it may have failed."""
    return not ticket.answer.done() and ticket.answer.set_running_or_notify_cancel()


def _fail(ticket: _Ticket, error: Exception) -> None:
    if _awaited(ticket):
        ticket.answer.set_exception(error)
