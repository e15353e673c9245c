"""Fences: a process writes to an output only while its run holds the lock there.

A run that was paused (a suspended laptop, a stopped virtual machine, a partition of the network) may wake up after
another run has taken its output over. Every process of a run therefore registers a fence for the output, and every
write below it (`chorus.pipeline.io.storage`) asks the fence first. The fence reads the lock and compares its token.

On a local disk a file is written beside its place, the fence is asked, and only then the file is renamed; a new run
removes what lies beside before it clears anything. So a process that is paused between question and renaming finds
its file gone.

In a bucket each write is conditional on the version that the writer expects there, mostly on none, so that it fails
where the new run has written. An answer of the lock is used for the time of a lease. A run that takes a lock over waits
for longer than that (`Timing.grace`) before it changes anything, so that writes in flight come to their end; a writer
that took longer looks again afterwards, and takes back what it created.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from chorus.pipeline.errors import OvertakenError, RefusedError

SILENCE_VARIABLE = "CHORUS_LOCK_SECONDS"
_SILENCE = 90.0
_LONGEST = 1 << 16


class Timing(NamedTuple):
    """Periods of a lock, in seconds; all follow from `silence`.

    Attributes
    ----------
    silence : a holder that has not renewed its lock for so long counts as dead
    """

    silence: float

    @property
    def heartbeat(self) -> float:
        """Period at which a holder renews its lock."""
        return self.silence / 6

    @property
    def lease(self) -> float:
        """How long a process relies on having seen its run hold the lock."""
        return self.silence / 45

    @property
    def grace(self) -> float:
        """How long a run that took a lock over waits for writes of the earlier holder."""
        return self.silence / 18


def timing() -> Timing:
    """Return the periods of locks: of 90 s of silence, or of what ``CHORUS_LOCK_SECONDS`` says.

    Raises
    ------
    RefusedError : that is not a number of seconds from 1 to 86400
    """
    text = os.environ.get(SILENCE_VARIABLE, "")
    try:
        seconds = float(text) if text else _SILENCE
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        raise RefusedError(f"{SILENCE_VARIABLE}={text[:40]!r}: give seconds from 1 to 86400, or leave it out (90)")
    return Timing(seconds)


def clock() -> float:
    """Return seconds of a clock that never goes back and runs on while the machine sleeps."""
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):  # Linux; macOS, where `time.monotonic` stands still in sleep
        if hasattr(time, name):
            return time.clock_gettime(getattr(time, name))
    return time.monotonic()


def token_of(content: bytes) -> str | None:
    """Return the token in the content of a lock; None if it has none."""
    try:
        document = json.loads(content[:_LONGEST])
    except (ValueError, RecursionError):
        return None
    token = document.get("token") if isinstance(document, dict) else None
    return token if isinstance(token, str) else None


@dataclass(frozen=True)
class Pass:
    """What a process needs in order to write: where, which lock, and the token of its run.

    Attributes
    ----------
    root : URL below which writes are fenced
    lock : URL of the lock
    token : of the run
    timing : of the lock
    """

    root: str
    lock: str
    token: str
    timing: Timing


class Fence:
    """Asks before writes whether the run still holds its lock; once it does not, never again.

    Parameters
    ----------
    given : the pass of the run
    read : reads a file at a URL
    lease : seconds for which an answer is used again; 0 on a local disk, where asking is cheap
    """

    def __init__(self, given: Pass, read: Callable[[str], bytes], lease: float) -> None:
        self.given = given
        self._read, self._lease = read, lease
        self._seen = -float("inf")
        self.overtaken = self._removed = self._settled = False

    def check(self, *, now: bool = False) -> float:
        """Return when (see `clock`) the lock was last seen to be this run's; with `now` ask again in any case.

        Raises
        ------
        OvertakenError : another run has the lock, or had it
        OSError : the lock cannot be read
        """
        asked = clock()
        if self.overtaken:
            raise OvertakenError((_gone if self._removed else overtaken)(self.given.lock))
        if not now and asked - self._seen < self._lease:
            return self._seen
        try:
            holder = token_of(self._read(self.given.lock))
        except FileNotFoundError as error:
            self.overtaken = self._removed = True
            raise OvertakenError(_gone(self.given.lock)) from error
        if holder != self.given.token:
            self.overtaken = True
            raise OvertakenError(overtaken(self.given.lock))
        self._seen = asked
        return asked

    def settle(self) -> None:
        """If another run has the lock, wait once until late writers of this run have looked again.

        Raises
        ------
        OSError : the lock cannot be read
        """
        if self._settled:
            return
        try:
            self.check(now=True)
        except OvertakenError:
            self._settled = True
            time.sleep(self.given.timing.grace)

    def late(self, seen: float) -> bool:
        """Return whether a write whose `check` returned `seen` may have ended after another run began to write."""
        return clock() - seen >= self.given.timing.grace


def overtaken(lock: str) -> str:
    """Return the sentence for a run whose lock another one took."""
    return (
        f"{lock}: another run took over, as this one had not been heard of; this one stopped and wrote nothing since. "
        f"Look which of the two is wanted, then run its command again"
    )


def _gone(lock: str) -> str:
    return (
        f"{lock}: is gone, as the output was removed or another run took over; this one stopped and wrote nothing "
        f"since. Run the same command again to have what is missing"
    )


_FENCES: dict[str, Fence] = {}
_LOCK = threading.Lock()


def raise_fence(fence: Fence, root: str | None = None) -> None:
    """Put `fence` before all writes of this process below its root, or below `root`."""
    with _LOCK:
        _FENCES[root or fence.given.root] = fence


def cover(root: str, source: str) -> None:
    """Put the fence of writes to `source`, if there is one, before writes below `root`, too: results in a source."""
    if (fence := fence_of(source)) is not None:
        raise_fence(fence, root.removeprefix("file://").rstrip("/"))


def lower_fence(fence: Fence) -> None:
    """Remove a fence; one of the same root that was raised since stays."""
    with _LOCK:
        for root in [root for root, known in _FENCES.items() if known is fence]:
            del _FENCES[root]


def raised() -> tuple[Fence, ...]:
    """Return all fences of this process."""
    with _LOCK:
        return tuple(dict.fromkeys(_FENCES.values()))


def fence_of(url: str) -> Fence | None:
    """Return the fence before writes to `url`, the innermost if there are several; None if there is none."""
    if not _FENCES:
        return None
    with _LOCK:
        roots = [root for root in _FENCES if url == root or url.startswith(f"{root}/")]
        return _FENCES[max(roots, key=len)] if roots else None


def passes() -> tuple[Pass, ...]:
    """Return the passes of this process, for processes that work for it."""
    with _LOCK:
        return tuple({fence.given: None for fence in _FENCES.values()})


def missing(given: Iterable[Pass]) -> list[Pass]:
    """Return those passes that this process has no fence of yet."""
    with _LOCK:
        known = {fence.given for fence in _FENCES.values()}
    return [one for one in given if one not in known]
