"""What is told of a region's way through the actors: how it ended, or what one stage passes on to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from chorus.pipeline.inference.engine import StageState


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """How a region ended, a row of the stream.

    Attributes
    ----------
    region, image, place : of the run, of the table, of the image
    state : ``done``; ``failed``, its image cannot be done; ``quarantined``, it took its actor with it too often;
        ``unwritable``, the output cannot take it
    message : the reason, empty when done
    tiles, pixels : evaluated, written
    device_seconds, seconds : that it held the device, and in all
    attempts : how often it was begun; more than once where the process that worked on it died
    passes : samples that the tiles got; 0 where their members are in several actors
    tiles_per_call : that members got when it ended; fewer than a batch where memory was short
    spans : when its stages were, `chorus.cluster.telemetry.timeline.packed`; empty unless the run is profiled
    """

    region: int
    image: int
    place: int
    state: Literal["done", "failed", "quarantined", "unwritable"]
    message: str = ""
    tiles: int = 0
    pixels: int = 0
    device_seconds: float = 0.0
    seconds: float = 0.0
    attempts: int = 1
    passes: int = 0
    tiles_per_call: int = 0
    spans: str = ""


@dataclass(frozen=True)
class Passed:
    """What one stage of a region passes on to the next: the members' sums so far, and `RegionStatus.spans` so far."""

    state: StageState
    spans: str = ""
