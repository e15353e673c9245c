"""A lock on an output, so that only one run at a time writes there."""

from __future__ import annotations

import _thread
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from chorus.pipeline.errors import CutShortError, OutputError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage import storage_errors

log = logging.getLogger("chorus")

# A run renews its lock in a bucket this often; one that has been silent for much longer counts as dead.
_HEARTBEAT_SECONDS = 15.0
_SILENCE_SECONDS = 90.0


@contextmanager
def output_lock(out: str, session: str) -> Iterator[None]:
    """Hold the lock of `out` inside the context.

    On a local disk the operating system holds the lock and releases it when the process dies, however it dies. In a
    bucket, an object names the holder and the time of its last sign of life. The holder renews it; a holder that has
    been silent for too long loses the lock to the next run. If that holder is alive after all, it stops as if
    interrupted.

    Raises
    ------
    RefusedError
        If another run holds it.
    OutputError
        If the output cannot be written.
    CutShortError
        If another run took the lock in the meantime.
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
    with storage_errors(url):
        _take(url, me)
    stop, lost = threading.Event(), threading.Event()

    def beat() -> None:
        while not stop.wait(_HEARTBEAT_SECONDS):
            try:
                if _held(url).get("holder") != me:
                    lost.set()
                    _thread.interrupt_main()
                    return
                storage.write_bytes(url, _entry(me))
            except OSError as error:
                log.warning("%s: could not be renewed (%s); trying again", url, error)

    thread = threading.Thread(target=beat, name="chorus-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if lost.is_set():
            raise CutShortError(f"{url}: another run took over, as this one had not been heard of; let one of them end")
        fs, path = storage.filesystem(url)
        with suppress(OSError):  # the next run replaces a lock that stays
            fs.rm_file(path)


def _take(url: str, me: str) -> None:
    """Create the object that names the holder; only one of several processes can create it."""
    fs, path = storage.filesystem(url)
    try:
        fs.pipe_file(path, _entry(me), mode="create")
    except FileExistsError:
        held = _held(url)
        if held.get("holder") == me:  # created by a first attempt whose answer was lost
            return
        if time.time() - held.get("alive", 0) < _SILENCE_SECONDS and not _dead(held["holder"]):
            raise RefusedError(_busy(url)) from None
        # If two runs replace a dead one at once, the second to write wins; the first notices at its next renewal.
        storage.write_bytes(url, _entry(me))


def _entry(holder: str) -> bytes:
    return json.dumps({"holder": holder, "alive": time.time()}).encode()


def _held(url: str) -> dict[str, Any]:
    """Return who holds the lock and when it was last renewed; empty if nobody does."""
    try:
        held: dict[str, Any] = json.loads(storage.read_bytes(url))
    except FileNotFoundError:
        return {}
    return held


def _dead(holder: str) -> bool:
    """Return whether the holder was a process of this machine that no longer exists."""
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
