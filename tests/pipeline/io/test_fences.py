"""Conditional writes, and writes behind a fence in buckets whose lock goes to another run at the worst moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chorus.cluster.runtime.late_writers import settle
from chorus.pipeline.errors import OutputError, OvertakenError
from chorus.pipeline.io import storage
from chorus.pipeline.io.conditional import objects_of
from chorus.pipeline.io.fences import Fence, Pass, Timing, clock, fence_of, lower_fence, raise_fence
from chorus.pipeline.io.listings import pages
from tests.support.buckets import KINDS, Bucket
from tests.support.faults import Fault, no_fault

MINE, OTHER = b'{"token": "mine"}', b'{"token": "other"}'


@pytest.fixture(scope="module", params=sorted(KINDS))
def running(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as monkeypatch, KINDS[request.param](monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def fenced(running: Bucket, tmp_path: Path) -> Iterator[str]:
    """An output in a bucket whose lock is this process's."""
    out = storage.join(running.url, tmp_path.name)
    storage.write_bytes(f"{out}/run.lock", MINE)
    fence = storage.fence_for(Pass(out, f"{out}/run.lock", "mine", Timing(3.6)))
    raise_fence(fence)
    yield out
    lower_fence(fence)
    running.proxy.choose = no_fault


def put_unfenced(url: str, data: bytes) -> None:
    fs, path = storage.filesystem(url)
    fs.pipe_file(path, data)


def at(bucket: Bucket, kind: str, name: str, act: Callable[[], None]) -> None:
    """Do `act` when the first request of a kind for an object arrives, before it is carried out."""
    left = [1]

    def choose(asked: str, key: str) -> Fault | None:
        if asked == kind and key.endswith(name) and left.pop(0) if left else False:
            act()
        return None

    bucket.proxy.choose = choose


def content(url: str) -> bytes | None:
    return storage.read_bytes(url) if storage.exists(url) else None


def test_object_changes_only_from_the_version_that_is_expected(running: Bucket) -> None:
    fs, path = storage.filesystem(storage.join(running.url, "versions/a b[1].json"))
    objects = objects_of(fs, storage.scheme(running.url))
    first = objects.put(path, b"1", None)
    assert first is not None
    assert objects.put(path, b"x", None) is None
    second = objects.put(path, b"2", first)
    assert second not in (None, first)
    assert objects.put(path, b"x", first) is None
    assert objects.put(f"{path}.none", b"x", first) is None
    found = objects.read(path)
    assert (found.data, found.version) == (b"2", second)
    assert found.age is not None
    assert -1 <= found.age < 60
    assert [file.version for page in pages(fs, path.rpartition("/")[0]) for file in page] == [second]
    assert not objects.remove(path, first)
    assert objects.version(path) == second
    assert objects.remove(path, str(second))
    assert objects.version(path) is None
    assert objects.remove(path, str(second))


def test_holder_writes_replaces_and_removes(fenced: str, tmp_path: Path) -> None:
    for data in (b"1", b"2"):
        storage.write_bytes(f"{fenced}/a", data)
        (tmp_path / "file").write_bytes(data)
        storage.put_file(tmp_path / "file", f"{fenced}/b")
        assert content(f"{fenced}/a") == content(f"{fenced}/b") == data
    storage.remove_file(f"{fenced}/a")
    storage.remove_file(f"{fenced}/a")
    storage.write_bytes(f"{fenced}/folder/c", b"")
    storage.remove_folder(f"{fenced}/folder")
    assert storage.entries(fenced) == ["b", "run.lock"]


def test_object_that_the_other_run_wrote_meanwhile_is_not_replaced(fenced: str, running: Bucket) -> None:
    def overtake() -> None:
        put_unfenced(f"{fenced}/run.lock", OTHER)
        put_unfenced(f"{fenced}/new", b"theirs")
        time.sleep(0.1)

    at(running, "PUT", "/new", overtake)
    with pytest.raises(OvertakenError):
        storage.write_bytes(f"{fenced}/new", b"mine")
    assert content(f"{fenced}/new") == b"theirs"


def test_object_that_the_other_run_does_not_have_is_taken_back(fenced: str, running: Bucket) -> None:
    def overtake() -> None:
        put_unfenced(f"{fenced}/run.lock", OTHER)
        time.sleep(Timing(3.6).grace)

    at(running, "PUT", "/new", overtake)
    with pytest.raises(OvertakenError):
        storage.write_bytes(f"{fenced}/new", b"mine")
    assert content(f"{fenced}/new") is None


def test_late_file_is_taken_back_too(fenced: str, running: Bucket, tmp_path: Path) -> None:
    def overtake() -> None:
        put_unfenced(f"{fenced}/run.lock", OTHER)
        time.sleep(Timing(3.6).grace)

    (tmp_path / "file").write_bytes(b"mine")
    at(running, "PUT", "/new", overtake)
    with pytest.raises(OvertakenError):
        storage.put_file(tmp_path / "file", f"{fenced}/new")
    assert content(f"{fenced}/new") is None


def test_object_that_the_other_run_replaced_is_not_removed(fenced: str, running: Bucket) -> None:
    put_unfenced(f"{fenced}/old", b"before")
    at(running, "DELETE", "/old", lambda: put_unfenced(f"{fenced}/old", b"theirs"))
    storage.remove_file(f"{fenced}/old")
    assert content(f"{fenced}/old") == b"theirs"


def test_holder_replaces_what_an_earlier_one_put_in_its_way(fenced: str, running: Bucket) -> None:
    at(running, "PUT", "/new", lambda: put_unfenced(f"{fenced}/new", b"of the past"))
    storage.write_bytes(f"{fenced}/new", b"mine")
    assert content(f"{fenced}/new") == b"mine"


def test_object_that_changes_all_the_time_is_an_error(fenced: str, running: Bucket) -> None:
    count = [0]

    def choose(kind: str, key: str) -> Fault | None:
        if kind == "PUT" and key.endswith("/new") and not count[0] % 2:
            count[0] += 1
            put_unfenced(f"{fenced}/new", str(count[0]).encode())
            count[0] += 1
        return None

    running.proxy.choose = choose
    with pytest.raises(OutputError, match="another program changes it all the time"):
        storage.write_bytes(f"{fenced}/new", b"mine")


def test_answer_of_the_lock_is_used_for_the_lease_only(fenced: str, running: Bucket) -> None:
    running.proxy.requests.clear()
    for index in range(5):
        storage.write_bytes(f"{fenced}/{index}", b"")
    assert 1 <= running.proxy.counts("run.lock")["GET"] <= 5
    fence = fence_of(fenced)
    assert fence is not None
    put_unfenced(f"{fenced}/run.lock", OTHER)
    time.sleep(Timing(3.6).lease)
    with pytest.raises(OvertakenError):
        fence.check()


def test_fence_stays_down_once_its_lock_was_lost(tmp_path: Path) -> None:
    lock = tmp_path / "run.lock"
    lock.write_bytes(OTHER)
    fence = Fence(Pass(str(tmp_path), str(lock), "mine", Timing(90.0)), lambda url: Path(url).read_bytes(), 0.0)
    with pytest.raises(OvertakenError):
        fence.check()
    lock.write_bytes(MINE)
    with pytest.raises(OvertakenError):
        fence.check()


def test_overtaken_run_waits_for_its_late_writers_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, waited = tmp_path / "run.lock", list[float]()
    monkeypatch.setattr(time, "sleep", waited.append)
    lock.write_bytes(MINE)
    fence = storage.fence_for(Pass(str(tmp_path), str(lock), "mine", Timing(36)))
    raise_fence(fence)
    try:
        settle()
        assert waited == []
        lock.write_bytes(OTHER)
        settle()
        settle()
    finally:
        lower_fence(fence)
    assert waited == [2.0]
    settle()  # without a fence there is nothing to wait for


def test_file_whose_run_was_overtaken_between_check_and_renaming_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.lock").write_bytes(MINE)
    fence = storage.fence_for(Pass(str(out), str(out / "run.lock"), "mine", Timing(90.0)))
    asked = [0]

    def check(*, now: bool = False) -> float:
        asked[0] += 1
        if asked[0] == 2:  # paused right after it, while another run takes over and clears the output
            (out / "run.lock").write_bytes(OTHER)
            storage.remove_partial_files(str(out))
        elif asked[0] > 2:
            return Fence.check(fence, now=now)
        return clock()

    monkeypatch.setattr(fence, "check", check)
    raise_fence(fence)
    try:
        with pytest.raises(OvertakenError):
            storage.write_bytes(f"{out}/a", b"mine")
    finally:
        lower_fence(fence)
    assert storage.entries(str(out)) == ["run.lock"]
