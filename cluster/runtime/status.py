"""The state of a region as it is passed between processes: how it ended, or what one stage passes to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from chorus.pipeline.inference.stages import StageState


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """How a region ended; a row of the stream.

    Attributes
    ----------
    region, image : index of the region in the run, and of its image in the table
    region_in_image : index of the region in its image
    state : ``done``; ``failed``, its image cannot be processed; ``quarantined``, it crashed its actor too often;
        ``unwritable``, the output cannot be written
    message : the reason, empty when done
    tiles, pixels : evaluated, written
    device_seconds, seconds : that it held the device, and in all
    attempts : how often it was begun; more than once if the process that worked on it died
    passes : samples (forward passes) that its tiles got; 0 if their members are in several actors
    tiles_per_call : tiles that members got per call when it ended; fewer than a batch if memory was short
    spans : its stages, as `chorus.cluster.telemetry.timeline.packed` text; empty unless the run is profiled
    """

    region: int
    image: int
    region_in_image: int
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
    """What one stage of a region passes to the next: the members' sums and `RegionStatus.spans` so far."""

    state: StageState
    spans: str = ""
