"""One device for many regions: the tiles of all waiting regions share its batches, so no region waits for another."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from chorus.cluster.regions.batch_queue import (
    Answered,
    BusyError,
    InFlightBatch,
    LateError,
    PendingRegion,
    equal_shares,
    first_come,
)
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.inference.encoder_features import TileFeatures
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.tile_stream import PlaneWindow

log = logging.getLogger("chorus")
# Regions whose sums are held at once. More would all be late; fewer would let large ones keep small ones waiting.
_ON_THEIR_WAY = 4


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a device: what waits, and what was done so far.

    Attributes
    ----------
    waiting : tiles not yet submitted
    calls, tiles : of the members so far; `tiles` less than calls times the batch's size, as some were not full
    seconds : spent in calls of the members
    """

    waiting: int
    calls: int
    tiles: int
    seconds: float


class SharedDevice:
    """The only thread that calls members on a device.

    A GPU gets its next batch while it computes one (`Engine.ahead`); a region is answered when its last batch is done.

    Parameters
    ----------
    most_waiting : tiles that may wait; a region beyond is refused, unless nothing else waits. None: any number
    fair : whether those that wait get equal parts of a batch, so that small ones are done soon; else the first one gets
        what it can use, so that regions are done one after the other
    """

    def __init__(self, most_waiting: int | None = None, *, fair: bool = True) -> None:
        self._most, self._fair = most_waiting, fair
        self._changed = threading.Condition()
        self._tickets: deque[PendingRegion] = deque()
        self._calls = self._tiles = 0
        self._seconds = 0.0
        self._landed = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Return whether the device still answers."""
        return self._thread.is_alive()

    @property
    def load(self) -> Load:
        """Return the tiles that wait now, and the totals of calls, tiles and seconds so far."""
        with self._changed:
            waiting = sum(ticket.tiles for ticket in self._tickets)
            return Load(waiting, self._calls, self._tiles, self._seconds)

    def submit(
        self, engine: Engine, plane: PlaneWindow, target: Window, features: TileFeatures | None, until: float
    ) -> Future[Answered]:
        """Queue a region for inference, as by `Engine.posterior`; cancel the returned future to withdraw it.

        Parameters
        ----------
        until : of `time.monotonic`; after it the answer is a LateError

        Raises
        ------
        BusyError : too many tiles wait
        """
        ticket = PendingRegion(engine, plane, target, features, plane.grid.tile_count(target), until)
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
        """Stop after everything that waits is answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        flights: deque[InFlightBatch] = deque()
        with torch.inference_mode():
            while (chosen := self._next(idle=not flights)) is not None or flights:
                if chosen and (flight := self._begin(chosen)) is not None:
                    flights.append(flight)
                ahead = chosen[0][0].engine.ahead if chosen else 0
                while len(flights) > ahead:
                    self._land(flights.popleft())

    def _next(self, *, idle: bool) -> list[tuple[PendingRegion, int]] | None:
        """Return the tickets of the next batch and their numbers of tiles; None where there is nothing to do.

        An idle device waits here until work arrives or it is closed.
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
            shares = equal_shares(waiting, batch) if self._fair else first_come(waiting, batch)
            # Round-robin: regions served now move behind the others in the queue.
            for ticket in fellows[: sum(share > 0 for share in shares)] if self._fair else []:
                self._tickets.remove(ticket)
                self._tickets.insert(min(_ON_THEIR_WAY - 1, len(self._tickets)), ticket)
            return [(ticket, share) for ticket, share in zip(fellows, shares, strict=True) if share]

    def _drop(self) -> None:
        """Drop regions that nobody waits for any more."""
        now = time.monotonic()
        for ticket in list(self._tickets):
            if ticket.answer.cancelled():
                self._tickets.remove(ticket)
            elif ticket.until < now:
                self._tickets.remove(ticket)
                ticket.fail(LateError("the region was not done in time"))

    def _begin(self, chosen: list[tuple[PendingRegion, int]]) -> InFlightBatch | None:
        """Submit a batch to the device; return None where that failed."""
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
        return InFlightBatch(chosen, regions, landing, started)

    def _land(self, flight: InFlightBatch) -> None:
        """Wait for a batch, and answer the regions that are complete with it."""
        try:
            flight.landing()
        except Exception as error:
            log.exception("a batch failed")
            with self._changed:
                for ticket in [ticket for ticket, _ in flight.shares if ticket in self._tickets]:
                    self._tickets.remove(ticket)
            for ticket, _ in flight.shares:
                ticket.fail(error)
            return
        now = time.perf_counter()
        # Device time of this batch: since it was submitted, or since the batch before it ended.
        took, count = now - max(flight.started, self._landed), sum(share for _, share in flight.shares)
        self._landed = now
        with self._changed:
            self._calls += 1
            self._tiles += count
            self._seconds += took
        for ticket, share in flight.shares:
            ticket.seconds += took * share / count
        for ticket, region in flight.regions:
            ticket.succeed(region)

    def _failed(self, tickets: list[PendingRegion], error: Exception) -> None:
        """Handle a failed batch: a region alone in it has failed; of several, each is retried alone."""
        if len(tickets) > 1:
            with self._changed:
                for ticket in tickets:
                    ticket.again()
            return
        with self._changed:
            self._tickets.remove(tickets[0])
        tickets[0].fail(error)


class SharedEngine:
    """Answer on a shared device for callers that each wait on a thread: see `chorus.cluster.regions.worker.Answering`.

    Parameters
    ----------
    seconds : for which a region may wait
    """

    def __init__(self, device: SharedDevice, engine: Engine, seconds: float = math.inf) -> None:
        self._device, self._engine, self._seconds = device, engine, seconds

    @property
    def tiles_per_call(self) -> int:
        """Return the number of tiles of one call of the networks."""
        return self._engine.tiles_per_call

    def answer(self, plane: PlaneWindow, target: Window, features: TileFeatures | None = None) -> Answered:
        """Predict a region; see `Engine.posterior`. Raise LateError when it took too long."""
        until = time.monotonic() + self._seconds
        while True:
            try:
                return self._device.submit(self._engine, plane, target, features, until).result()
            except BusyError as error:
                if time.monotonic() > until:
                    raise LateError("the device had no room in time") from error
                time.sleep(error.retry_after)
