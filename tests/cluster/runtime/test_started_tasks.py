"""Tasks where nobody chose: a few here, and of many those that are left when a start of Ray would have paid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from chorus.cluster.runtime import started_tasks as room
from chorus.cluster.runtime.reporting import Reporter, Silent
from chorus.cluster.runtime.signals import STOPPED
from chorus.cluster.runtime.started_tasks import (
    AutoTasks,
    Ending,
    Executor,
    ItemEnd,
    Items,
    SerialTasks,
    interruptible,
    started_tasks,
)
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.runtime.tasks import TaskResult
from chorus.pipeline.errors import ImageError, OutputError


class Elsewhere(SerialTasks):
    """Counts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[int] = []

    def submit(self, key: int, function: Callable[..., Any], *arguments: Any) -> None:
        self.keys.append(key)
        super().submit(key, function, *arguments)


def values(results: Iterator[TaskResult]) -> dict[int, Any]:
    return {result.key: result.value for result in results}


def test_work_that_ends_in_time_stays_here() -> None:
    tasks = AutoTasks(lambda: pytest.fail("Ray is started"), patience=60.0)
    for key in range(5):
        tasks.submit(key, abs, -key)
    assert values(tasks.results(wait=True)) == {key: key for key in range(5)}


def test_what_is_left_goes_elsewhere_and_every_task_ends_once() -> None:
    there = Elsewhere()
    tasks = AutoTasks(lambda: there, patience=0.0)
    tasks._taken = -1e-9  # the first one is begun here
    for key in range(5):
        tasks.submit(key, abs, -key)
    results = tasks.results(wait=True)
    assert next(results).value == 0
    assert there.keys == []
    tasks.submit(5, abs, -5)
    assert values(results) == {key: key for key in range(1, 6)}
    assert there.keys == [1, 2, 3, 4, 5]
    tasks.submit(6, abs, -6)
    assert values(tasks.results(wait=True)) == {6: 6}
    assert there.keys[-1] == 6


def test_the_last_one_takes_as_long_anywhere_and_stays() -> None:
    tasks = AutoTasks(lambda: pytest.fail("Ray is started"), patience=0.0)
    tasks.submit(0, abs, -1)
    assert values(tasks.results(wait=True)) == {0: 1}


@pytest.mark.parametrize(
    ("executor", "address", "count", "up", "on_ray"),
    [
        ("auto", None, 5, False, False),
        ("auto", None, 5, True, True),
        ("auto", "auto", 5, False, True),
        ("auto", "auto", 0, False, False),
        ("ray", None, 1, False, True),
        ("serial", "auto", 5, True, False),
    ],
)
def test_ray_is_started_where_it_is_asked_for_or_there_already(
    executor: Executor, address: str | None, count: int, up: bool, on_ray: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Elsewhere()

    @contextmanager
    def fake(address: str | None, reporter: Reporter) -> Iterator[tuple[Elsewhere, int]]:
        yield there, 7

    monkeypatch.setattr(room, "_on_ray", fake)
    monkeypatch.setattr(room, "ray_is_up", lambda: up)
    with started_tasks(executor, address, count, Silent()) as (tasks, cores):
        assert (tasks is there, cores) == (on_ray, 7 if on_ray else 1)


def test_devices_are_told_when_ray_comes_and_ray_is_left_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    class Listening(Silent):
        def devices(self, count: int) -> None:
            told.append(count)

    @contextmanager
    def fake(address: str | None, reporter: Reporter) -> Iterator[tuple[Elsewhere, int]]:
        yield Elsewhere(), 4
        told.append("left")

    monkeypatch.setattr(room, "_on_ray", fake)
    monkeypatch.setattr(room, "several_cores", lambda: True)
    monkeypatch.setattr(room.AutoTasks.__init__, "__defaults__", (0.0,))
    with started_tasks("auto", None, 3, Listening()) as (tasks, _):
        for key in range(3):
            tasks.submit(key, abs, -key)
        assert values(tasks.results(wait=True)) == {0: 0, 1: 1, 2: 2}
        assert told == [4]
    assert told == [4, "left"]


class Work:
    """Three items: the second fails, or its result is not taken by storage, or somebody presses Ctrl-C."""

    def __init__(self, second: BaseException) -> None:
        self.second, self.ended = second, []  # type: ignore[var-annotated]

    def task(self, item: str) -> str:
        if item == "b":
            raise self.second
        return item.upper()

    def take(self, item: str, result: TaskResult) -> ItemEnd:
        self.ended.append((item, result.value))
        return ItemEnd(pixels=10, seconds=0.5, failure=result.error or "")

    def carry_out(self, reporter: Silent) -> Ending:
        items = Items(["a", "b", "c"], lambda item: (self.task, (item,)), self.take)
        return items.carry_out("serial", None, reporter, pixels=30)


class Heard(Silent):
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def begin(self, regions: int, pixels: int, devices: int) -> None:
        self.said.append((regions, pixels, devices))

    def region(self, status: RegionStatus) -> None:
        self.said.append((status.state, status.message, status.pixels, status.seconds))

    def end(self) -> None:
        self.said.append("end")


def test_an_item_that_fails_is_reported_and_the_others_go_on() -> None:
    work, heard = Work(ImageError("b: is broken")), Heard()
    assert work.carry_out(heard) == Ending("complete", "")
    assert work.ended == [("a", "A"), ("b", None), ("c", "C")]
    done = ("done", "", 10, 0.5)
    assert heard.said == [(3, 30, 1), done, ("failed", "b: is broken", 10, 0.5), done, "end"]


@pytest.mark.parametrize(
    ("second", "message"),
    [(OutputError("disk is full"), "disk is full"), (KeyboardInterrupt(), STOPPED)],
)
def test_what_interrupts_is_the_ending_and_the_items_after_it_are_left(second: BaseException, message: str) -> None:
    work, heard = Work(second), Heard()
    assert work.carry_out(heard) == Ending("interrupted", message)
    assert [item for item, _ in work.ended] == (["a", "b"] if isinstance(second, OutputError) else ["a"])
    assert heard.said[-1] == "end"


def test_a_fault_of_the_program_itself_goes_through() -> None:
    with pytest.raises(ZeroDivisionError), interruptible():
        raise ZeroDivisionError
