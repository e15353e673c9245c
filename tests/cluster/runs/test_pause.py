"""A run that sleeps, is overtaken and wakes up changes nothing, says so in one sentence and ends with exit code 3."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import psutil
import pytest

from chorus.pipeline.io import storage
from tests.support.buckets import Bucket, amazon
from tests.support.faults import no_fault
from tests.support.pausing import (
    OTHERS,
    Dataset,
    Ended,
    Held,
    contents,
    end,
    overtake,
    overtake_writer,
    pause,
    start,
    until_recorded,
    wake,
)
from tests.support.processes import wait_for


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.make(tmp_path_factory.mktemp("pause"))


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, object]]:
    """Gives what a run alone leaves, by the name of its settings."""

    @cache
    def alone(name: str) -> dict[str, object]:
        out = str(tmp_path_factory.mktemp("undisturbed") / "out")
        code, said = end(start(dataset.command(out, *OTHERS[name], "--executor", "serial")))
        assert code == 0, said
        return contents(out)

    return alone


@pytest.fixture(scope="module")
def running() -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as monkeypatch, amazon(monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def bucket(running: Bucket) -> Iterator[Bucket]:
    yield running
    running.proxy.choose = no_fault


def assert_stopped(ended: Ended) -> None:
    assert ended.different == []
    assert ended.code == 3, ended.said
    assert "Traceback" not in ended.said
    lines = [line for line in ended.said.splitlines() if "another run took over" in line]
    assert len(lines) == 1, ended.said
    assert re.search(r"^chorus: \S+/run\.lock: another run took over", lines[0])


@pytest.mark.long
def test_paused_run_on_a_bucket_writes_nothing_after_it_was_overtaken(
    dataset: Dataset, undisturbed: Callable[[str], dict[str, object]], bucket: Bucket
) -> None:
    out, name = storage.join(bucket.url, "paused"), "other bytes"
    moment = random.Random(1)
    assert_stopped(overtake(dataset, out, undisturbed(name), OTHERS[name], "--executor", "serial", moment=moment))


@pytest.mark.parametrize("place", ["bucket", "disk"])
def test_program_that_was_paused_while_it_wrote_writes_nothing_after_it_was_overtaken(
    place: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORUS_LOCK_SECONDS", "1")
    out = storage.join(bucket.url, "written") if place == "bucket" else str(tmp_path / "out")
    ended = overtake_writer(out, random.Random(4), flock=place == "bucket")
    assert ended.different == []
    assert ended.code == 3, ended.said


@pytest.mark.parametrize("name", [pytest.param("other bytes", marks=pytest.mark.long), "nothing there"])
def test_request_that_arrives_after_another_run_has_ended_changes_nothing(
    name: str, dataset: Dataset, undisturbed: Callable[[str], dict[str, object]], bucket: Bucket
) -> None:
    out = storage.join(bucket.url, name.replace(" ", "-"))
    held = Held(bucket.proxy, "PUT", "/s0/c/0/1/1")
    moment = random.Random(1)
    assert_stopped(
        overtake(dataset, out, undisturbed(name), OTHERS[name], "--executor", "serial", moment=moment, held=held)
    )


@pytest.mark.long
def test_paused_run_on_a_disk_without_locks_writes_nothing_after_it_was_overtaken(
    dataset: Dataset, undisturbed: Callable[[str], dict[str, object]], tmp_path: Path
) -> None:
    name, moment = "other bytes", random.Random(2)
    more = ("--executor", "serial")
    assert_stopped(
        overtake(dataset, str(tmp_path / "out"), undisturbed(name), OTHERS[name], *more, flock=False, moment=moment)
    )


def test_paused_run_on_a_disk_keeps_its_lock(dataset: Dataset, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    first = start(dataset.command(out, "--executor", "serial"))
    wait_for("a region", until_recorded(out, 1), first)
    stopped = pause(first.pid)
    try:
        code, said = end(start(dataset.command(out, *OTHERS["other bytes"], "--overwrite", "--executor", "serial")))
    finally:
        wake(stopped)
    assert code == 2
    assert f"another run is writing here; wait for it, or choose another --out (process {first.pid} on" in said
    code, said = end(first)
    assert code == 0, said


@pytest.mark.ray
@pytest.mark.kill
@pytest.mark.parametrize("name", ["other bytes", pytest.param("nothing there", marks=pytest.mark.long)])
def test_paused_run_on_ray_writes_nothing_after_it_was_overtaken(
    name: str, dataset: Dataset, undisturbed: Callable[[str], dict[str, object]], bucket: Bucket
) -> None:
    out = storage.join(bucket.url, f"ray-{name.replace(' ', '-')}")
    more = ("--executor", "ray", "--actors", "2")
    assert_stopped(overtake(dataset, out, undisturbed(name), OTHERS[name], *more, moment=random.Random(3)))


@pytest.mark.ray
@pytest.mark.kill
@pytest.mark.long
def test_actors_that_outlive_a_killed_driver_write_nothing_over_the_next_run(
    dataset: Dataset, undisturbed: Callable[[str], dict[str, object]], tmp_path: Path
) -> None:
    """On a disk, where the lock goes with the driver."""
    out, name = str(tmp_path / "out"), "other bytes"
    first = start(dataset.command(out, "--executor", "ray", "--actors", "2"))
    wait_for("a region", until_recorded(out, 1), first)
    stopped = pause(first.pid)
    first.kill()
    first.wait()
    code, said = end(start(dataset.command(out, *OTHERS[name], "--overwrite", "--executor", "serial")))
    assert code == 0, said
    wake(stopped)
    first.communicate(timeout=60)  # until all of its processes have closed their output
    psutil.wait_procs(stopped, timeout=60)
    assert not [process for process in stopped if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    now = contents(out)
    assert [key for key in {*now, *undisturbed(name)} if now.get(key) != undisturbed(name).get(key)] == []
