"""A bar for programs and notebooks: one line that works in both; a terminal's is `chorus.console.progress`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from chorus.cluster.runtime.status import RegionStatus


@contextmanager
def tile_bar(tiles: int, name: str, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Give a function that is told of how many more tiles are done."""
    with tqdm(total=tiles, desc=name, unit="tile", disable=not shown, leave=False) as bar:

        def done(more: int) -> None:
            bar.update(more)

        yield done


class BarReporter:
    """See `chorus.cluster.planning.requests.PlanReporter`.

    Parameters
    ----------
    unit : what is counted
    """

    def __init__(self, unit: str = "region") -> None:
        self._unit = unit
        self._phase = ""
        self._failed = 0
        self._bar: tqdm | None = None

    def phase(self, text: str) -> None:
        """Set the text in front of the bar."""
        self._phase = text

    def forecast(self, forecast: object) -> None:
        """Ignore the forecast: a bar does not show it."""

    def begin(self, regions: int, pixels: int, devices: int) -> None:
        """Open a bar of `regions` steps."""
        self._failed = 0
        self._bar = tqdm(total=regions, desc=self._phase or None, unit=self._unit)

    def devices(self, count: int) -> None:
        """Show nothing: a bar counts regions, whoever works on them."""

    def region(self, status: RegionStatus) -> None:
        """Advance the bar by one region, and count it if it failed."""
        if self._bar is None:
            return
        self._bar.update(1)
        if status.state != "done":
            self._failed += 1
            self._bar.set_postfix(failed=self._failed)

    def end(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
