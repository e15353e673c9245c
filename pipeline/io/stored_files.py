"""Files that a record vouches for, with their sizes and checksums, and whether storage still has them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors

_READERS = 16
_BLOCK = 8 << 20
# Lists of label images, below an image's group: objects and people add to them after the record.
LABEL_LISTS = ("labels/zarr.json", "labels/.zattrs")


class Stored(NamedTuple):
    """A file as it was written.

    Attributes
    ----------
    size : in bytes
    crc32 : of its content, eight hexadecimal digits
    """

    size: int
    crc32: str


StoredFiles: TypeAlias = dict[str, Stored | None]
"""Files by path below a group; None for a shard that was left out, since it is background only."""


def stored(data: bytes) -> Stored:
    """Return size and checksum of the content of a file."""
    return Stored(len(data), f"{zlib.crc32(data):08x}")


def stored_file(url: str) -> Stored | None:
    """Return size and checksum of a file of any length; None if there is none."""
    fs, path = storage.filesystem(url)
    size = checksum = 0
    with storage_errors(url):
        try:
            with fs.open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    size, checksum = size + len(block), zlib.crc32(block, checksum)
        except FileNotFoundError:
            return None
    return Stored(size, f"{checksum:08x}")


def stored_below(url: str, prefix: str) -> StoredFiles:
    """Read the files below a folder, which lies at `prefix` of its group; return them as they are now."""
    paths = list(sizes_below(url))
    with ThreadPoolExecutor(_READERS) as pool:
        files = pool.map(lambda path: _read(storage.join(url, path)), paths)
        return {f"{prefix}/{path}": stored(data or b"") for path, data in zip(paths, files, strict=True)}


def all_files(parts: Iterable[StoredFiles | None]) -> StoredFiles | None:
    """Return the files of all parts of an image; None if one was recorded by an earlier version of Chorus."""
    whole: StoredFiles = {}
    for part in parts:
        if part is None:
            return None
        whole |= part
    return whole


def sizes_of(urls: Mapping[str, str]) -> dict[str, int]:
    """Return the sizes of those files that are there; in a bucket one request each.

    Raises
    ------
    OutputError : storage does not answer
    """
    with ThreadPoolExecutor(_READERS) as pool:
        sizes = zip(urls, pool.map(_size, urls.values()), strict=True)
        return {path: size for path, size in sizes if size is not None}


def _size(url: str) -> int | None:
    fs, path = storage.filesystem(url)
    with storage_errors(url):
        try:
            return int(fs.size(path))
        except FileNotFoundError:
            return None


def sizes_below(url: str) -> dict[str, int]:
    """Return the sizes of all files below a folder, by path; in a bucket one request for a thousand files.

    Raises
    ------
    OutputError : storage does not answer
    """
    with storage_errors(url):
        return {file.name: file.size for file in storage.files_below(url)}


def damaged_files(
    files: Mapping[str, Stored | None], urls: Mapping[str, str], sizes: Mapping[str, int], *, contents: bool
) -> list[str]:
    """Return the paths of files that are not as they were written, sorted.

    Parameters
    ----------
    files : as recorded
    urls : of each file
    sizes : of the files that are there, by the same paths
    contents : read all of them, and compare their checksums, too

    Raises
    ------
    OutputError : storage does not give one of them
    """
    wrong = {path for path, known in files.items() if sizes.get(path) != (known.size if known else None)}
    lists = {path for path in files if path in LABEL_LISTS and path in sizes and (path in wrong or contents)}
    to_read = [path for path, known in files.items() if known and contents and path not in wrong | lists]
    wrong -= lists
    with ThreadPoolExecutor(_READERS) as pool:
        for path, current in zip(to_read, pool.map(lambda path: _read(urls[path]), to_read), strict=True):
            if current is None or stored(current) != files[path]:
                wrong.add(path)
    wrong |= {path for path in lists if not _is_list(_read(urls[path]))}
    return sorted(wrong)


def _read(url: str) -> bytes | None:
    with storage_errors(url):
        try:
            return storage.read_bytes(url)
        except FileNotFoundError:
            return None


def _is_list(data: bytes | None) -> bool:
    try:
        return isinstance(json.loads(data or b""), dict)
    except ValueError:
        return False
