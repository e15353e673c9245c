"""One run at a time in one output: on a local disk, on a bucket, and after a run that was killed."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from chorus.cluster.runtime import lock_holder
from chorus.cluster.runtime.lock_holder import Holder
from chorus.cluster.runtime.output_lock import free_lock, output_lock
from chorus.pipeline.errors import OvertakenError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.fences import cover, fence_of
from tests.support.making import pixels, write_image, write_light_ensemble


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket on a server in this process that speaks S3."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("runs")
        yield "s3://runs"
    server.stop()


def place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if kind == "s3":
        return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    return f"memory://{tmp_path.name}" if kind == "memory" else str(tmp_path / "out")


@pytest.fixture(params=["file", "memory", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return place(request.param, request, tmp_path)


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An output that is not on a local disk, whose holder says often that it lives."""
    monkeypatch.setenv("CHORUS_LOCK_SECONDS", "1.2")
    return place(request.param, request, tmp_path)


def elsewhere(**changes: object) -> Holder:
    """A holder on another machine."""
    here = Holder.here("other", 90.0)
    return here.model_copy(update={"host": "elsewhere", "kernel": "another", "namespace": "another"} | changes)


def test_second_run_is_refused_in_one_sentence_until_the_first_ends(out: str) -> None:
    with output_lock(out, "first"):
        for _ in range(2):  # being refused does not free the lock
            with (
                pytest.raises(RefusedError, match=r"run\.lock: another run is writing here; wait for it, or choose"),
                output_lock(out, "second"),
            ):
                raise AssertionError("both runs write")
    with output_lock(out, "second"):
        pass


def test_lock_is_freed_when_the_run_fails(out: str) -> None:
    with pytest.raises(ZeroDivisionError), output_lock(out, "first"):
        raise ZeroDivisionError
    with output_lock(out, "second"):
        pass


def test_lock_says_who_holds_it_and_since_when_on_a_bucket(bucket: str) -> None:
    out = f"{bucket}/told"
    with output_lock(out, "first"), pytest.raises(RefusedError) as refused, output_lock(out, "second"):
        pass
    who = rf"process {os.getpid()} on {re.escape(socket.gethostname())}, last sign of life \d s ago"
    assert re.search(rf"\({who}; if it was killed, .* `chorus unlock {out}`\)$", str(refused.value))


def ended_process() -> dict[str, object]:
    """Number and start of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        started = lock_holder._started(process.pid)
    return {"pid": process.pid, "started": started or ""}


def test_lock_of_a_process_of_this_machine_that_ended_is_taken_at_once(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Holder.here("other", 1.0).model_copy(update=ended_process())
    storage.write_bytes(f"{bucket}/dead/run.lock", dead.content())
    with output_lock(f"{bucket}/dead", "me"):
        assert Holder.parse(storage.read_bytes(f"{bucket}/dead/run.lock")) != dead


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pid": 1, "started": "1"},
        {"host": "elsewhere", "pid": 999_999_999},
        {"namespace": "pid:[1]", "pid": 999_999_999},
        {"kernel": "before the restart", "pid": 999_999_999},
        {"pid": os.getpid(), "started": ""},
    ],
    ids=["this process", "reused number", "other host", "other namespace", "other kernel", "start unknown"],
)
def test_only_a_process_that_is_seen_to_be_gone_counts_as_dead(changes: dict[str, object]) -> None:
    holder = Holder.here("run", 90.0).model_copy(update=changes)
    assert holder.is_dead() == (changes.get("started") == "1")


def test_silent_lock_is_taken_by_the_clock_of_the_store(bucket: str) -> None:
    out = f"{bucket}/silent"
    storage.write_bytes(f"{out}/run.lock", elsewhere(silence=2.0).content())
    with pytest.raises(RefusedError, match="last sign of life"), output_lock(out, "me"):
        pass
    time.sleep(3.1)  # the store counts whole seconds
    with output_lock(out, "me"):
        pass


def test_living_lock_is_not_taken_by_a_host_whose_clock_is_wrong(bucket: str, tmp_path: Path) -> None:
    out = f"{bucket}/shifted"
    program = (
        "import sys, time, datetime\n"
        "now = time.time\n"
        "time.time = lambda: now() + 3600 * float(sys.argv[2])\n"
        "from chorus.cluster.runtime.output_lock import output_lock\n"
        "with output_lock(sys.argv[1], 'shifted'):\n"
        "    raise SystemExit('taken')\n"
    )
    with output_lock(out, "first"):
        for hours in ("0.09", "-0.09"):
            said = subprocess.run([sys.executable, "-c", program, out, hours], capture_output=True, text=True)
            assert "RefusedError" in said.stderr, said.stderr
            assert "another run is writing here" in said.stderr


def test_process_of_another_pid_namespace_does_not_take_a_living_lock(bucket: str) -> None:
    isolated = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no PID namespace be made")
    out = f"{bucket}/namespace"
    program = (
        "import sys\n"
        "from chorus.cluster.runtime.output_lock import output_lock\n"
        "with output_lock(sys.argv[1], 'isolated'):\n"
        "    raise SystemExit('taken')\n"
    )
    with output_lock(out, "first"):
        said = subprocess.run([*isolated, sys.executable, "-c", program, out], capture_output=True, text=True)
    assert "another run is writing here" in said.stderr, said.stderr


GARBAGE = {
    "text": b"hello",
    "binary": bytes(range(256)),
    "number": b"7",
    "list": b"[]",
    "other object": b'{"holder": "a@b:1", "alive": 1}',
    "brackets": b"[" * 20_000,
    "huge": b"x" * (3 << 20),
    "not UTF-8": b'{"token": "\xff"}',
    "huge numbers": b'{"token": "a", "pid": ' + b"9" * 6000 + b"}",
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_garbage_in_the_lock_is_refused_in_one_sentence_and_stays(out: str, content: bytes) -> None:
    url = f"{out}/run.lock"
    storage.write_bytes(url, content)
    message = r"run\.lock: is not a lock of this version .* remove it"
    with pytest.raises(RefusedError, match=message) as refused, output_lock(out, "me"):
        pass
    assert len(str(refused.value)) < 400
    assert storage.read_bytes(url) == content


def test_empty_lock_on_a_disk_is_free_and_one_in_a_bucket_is_refused(out: str) -> None:
    storage.write_bytes(f"{out}/run.lock", b"")
    if storage.scheme(out) == "file":
        with output_lock(out, "me"):
            pass
    else:
        with pytest.raises(RefusedError, match="is not a lock"), output_lock(out, "me"):
            pass


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_lock_that_is_no_file_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    with pytest.raises(RefusedError, match=r"run\.lock: is not a lock .*not a file"), output_lock(str(tmp_path), "me"):
        pass


def test_refused_run_leaves_neither_lock_nor_folder(out: str, tmp_path: Path) -> None:
    def refused() -> None:
        with output_lock(out, "me"):
            raise RefusedError("no")

    with pytest.raises(RefusedError, match="no"):
        refused()
    assert storage.entries(out) == []
    assert not (tmp_path / "out").exists()


def test_run_that_was_overtaken_stops(remote: str) -> None:
    other = elsewhere().content()

    def run() -> None:
        with output_lock(remote, "me"):
            storage.write_bytes(f"{remote}/before", b"")
            fs, path = storage.filesystem(f"{remote}/run.lock")
            fs.pipe_file(path, other)
            time.sleep(4)

    with pytest.raises(OvertakenError, match=r"run\.lock: another run took over"):
        run()
    assert storage.read_bytes(f"{remote}/run.lock") == other


def test_overtaken_run_writes_and_removes_nothing_more(out: str) -> None:
    def run() -> None:
        with output_lock(out, "me"):
            storage.write_bytes(f"{out}/old", b"mine")
            fs, path = storage.filesystem(f"{out}/run.lock")
            fs.pipe_file(path, elsewhere().content())
            fence = fence_of(out)
            assert fence is not None
            fence._seen = -1e9
            part = Path(tempfile.mkstemp(dir=None if "://" in out else out)[1])
            changes = [
                lambda: storage.write_bytes(f"{out}/new", b"mine"),
                lambda: storage.put_file(part, f"{out}/moved"),
                lambda: storage.remove_file(f"{out}/old"),
                lambda: storage.remove_folder(out),
            ]
            for change in changes:
                with pytest.raises(OvertakenError):
                    change()

    with pytest.raises(OvertakenError):
        run()
    assert {"old", "run.lock"} <= set(storage.entries(out))
    assert not {"new", "moved"} & set(storage.entries(out))


def test_results_in_a_source_are_fenced_like_the_output(tmp_path: Path) -> None:
    out, source = str(tmp_path / "out"), str(tmp_path / "source")

    def run() -> None:
        with output_lock(out, "me"):
            cover(source, out)
            storage.write_bytes(f"{source}/a", b"")
            (tmp_path / "out/run.lock").write_bytes(elsewhere().content())
            storage.write_bytes(f"{source}/b", b"")

    with pytest.raises(OvertakenError):
        run()
    assert storage.entries(source) == ["a"]
    storage.write_bytes(f"{source}/b", b"")  # a fence does not outlive its run


def test_holder_says_that_it_lives_and_leaves_nothing_behind(remote: str) -> None:
    with output_lock(remote, "me"):
        before = Holder.parse(storage.read_bytes(f"{remote}/run.lock"))
        time.sleep(0.7)
        after = Holder.parse(storage.read_bytes(f"{remote}/run.lock"))
    assert before is not None
    assert after is not None
    assert after.token == before.token
    assert after.beat > before.beat
    assert not any(thread.name == "chorus-lock" for thread in threading.enumerate())
    assert not storage.exists(f"{remote}/run.lock")


def test_of_many_runs_that_find_a_dead_one_a_single_one_gets_the_lock(bucket: str) -> None:
    out = f"{bucket}/rivals"
    storage.write_bytes(f"{out}/run.lock", Holder.here("dead", 1.0).model_copy(update=ended_process()).content())
    held, ended = [], threading.Barrier(8)

    def rival(index: int) -> None:
        try:
            with output_lock(out, f"rival{index}"):
                held.append(index)
                ended.wait(30)
        except RefusedError:
            ended.wait(30)

    threads = [threading.Thread(target=rival, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks, as some network file systems are mounted."""

    def missing(file: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)


@pytest.mark.usefixtures("without_flock")
def test_file_system_without_locks_has_them_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORUS_LOCK_SECONDS", "1.2")
    out = str(tmp_path / "out")
    with output_lock(out, "first"):
        time.sleep(1.5)  # it is renewed
        with pytest.raises(RefusedError, match="another run is writing here"), output_lock(out, "second"):
            pass
        storage.write_bytes(f"{out}/result", b"")
    assert storage.entries(out) == ["result"]
    storage.write_bytes(f"{out}/run.lock", elsewhere(silence=1.0).content())
    with pytest.raises(RefusedError, match="`chorus unlock"), output_lock(out, "third"):
        pass
    time.sleep(1.1)
    with output_lock(out, "third"):
        pass


def test_unlocking_frees_a_bucket_and_refuses_a_living_process_on_a_disk(bucket: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{bucket}/left/run.lock", elsewhere(silence=1.0).content())
    assert free_lock(f"{bucket}/left") == f"process {os.getpid()} on elsewhere"
    assert free_lock(f"{bucket}/left") == ""
    with output_lock(str(tmp_path / "out"), "lives"), pytest.raises(RefusedError, match="its process lives"):
        free_lock(str(tmp_path / "out"))


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "1e9"])
def test_period_of_locks_that_is_none_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORUS_LOCK_SECONDS", text)
    with pytest.raises(RefusedError, match="CHORUS_LOCK_SECONDS"), output_lock(str(tmp_path), "me"):
        pass


def test_second_command_is_refused_and_a_killed_one_frees_the_output(tmp_path: Path) -> None:
    ensemble = write_light_ensemble(tmp_path / "ensemble", members=1, width=32)
    write_image(tmp_path / "image.ome.zarr", pixels((1024, 1024)))
    program = [sys.executable, "-m", "chorus.cli", "predict", str(tmp_path / "image.ome.zarr"), "-e", str(ensemble)]
    program += ["-o", str(tmp_path / "out"), "--executor", "serial", "--region", "64", "--chunk", "64", "--no-report"]
    first = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("out/ledger/*/region-*.json")):
            assert time.monotonic() < deadline
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.05)
        second = subprocess.run(program, capture_output=True, text=True, timeout=120)
        assert first.poll() is None, "the first run ended too soon for this test"
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert second.returncode == 2
    assert "another run is writing here" in second.stderr
    assert "Traceback" not in second.stderr
    with output_lock(str(tmp_path / "out"), "third"):
        pass
