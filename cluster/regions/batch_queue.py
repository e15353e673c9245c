"""Regions that wait for a device's answer, and how they share its batches."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.inference.device_transfer import Landing
from chorus.pipeline.inference.encoder_features import TileFeatures
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.tile_stream import PlaneWindow, RegionInProgress

Answered = tuple[Posterior, float]
"""The posterior of a region, and the seconds that the device worked for it."""


class BusyError(Exception):
    """Too much waits for the device; `retry_after` says in how many seconds it may have room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many regions wait for the device")
        self.retry_after = retry_after


class LateError(Exception):
    """The region was not done in time."""


@dataclass(eq=False)
class PendingRegion:
    """A region that waits for its posterior.

    Attributes
    ----------
    tiles : that did not go out yet
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
    region: RegionInProgress | None = None
    alone: bool = False
    seconds: float = 0.0

    def begin(self) -> RegionInProgress:
        """Its region, on its way from now on; inside of ``torch.inference_mode``."""
        if self.region is None:
            self.region = self.engine.begin(self.plane, self.target, self.features)
        return self.region

    def again(self) -> None:
        """From its first tile, by itself."""
        self.region, self.alone = None, True
        self.tiles = self.plane.grid.tile_count(self.target)
        if self.features is not None:
            self.features.clear()

    def succeed(self, region: RegionInProgress) -> None:
        """Answer with the posterior of `region`, its own, which is complete."""
        if self._awaited():
            self.answer.set_result((region.posterior(), self.seconds))

    def fail(self, error: Exception) -> None:
        """Answer with an error."""
        if self._awaited():
            self.answer.set_exception(error)

    def _awaited(self) -> bool:
        """Whether somebody still waits for its answer; an earlier batch of it may have failed."""
        return not self.answer.done() and self.answer.set_running_or_notify_cancel()


@dataclass(frozen=True, slots=True)
class InFlightBatch:
    """A batch that the device was told, with so many tiles of each ticket.

    Attributes
    ----------
    regions : that are complete with it, each with its ticket
    landing : of all that is said of it
    started : by `time.perf_counter`
    """

    shares: list[tuple[PendingRegion, int]]
    regions: list[tuple[PendingRegion, RegionInProgress]]
    landing: Landing
    started: float


def equal_shares(waiting: list[int], batch: int) -> list[int]:
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


def first_come(waiting: list[int], batch: int) -> list[int]:
    """All of a batch to the first, as far as it has tiles; what is left goes to the next."""
    shares, left = [], batch
    for tiles in waiting:
        shares.append(min(tiles, left))
        left -= shares[-1]
    return shares
