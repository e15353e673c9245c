"""Files of any length, written part by part, and the parts themselves while their order is not yet theirs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors

# Beyond this parts are kept on disk.
_IN_MEMORY = 64 << 20


@contextmanager
def whole_file(url: str) -> Iterator[IO[bytes]]:
    """Open a file for writing and seeking that appears at `url` only when all of it is written.

    Raises
    ------
    OutputError : storage does not take it
    """
    fs, path = storage.filesystem(url)
    with storage_errors(url):
        if isinstance(fs, LocalFileSystem):
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = storage.temporary(target)
            try:
                with part.open("wb+") as file:
                    yield file
                storage.put_file(part, url)
            finally:
                part.unlink(missing_ok=True)
            return
        with tempfile.NamedTemporaryFile(prefix="chorus-export-") as file:
            yield file
            file.flush()
            storage.put_file(Path(file.name), url)


def remove_file(url: str) -> None:
    """Remove the file at `url`, if there is one; raise OutputError if storage refuses."""
    with storage_errors(url):
        storage.remove_file(url)


class Parts:
    """Parts that come in any order and are given back in that of their places; many of them wait on disk.

    Parameters
    ----------
    count : places, 0 to `count` - 1
    """

    def __init__(self, count: int) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self._starts = np.zeros(count, np.int64)
        self._lengths = np.zeros(count, np.int64)

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def put(self, index: int, data: bytes) -> None:
        """Keep the part of a place; after all are kept they are given back. Raises OutputError where disk is full."""
        self._starts[index], self._lengths[index] = self._file.tell(), len(data)
        with storage_errors(tempfile.gettempdir()):
            self._file.write(data)

    def __iter__(self) -> Iterator[bytes]:
        for start, length in zip(self._starts.tolist(), self._lengths.tolist(), strict=True):
            self._file.seek(start)
            yield self._file.read(length)
