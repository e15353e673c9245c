"""A file or a folder of weights as it looks from outside: names, listings and strings, read and never run."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator, Sequence
from functools import cached_property

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence


class WeightFile:
    """Facts about the weights at `url`; each is read on first access.

    Attributes
    ----------
    url : of a file, or of the folder of a package

    Raises
    ------
    RefusedError
        By each property that must read, where there is nothing at `url` or it cannot be read.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def suffix(self) -> str:
        """Suffix of its name, in lower case with the dot; empty where it has none."""
        match = re.search(r"\.\w+$", storage.basename(self.url))
        return match[0].lower() if match else ""

    @cached_property
    def folder(self) -> tuple[str, ...]:
        """Names in the folder; none of a file."""
        try:
            return tuple(listing(self.url) or ())
        except OSError as error:
            raise RefusedError(f"weights {failure_sentence(error, self.url) or self.url}") from error

    @cached_property
    def data(self) -> bytes:
        """All bytes of the file, read once."""
        return read(self.url)

    @cached_property
    def archive(self) -> tuple[str, ...]:
        """Paths in it where it is a zip archive, as those of `torch.save` and `torch.jit.save` are; else none."""
        if self.folder or not zipfile.is_zipfile(io.BytesIO(self.data)):
            return ()
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            return tuple(archive.namelist())

    @cached_property
    def code(self) -> tuple[str, ...]:
        """The sources of TorchScript in it; none where it is no such file."""
        paths = [path for path in self.archive if re.match(r"[^/]+/code/.*\.py$", path)]
        return tuple(data.decode(errors="replace") for data in self._entries(paths))

    @cached_property
    def strings(self) -> frozenset[str]:
        """The strings in its pickles, such as the names in a state dict; they are read as a listing, not run."""
        if self.folder:
            return frozenset()
        if not self.archive:
            return frozenset(_strings(self.data))
        return frozenset(
            text
            for data in self._entries([path for path in self.archive if path.endswith("data.pkl")][:1])
            for text in _strings(data)
        )

    def _entries(self, paths: Sequence[str]) -> list[bytes]:
        if not paths:
            return []
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            return [archive.read(path) for path in paths]


def read(url: str) -> bytes:
    """Read the bytes at `url`; raise RefusedError if it is missing or cannot be read."""
    try:
        return storage.read_bytes(url)
    except OSError as error:
        raise RefusedError(f"weights {failure_sentence(error, url) or url}") from error


def listing(url: str) -> list[str] | None:
    """List the names in a folder; None for a file, and on the web, which has no listings; raise OSError if missing."""
    if storage.is_web(url):
        return None
    fs, path = storage.filesystem(url)
    if not fs.exists(path):
        raise FileNotFoundError(url)
    return [storage.basename(entry) for entry in fs.ls(path, detail=False)] if fs.isdir(path) else None


def stem(url: str) -> str:
    """Return the name of a file without its suffix."""
    return storage.basename(url).rsplit(".", 1)[0]


def _strings(data: bytes) -> Iterator[str]:
    """Yield the strings in the pickles that `data` begins with."""
    file = io.BytesIO(data)
    try:
        while file.tell() < len(data):
            yield from (argument for _, argument, _ in pickletools.genops(file) if isinstance(argument, str))
    except ValueError:
        return  # where the pickles end and, in files of old, the numbers begin
