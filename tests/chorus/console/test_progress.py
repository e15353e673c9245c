"""Lines of progress: what they say of the time that is left, and of how busy devices are."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from chorus.cluster.runtime.status import RegionStatus
from chorus.console import progress
from chorus.console.progress import ConsoleReporter, last_progress, remaining


class Clock:
    """A clock that goes on when it is told."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    return made


def status(seconds: float) -> RegionStatus:
    return RegionStatus(0, 0, 0, "done", pixels=1_000_000, device_seconds=seconds)


def test_it_never_says_that_nothing_is_left_while_something_remains(clock: Clock) -> None:
    out = io.StringIO()
    reporter = ConsoleReporter(Console(file=out, width=200))
    reporter.begin(5, 0, 1)
    for _ in range(5):
        clock.now += 0.01
        reporter.region(status(0.01))
    reporter.end()
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert "0 s left" not in out.getvalue()
    assert all("1 s left" in line for line in lines[:-1])
    assert "left" not in lines[-1]
    assert last_progress(out.getvalue()) == (5, 5, "regions", re.sub(r"^5/5 regions ", "", lines[-1]))


def test_what_remains_is_a_second_at_the_least() -> None:
    assert [remaining(seconds) for seconds in (0.0, 0.4, 1.2, 61.0)] == ["1 s", "1 s", "1 s", "1 min 1 s"]


def test_devices_that_come_later_count_from_when_they_come(clock: Clock) -> None:
    """Ten seconds of one core that is busy, then ten of four of which two are."""
    out = io.StringIO()
    reporter = ConsoleReporter(Console(file=out, width=200), units="files", devices="cores")
    reporter.begin(2, 0, 1)
    clock.now = 10.0
    reporter.region(status(10.0))
    assert "cores 100% busy" in out.getvalue()
    reporter.devices(4)
    clock.now = 20.0
    reporter.region(status(20.0))
    assert "cores 60% busy" in out.getvalue()
