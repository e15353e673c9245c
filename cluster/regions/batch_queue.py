"""The queue of regions that wait for a device, and the policies that share a batch among them."""

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
    """The queue of the device is full; `retry_after` is the number of seconds after which there may be room."""

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
    tiles : not yet submitted to the device
    until : monotonic time after which nobody waits for it any more
    alone : whether its batches hold no other region's tiles, because a batch that it was in failed
    seconds : of device time spent on it
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
        """Return the state of the region in inference, created on first use; needs ``torch.inference_mode``."""
        if self.region is None:
            self.region = self.engine.begin(self.plane, self.target, self.features)
        return self.region

    def again(self) -> None:
        """Reset the region to its first tile, to be retried alone."""
        self.region, self.alone = None, True
        self.tiles = self.plane.grid.tile_count(self.target)
        if self.features is not None:
            self.features.clear()

    def succeed(self, region: RegionInProgress) -> None:
        """Answer with the complete posterior of `region`."""
        if self._awaited():
            self.answer.set_result((region.posterior(), self.seconds))

    def fail(self, error: Exception) -> None:
        """Answer with an error."""
        if self._awaited():
            self.answer.set_exception(error)

    def _awaited(self) -> bool:
        """Return whether somebody still waits for the answer; an earlier batch of the region may have failed."""
        return not self.answer.done() and self.answer.set_running_or_notify_cancel()


@dataclass(frozen=True, slots=True)
class InFlightBatch:
    """A batch submitted to the device, with its number of tiles per ticket.

    Attributes
    ----------
    regions : that this batch completes, each with its ticket
    landing : of all that is said of it
    started : by `time.perf_counter`
    """

    shares: list[tuple[PendingRegion, int]]
    regions: list[tuple[PendingRegion, RegionInProgress]]
    landing: Landing
    started: float


def equal_shares(waiting: list[int], batch: int) -> list[int]:
    """Share a batch equally among the regions in the queue; tiles left over go to the first that have more."""
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
    """Fill a batch from the first region in the queue, then from the next."""
    shares, left = [], batch
    for tiles in waiting:
        shares.append(min(tiles, left))
        left -= shares[-1]
    return shares
