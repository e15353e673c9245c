"""Writes and removals behind a fence, see `chorus.pipeline.io.fences`."""

from __future__ import annotations

from pathlib import Path

from chorus.pipeline.errors import OutputError, OvertakenError
from chorus.pipeline.io.conditional import Objects
from chorus.pipeline.io.fences import Fence

# A new version at each of so many attempts in a row: another program writes the same object all the time.
_ATTEMPTS = 10
_UNSTABLE = "{path}: another program changes it all the time; end it, then run the same command again"


def put(objects: Objects, path: str, data: bytes, fence: Fence) -> None:
    """Write an object of a store that compares versions.

    What is there is replaced if it was there before the fence was asked. So a process that is paused after that
    replaces nothing of a run that took over meanwhile; what it adds where that run has nothing, it removes again.

    Raises
    ------
    OvertakenError : another run took over; nothing was written, or it was removed again
    OutputError : another program changes the object all the time
    """
    expected = None  # most objects are written once
    for _ in range(_ATTEMPTS):
        seen = fence.check()
        version = objects.put(path, data, expected)
        if version is not None:
            if fence.late(seen):
                _look_again(objects, path, version, fence, created=expected is None)
            return
        expected = objects.version(path)
    raise OutputError(_UNSTABLE.format(path=path))


def put_file(objects: Objects, path: str, file: str, fence: Fence) -> None:
    """Write an object of any length from a local file, as `put` does; what was there before is removed first.

    Raises
    ------
    OvertakenError : another run took over; nothing was written, or it was removed again
    OutputError : another program changes the object all the time
    """
    for _ in range(_ATTEMPTS):
        remove(objects, path, None, fence)
        seen = fence.check()
        version = objects.create_from(path, file)
        if version is not None:
            if fence.late(seen):
                _look_again(objects, path, version, fence, created=True)
            return
    raise OutputError(_UNSTABLE.format(path=path))


def _look_again(objects: Objects, path: str, version: str, fence: Fence, *, created: bool) -> None:
    """Take back what was written after another run took over."""
    try:
        fence.check(now=True)
    except OvertakenError:
        if created:  # else it is older than the other run, which has removed or kept it
            objects.remove(path, version)
        raise


def remove(objects: Objects, path: str, version: str | None, fence: Fence) -> None:
    """Remove an object if it still has `version`, by which it was known before; None: if there is one.

    Raises
    ------
    OvertakenError : another run took over
    """
    if version is None and (version := objects.version(path)) is None:
        return
    fence.check()
    objects.remove(path, version)


def place(part: Path, target: Path, fence: Fence | None) -> None:
    """Rename a complete file `part` to `target`, or remove it if that fails.

    Raises
    ------
    OvertakenError : another run took over
    """
    try:
        if fence is not None:
            fence.check()
        part.replace(target)
    except FileNotFoundError:
        if fence is not None:
            fence.check()  # the run that took over has removed it
        raise
    finally:
        part.unlink(missing_ok=True)
