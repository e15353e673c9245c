"""A lock on an output, so that only one run at a time writes there, and the fence before the writes of that run.

On a local disk the operating system holds the lock (``flock``), and releases it when the process dies, however it dies.
In a bucket, and on file systems without ``flock``, the object ``run.lock`` names the holder, who renews it; a holder
that is known to be dead, or that has been silent for too long by the store's own clock, loses the lock to the next run.
If that holder is alive after all, it stops: see `chorus.pipeline.io.fences`.
"""

from __future__ import annotations

import _thread
import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from chorus.cluster.runtime.lock_holder import LONGEST, Holder
from chorus.pipeline.errors import OutputError, OvertakenError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.conditional import Objects, Versioned, objects_of
from chorus.pipeline.io.fences import Fence, Pass, Timing, lower_fence, overtaken, raise_fence, timing
from chorus.pipeline.io.storage_failures import failure_sentence, storage_errors

log = logging.getLogger("chorus")

NAME = "run.lock"
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)


@contextmanager
def output_lock(out: str, session: str) -> Iterator[None]:
    """Hold the lock of `out` inside the context; all writes below `out` then need it.

    Raises
    ------
    RefusedError
        If another run holds it, or `run.lock` is something else.
    OutputError
        If the output cannot be written.
    OvertakenError
        If another run took the lock in the meantime.
    """
    out = storage.normalise(out)
    url = storage.join(out, NAME)
    times = timing()
    holder = Holder.here(session, times.silence)
    fence = storage.fence_for(Pass(out, url, holder.token, times))
    if storage.scheme(out) != "file":
        with _remote(url, holder, times, fence):
            yield
        return
    with _folder(Path(url).parent), _kernel_lock(Path(url), holder) as held:
        if not held:
            with _remote(url, holder, times, fence):
                yield
        elif sys.platform == "win32":  # the lock cannot be read there, see below
            yield
        else:
            with _fenced(fence):
                yield


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make the folder for the lock; remove it again if the run leaves nothing in it."""
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(failure_sentence(error, str(folder)) or f"{folder}: {error}") from error
    try:
        yield
    finally:
        if not existed:
            with suppress(OSError):  # not empty
                folder.rmdir()


@contextmanager
def _kernel_lock(path: Path, holder: Holder) -> Iterator[bool]:
    """Hold the lock of the operating system; yield False where the file system has none."""
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        raise RefusedError(_strange(str(path), "it is not a file"))
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RefusedError(_busy(str(path), _signed(path))) from error
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise OutputError(failure_sentence(error, str(path)) or f"{path}: {error}") from error
        with suppress(FileNotFoundError):  # the attempt leaves an empty file behind; a lock is never empty
            if not path.stat().st_size:
                path.unlink()
        yield False
        return
    try:
        if sys.platform == "win32":  # a locked file can neither be read nor removed there
            yield True
            return
        if path.stat().st_size and _signed(path) is None:
            raise RefusedError(_strange(str(path), "its content is of something else"))
        _sign(path, holder)
        try:
            yield True
        finally:
            if _signed(path) == holder:
                path.unlink(missing_ok=True)  # while it is held: who opened it meanwhile sees that, and tries again
    finally:
        lock.release()


def _sign(path: Path, holder: Holder) -> None:
    """Write who holds the lock into the locked file itself, which no other process writes."""
    try:
        path.write_bytes(holder.content())
    except OSError as error:
        raise OutputError(failure_sentence(error, str(path)) or f"{path}: {error}") from error


def _signed(path: Path) -> Holder | None:
    try:
        with path.open("rb") as file:
            return Holder.parse(file.read(LONGEST + 1))
    except OSError:
        return None


@contextmanager
def _fenced(fence: Fence) -> Iterator[None]:
    """Fence the writes of this process; raise OvertakenError at the end if the lock is not this run's any more."""
    raise_fence(fence)
    try:
        yield
    finally:
        lower_fence(fence)
        try:
            with storage_errors(fence.given.lock):
                fence.check(now=True)
        except OvertakenError:
            raise
        except OutputError as error:  # what the run itself said is what counts
            log.warning("at the end: %s", error)


@contextmanager
def _remote(url: str, holder: Holder, times: Timing, fence: Fence) -> Iterator[None]:
    fs, path = storage.filesystem(url)
    objects = objects_of(fs, storage.scheme(url))
    with storage_errors(url):
        held = _Held(objects, url, path, holder, _take(objects, url, path, holder, times))
    beating = threading.Thread(target=held.beat, args=(times.heartbeat, fence), name="chorus-lock", daemon=True)
    beating.start()
    try:
        with _fenced(fence):
            yield
    finally:
        held.stop.set()
        try:
            beating.join()
        except KeyboardInterrupt:  # by that thread, once the lock is lost
            if not held.lost:
                raise
        if held.lost or not held.release():
            raise OvertakenError(overtaken(url))


class _Held:
    """A lock that this process holds by renewing it."""

    def __init__(self, objects: Objects, url: str, path: str, holder: Holder, version: str) -> None:
        self._objects, self._url, self._path = objects, url, path
        self._holder, self._version = holder, version
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self.stop = threading.Event()
        self.lost = False

    def beat(self, period: float, fence: Fence) -> None:
        """Renew the lock until told to stop; interrupt the run once another one has it."""
        while not self.stop.wait(period):
            try:
                with storage_errors(self._url):
                    renewed = self._renew()
            except OutputError as error:
                log.warning("the lock could not be renewed, trying again: %s", error)
                continue
            if renewed:
                continue
            self.lost = fence.overtaken = True
            # Its other processes take back what they were writing, before they end with this one.
            ends_by_itself = self.stop.wait(fence.given.timing.grace)
            if self._in_main_thread and not ends_by_itself:  # in a server, another thread does other things
                _thread.interrupt_main()
            return

    def _renew(self) -> bool:
        renewed = self._holder.renewed()
        version = self._objects.put(self._path, renewed.content(), self._version)
        if version is None:
            stored = _found(self._objects, self._path)
            theirs = None if stored is None else Holder.parse(stored.data)
            if stored is None or theirs is None or theirs.token != renewed.token:
                return False
            renewed, version = theirs, stored.version  # written by a first attempt whose answer was lost
        self._holder, self._version = renewed, version
        return True

    def release(self) -> bool:
        """Remove the lock; return whether it was still this run's."""
        try:
            with storage_errors(self._url):
                if self._objects.remove(self._path, self._version):
                    return True
                return self._renew() and self._objects.remove(self._path, self._version)
        except OutputError as error:
            log.warning("the lock could not be removed, the next run takes it: %s", error)
            return True


def _take(objects: Objects, url: str, path: str, holder: Holder, times: Timing) -> str:
    """Write `holder` into the lock and return its version; only one of several processes can.

    Raises
    ------
    RefusedError
        If another one holds it.
    """
    version = objects.put(path, holder.content(), None)
    if version is not None:
        if objects.conditional and objects.put(path, holder.content(), None) is not None:
            log.warning(
                "%s: this server ignores conditions of writes (If-None-Match), so that two runs that start at once, or "
                "one that wakes up after a pause, may disturb each other; see docs/buckets.md",
                url,
            )
            version = objects.version(path) or version
        return version
    if (stored := _found(objects, path)) is None:  # released a moment ago
        raise RefusedError(_busy(url, None))
    theirs = Holder.parse(stored.data)
    if theirs is None:
        raise RefusedError(_strange(url, "its content is of something else"))
    if theirs.token == holder.token:  # created by a first attempt whose answer was lost
        return stored.version
    if not theirs.is_dead() and not _is_silent(objects, url, path, theirs, stored):
        raise RefusedError(_busy(url, theirs, stored.age))
    version = objects.put(path, holder.content(), stored.version)
    if version is None:
        raise RefusedError(_busy(url, None))
    # Writes of the earlier run that are on their way end before this one begins; and where the store compares no
    # versions, of two runs that took the lock the one stays that wrote last.
    time.sleep(Timing(theirs.silence).grace)
    if (now := _found(objects, path)) is None or now.version != version:
        raise RefusedError(_busy(url, None))
    return version


def _is_silent(objects: Objects, url: str, path: str, theirs: Holder, stored: Versioned) -> bool:
    """Return whether a holder has not renewed its lock for too long: by the store's clock, else by watching it."""
    if stored.age is not None:
        return stored.age >= theirs.silence
    log.warning(
        "%s: held by %s; this store does not tell for how long, so it is watched for %.0f s",
        url,
        theirs,
        theirs.silence,
    )
    until = time.monotonic() + theirs.silence
    while time.monotonic() < until:
        time.sleep(min(2.0, theirs.silence / 10))
        now = _found(objects, path)
        if now is None or now.version != stored.version:
            return False
    return True


def _found(objects: Objects, path: str) -> Versioned | None:
    try:
        return objects.read(path)
    except FileNotFoundError:
        return None


def free_lock(out: str) -> str:
    """Remove the lock that a killed run left in `out`; return whose it was, in words, empty if there was none.

    A run that lives after all then stops, with exit code 3. On a local disk the lock of a living process stays.

    Raises
    ------
    RefusedError
        If the operating system holds the lock for a process that lives.
    """
    out = storage.normalise(out)
    url = storage.join(out, NAME)
    fs, path = storage.filesystem(url)
    with storage_errors(url):
        if not storage.exists(url):
            return ""
        if storage.scheme(out) == "file":
            lock = FileLock(url, fallback_to_soft=False)
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise RefusedError(f"{_busy(url, _signed(Path(url)))}; its process lives") from error
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise
            theirs = _signed(Path(url))
            Path(url).unlink(missing_ok=True)
            lock.release()
        else:
            objects = objects_of(fs, storage.scheme(url))
            stored = objects.read(path)
            theirs = Holder.parse(stored.data)
            objects.remove(path, stored.version)
    time.sleep((timing() if theirs is None else Timing(theirs.silence)).grace)
    return "something else" if theirs is None else str(theirs)


def _busy(url: str, theirs: Holder | None, age: float | None = None) -> str:
    sentence = f"{url}: another run is writing here; wait for it, or choose another --out"
    if theirs is None:
        return sentence
    if age is None:
        return f"{sentence} ({theirs})"
    return (
        f"{sentence} ({theirs}, last sign of life {max(0, age):.0f} s ago; if it was killed, its lock is free after "
        f"{theirs.silence:.0f} s of silence, or now by `chorus unlock {url.removesuffix(f'/{NAME}')}`)"
    )


def _strange(url: str, why: str) -> str:
    return (
        f"{url}: is not a lock of this version of Chorus ({why}); make sure that no run writes there, remove it, then "
        f"run the same command again"
    )
