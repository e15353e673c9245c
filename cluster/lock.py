"""One run at a time in one output."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline import storage
from pipeline.errors import OutputError, RefusedError

# A run on a bucket says that it lives this often; one that has been silent for much longer is dead.
_HEARTBEAT_SECONDS = 15.0
_SILENCE_SECONDS = 90.0


@contextmanager
def output_lock(out: str, session: str) -> Iterator[None]:
    """Hold `out` for this process.

    On a local disk the operating system holds the lock and drops it when the process dies, however it dies. On a
    bucket an object says who holds it and since when; the holder renews it, and a silent one is overtaken.

    Raises
    ------
    RefusedError
        If another run holds it.
    OutputError
        If the output cannot be written.
    """
    url = storage.join(out, "run.lock")
    if storage.scheme(out) == "file":
        with _local(url):
            yield
    else:
        with _remote(url, session):
            yield


@contextmanager
def _local(path: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RefusedError(_busy(path)) from error
    except OSError as error:
        raise OutputError(storage.explain(error, path) or f"{path}: {error}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _remote(url: str, session: str) -> Iterator[None]:
    me = f"{session}@{socket.gethostname()}:{os.getpid()}"
    try:
        held = json.loads(storage.read_bytes(url)) if storage.exists(url) else None
        if held and time.time() - held["alive"] < _SILENCE_SECONDS and not _dead(held["holder"]):
            raise RefusedError(_busy(url))
        _renew(url, me)
        if json.loads(storage.read_bytes(url))["holder"] != me:
            raise RefusedError(_busy(url))
    except OSError as error:
        raise OutputError(storage.explain(error, url) or f"{url}: {error}") from error
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(_HEARTBEAT_SECONDS):
            _renew(url, me)

    thread = threading.Thread(target=beat, name="chorus-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        fs, path = storage.filesystem(url)
        fs.rm_file(path)


def _renew(url: str, holder: str) -> None:
    storage.write_bytes(url, json.dumps({"holder": holder, "alive": time.time()}).encode())


def _dead(holder: str) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    host, _, process = holder.rpartition("@")[2].rpartition(":")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _busy(url: str) -> str:
    return f"{url}: another run is writing here; wait for it, or choose another --out"
