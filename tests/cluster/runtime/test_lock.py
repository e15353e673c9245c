"""One run at a time in one output: on a local disk, on a bucket, and after a run that was killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from chorus.cluster.runtime import output_lock as lock
from chorus.cluster.runtime.output_lock import output_lock
from chorus.pipeline.errors import CutShortError, RefusedError
from chorus.pipeline.io import storage
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
    monkeypatch.setattr(lock, "_HEARTBEAT_SECONDS", 0.1)
    return place(request.param, request, tmp_path)


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


@pytest.mark.parametrize(
    ("holder", "silent_for", "free"),
    [
        ("run@elsewhere:1", 0, False),
        ("run@elsewhere:1", 1000, True),
        (f"run@{socket.gethostname()}:{os.getpid()}", 0, False),
        (f"run@{socket.gethostname()}:99999999", 0, True),
    ],
    ids=["alive elsewhere", "silent elsewhere", "alive here", "dead here"],
)
def test_lock_of_a_dead_run_on_a_bucket_is_overtaken(bucket: str, holder: str, silent_for: int, free: bool) -> None:
    out = f"{bucket}/overtaken-{holder}-{silent_for}"
    entry = {"holder": holder, "alive": time.time() - silent_for}
    storage.write_bytes(f"{out}/run.lock", json.dumps(entry).encode())
    if free:
        with output_lock(out, "me"):
            pass
    else:
        with pytest.raises(RefusedError), output_lock(out, "me"):
            pass


def test_run_that_was_overtaken_stops(remote: str) -> None:
    other = json.dumps({"holder": "other@elsewhere:1", "alive": time.time()}).encode()

    def run() -> None:
        with output_lock(remote, "me"):
            storage.write_bytes(f"{remote}/run.lock", other)
            time.sleep(4)

    with pytest.raises(CutShortError, match="another run took over"):
        run()
    assert storage.read_bytes(f"{remote}/run.lock") == other


def test_holder_says_that_it_lives_and_leaves_nothing_behind(remote: str) -> None:
    with output_lock(remote, "me"):
        before = json.loads(storage.read_bytes(f"{remote}/run.lock"))
        time.sleep(0.5)
        after = json.loads(storage.read_bytes(f"{remote}/run.lock"))
    assert after["holder"] == before["holder"]
    assert after["alive"] > before["alive"]
    assert not any(thread.name == "chorus-lock" for thread in threading.enumerate())
    assert not storage.exists(f"{remote}/run.lock")


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
