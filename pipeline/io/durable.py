"""Files on local disks that must be there after a power cut, in the right order.

A file that was written and renamed is in the memory of the operating system; a power cut may leave it empty, while a
record that was written after it is whole. So a process notes what it writes on local disks, and before it writes a sign
of completion (`chorus.pipeline.io.storage.write_record`) it waits until all of that is on the disk: files, and the
folders that name them. Nothing is waited for before. They are synced by several threads at once, since a file system
that keeps a journal takes them with one commit.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

# Files and folders that a process notes at most; a further one syncs them all.
_MOST = 4096
_THREADS = 16
# Answers of file systems that cannot sync a folder: some network drives, FUSE.
_NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)

_lock = threading.Lock()
# Values tell a note from a later one of the same path.
_files: dict[Path, int] = {}
_folders: dict[Path, int] = {}
_notes = 0
_passing: set[Path] = set()


@contextmanager
def passing(folder: str) -> Iterator[None]:
    """Take what is written below `folder` inside the context for passing: no record relies on it."""
    _passing.add(path := Path(folder))
    try:
        yield
    finally:
        _passing.discard(path)


def is_passing(path: Path) -> bool:
    """Return whether a file is below a folder whose content is passing."""
    return bool(_passing) and not _passing.isdisjoint(path.parents)


def note_file(path: Path) -> None:
    """Note a file that was written or renamed here, or one of other processes that records of this one rely on."""
    global _notes
    if is_passing(path):
        return
    with _lock:
        _notes += 1
        _files[path] = _folders[path.parent] = _notes
        full = len(_files) + len(_folders) > _MOST
    if full:
        sync_noted()


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, and note those that got an entry."""
    global _notes
    new = [folder, *folder.parents]
    made = [path.parent for path in new[: next(i for i, path in enumerate(new) if path.exists() or i == len(new) - 1)]]
    folder.mkdir(parents=True, exist_ok=True)
    with _lock:
        _notes += 1
        _folders.update(dict.fromkeys(made, _notes))


def sync_noted(*more: Path) -> None:
    """Wait until all that was noted so far is on the disk, and `more` files; what was removed since is left out.

    Several threads may do so at once: each returns when all that was noted before its call is on the disk.

    Raises
    ------
    OSError : the disk does not take it
    """
    with _lock:
        files, folders = dict(_files), dict(_folders)
    tasks = [*(partial(sync_file, path) for path in (*files, *more)), *(partial(sync_folder, p) for p in folders)]
    if tasks:
        with ThreadPoolExecutor(min(_THREADS, len(tasks))) as pool:
            for task in [pool.submit(task) for task in tasks]:
                task.result()
    with _lock:
        for noted, synced in ((_files, files), (_folders, folders)):
            for path, number in synced.items():
                if noted.get(path) == number:
                    del noted[path]


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk; do nothing if it is gone."""
    with suppress(FileNotFoundError, NotADirectoryError):
        _sync(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Wait until the entries of a folder are on the disk, where the file system can; do nothing if it is gone."""
    if sys.platform == "win32":  # opens no folders
        return
    with suppress(FileNotFoundError, NotADirectoryError):
        try:
            _sync(path, os.O_RDONLY)
        except OSError as error:
            if error.errno not in _NO_FOLDERS:
                raise


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
