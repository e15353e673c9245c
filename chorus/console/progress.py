"""Progress of a run for people: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from chorus.console.format import duration

if TYPE_CHECKING:
    from chorus.cluster.planning.requests import Forecast
    from chorus.cluster.runtime.status import RegionStatus

_LINE_SECONDS = 15.0
# A line of `ConsoleReporter` without a terminal, whatever surrounds it, such as JSON of a log.
_LINE = re.compile(r"(\d+)/(\d+) (\w+) (\d+\.\d\d [^\"\n]* failed)")


class Reached(NamedTuple):
    """The progress of a run in its last message: `ended` of `total` units, and the text of its rates."""

    ended: int
    total: int
    units: str
    rates: str


def last_progress(log: str) -> Reached | None:
    """Return the last line of progress in a run's log; None if there is none yet."""
    bars = _LINE.findall(log)
    return Reached(int(bars[-1][0]), int(bars[-1][1]), *bars[-1][2:]) if bars else None


def _where(forecast: Forecast) -> str:
    """Describe what the run is executed on, and on which device."""
    if forecast.executor == "serial":
        return f"in this process, without Ray ({forecast.calibration.device})"
    placement = forecast.placement
    return f"on {placement.actors} actors of Ray ({placement.kind}, {forecast.calibration.device})"


def remaining(seconds: float) -> str:
    """Format the remaining time like `duration`; at least one second."""
    return duration(max(1.0, seconds))


class _Rates(ProgressColumn):
    """Regions and megapixels per second, remaining time, busy fraction and failures, from the task's own counts."""

    def render(self, task: Task) -> Text:
        """Return the text of the task's rates."""
        return Text(task.fields["rates"], style="cyan")


class ConsoleReporter:
    """Implements `chorus.cluster.runtime.reporting.Reporter` on a console.

    Parameters
    ----------
    console : where to write; a bar is drawn if it is a terminal
    units, devices : names of what is counted, and of what works on it
    """

    def __init__(self, console: Console, *, units: str = "regions", devices: str = "devices") -> None:
        self._console = console
        self._units, self._device_name = units, devices
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._regions = self._pixels = self._devices = 0
        self._done = self._failed = self._done_pixels = 0
        self._busy = self._started = self._printed = 0.0
        # Seconds of all devices until `_since`, when their number changed last.
        self._available = self._since = 0.0

    def phase(self, text: str) -> None:
        """Print what begins."""
        self._console.print(f"[dim]{text} ...[/dim]", highlight=False, soft_wrap=True)

    def forecast(self, forecast: Forecast) -> None:
        """Print the forecast."""
        cost = forecast.cost
        self._console.print(
            f"{cost.images} images, {cost.regions} regions, {cost.tiles} tiles, {cost.forward_passes} forward passes "
            f"{_where(forecast)}; about "
            f"{duration(forecast.seconds)} for all of it",
            highlight=False,
            soft_wrap=True,
        )
        for text in filter(None, (forecast.advice, forecast.unjudged)):
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def begin(self, regions: int, pixels: int, devices: int) -> None:
        """Reset the counts and start the bar."""
        self._regions, self._pixels, self._devices = regions, pixels, devices
        self._done = self._failed = self._done_pixels = 0  # a run may have several parts
        self._busy = self._available = 0.0
        self._started = self._printed = self._since = time.monotonic()
        if not regions:
            self._console.print(f"all {self._units} are recorded already", highlight=False, soft_wrap=True)
        elif self._console.is_terminal:
            self._progress = Progress(
                TextColumn(self._units), BarColumn(), MofNCompleteColumn(), _Rates(), console=self._console
            )
            self._task = self._progress.add_task(self._units, total=regions, rates="")
            self._progress.start()

    def devices(self, count: int) -> None:
        """Record that the number of devices in use changes now."""
        now = time.monotonic()
        self._available += self._devices * (now - self._since)
        self._devices, self._since = count, now

    def region(self, status: RegionStatus) -> None:
        """Count a region and update the bar, or print a line now and then."""
        self._done += 1
        self._failed += status.state != "done"
        self._done_pixels += status.pixels
        self._busy += status.device_seconds
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._done, rates=self._rates())
        elif time.monotonic() - self._printed >= _LINE_SECONDS or self._done == self._regions:
            self._printed = time.monotonic()
            self._console.print(
                f"{self._done}/{self._regions} {self._units} {self._rates()}", highlight=False, soft_wrap=True
            )

    def end(self) -> None:
        """Stop the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _rates(self) -> str:
        now = time.monotonic()
        seconds = max(now - self._started, 1e-9)
        more = self._regions - self._done
        # Do not report the end: other parts of the run may follow.
        left = f"{remaining(seconds / self._done * more)} left  " if more > 0 else ""
        available = max(self._available + max(1, self._devices) * (now - self._since), 1e-9)
        # A region's device time may have begun before the bar did, on an actor that started earlier.
        busy = min(1.0, self._busy / available)
        return (
            f"{self._done / seconds:.2f} {self._units}/s  {self._done_pixels / seconds / 1e6:.2f} Mpx/s  "
            f"{left}{self._device_name} {busy:.0%} busy  {self._failed} failed"
        )
