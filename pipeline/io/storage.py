"""The one place that opens a URL: Zarr stores for arrays, fsspec filesystems for small files.

A URL is a local path, ``file://``, ``memory://``, ``gs://``, ``s3://``, ``az://`` or (read-only) ``http(s)://``.
Credentials come from the environment of the filesystem's own library, never from arguments.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import durable, fenced_writes
from chorus.pipeline.io import object_stores as buckets
from chorus.pipeline.io.conditional import Objects, objects_of
from chorus.pipeline.io.fences import Fence, Pass, fence_of, missing, raise_fence
from chorus.pipeline.io.listings import Listed, pages

# Small files are read without Zarr, which takes a second to import.
if TYPE_CHECKING:
    from zarr.abc.store import Store

SCHEMES = ("file", "memory", "gs", "s3", "az", "http", "https")
# Of presigned URLs of Amazon, Google and Azure.
_SIGNATURE = re.compile(r"(^|&)(x-(amz|goog)-[a-z-]+|signature|sig|token|access_token|awsaccesskeyid)=", re.IGNORECASE)


def scheme(url: str) -> str:
    """Return the URL's scheme, ``file`` for plain paths.

    Raises RefusedError for one that Chorus does not read, and for a URL with a password or a signature in it, which
    would be written down in results and logs.
    """
    if "://" not in url:
        return "file"
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
        raise RefusedError(
            f"{shown}: scheme {parts.scheme!r} is not supported; use a path or one of {', '.join(SCHEMES)}"
        )
    if parts.scheme != "file" and ("@" in parts.netloc or _SIGNATURE.search(parts.query)):
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
        raise RefusedError(f"{shown}: the URL holds credentials; leave them out and give them in the environment")
    return parts.scheme


def is_web(url: str) -> bool:
    """Return whether `url` is on a web server, where files are read by name: nothing is listed and nothing written."""
    return scheme(url) in ("http", "https")


def check_writable(url: str) -> None:
    """Raise RefusedError if nothing can ever be written; missing permissions show only on writing."""
    if is_web(url):
        raise RefusedError(f"{url}: cannot be written over HTTP; choose a folder or a gs://, s3:// or az:// URL")


def normalise(url: str) -> str:
    """Return the canonical form: absolute path for local files (``file://`` stripped), no trailing slash."""
    if scheme(url) == "file":
        return str(Path(url.removeprefix("file://")).absolute())
    return url.rstrip("/")


def join(url: str, *parts: str) -> str:
    """Join parts to a URL with ``/``; empty parts are skipped."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def basename(url: str) -> str:
    """Return the last part of a URL."""
    return url.rstrip("/").rsplit("/", 1)[-1]


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem of `url` and the path in it; listings are not cached, as other processes write too."""
    kind = scheme(url)
    if kind == "file":
        return LocalFileSystem(auto_mkdir=True), normalise(url)
    if kind == "memory":
        fs, path = fsspec.core.url_to_fs(url)
        return fs, path
    fs = buckets.bucket(kind)
    return fs, fs._strip_protocol(url)


def store(url: str, *, read_only: bool) -> Store:
    """Return the Zarr store whose root is `url`."""
    import zarr.storage

    from chorus.pipeline.io.local_files import LocalFiles

    kind = scheme(url)
    if kind == "file":
        return LocalFiles(normalise(url), read_only=read_only)
    if kind == "memory":
        return zarr.storage.FsspecStore.from_url(url, read_only=read_only)
    fs = buckets.bucket(kind, asynchronous=True)
    return zarr.storage.FsspecStore(fs, read_only=read_only, path=fs._strip_protocol(url))


def read_bytes(url: str) -> bytes:
    """Read the content of a file; raise RefusedError for a pipe or a device, which may never end."""
    fs, path = filesystem(url)
    check_regular(fs, path)
    data: bytes = fs.cat_file(path)
    return data


def check_regular(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Raise RefusedError where a local path is a pipe, a socket or a device: opening one may wait for ever."""
    if isinstance(fs, LocalFileSystem):
        with suppress(OSError, ValueError):  # whoever opens it reports what is missing
            mode = os.stat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise RefusedError(f"{path}: is a pipe, a socket or a device, not a file; leave it out")


def write_bytes(url: str, data: bytes, *, lasting: bool = True) -> None:
    """Write a small file whole: a reader sees the old content or the new one, never a part.

    Parameters
    ----------
    lasting : whether later records of this process rely on it, see `write_record`

    Raises
    ------
    OvertakenError : `url` is in an output that another run took over
    """
    fs, path = filesystem(url)
    fence = _fence_of(fs, path, url)
    if isinstance(fs, LocalFileSystem):
        _write_local(Path(path), data, fence, record=False)
        if lasting:
            durable.note_file(Path(path))
    elif fence is not None and (objects := objects_of(fs, scheme(url))).conditional:
        fenced_writes.put(objects, path, data, fence)
    else:
        if fence is not None:
            fence.check()
        options = {"chunksize": buckets.PART} if scheme(url) in buckets.SCHEMES else {}
        fs.pipe_file(path, data, **options)


def write_record(url: str, data: bytes) -> None:
    """Write a sign of completion, as `write_bytes` does, when all that this process wrote before would be found again.

    On a local disk that and the file itself are waited for, so that a power cut leaves no record of lost results; what
    a bucket has accepted is safe.

    Raises
    ------
    OSError : the disk does not take what was written before
    OvertakenError : `url` is in an output that another run took over
    """
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem) or durable.is_passing(Path(path)):
        write_bytes(url, data)
        return
    _write_local(Path(path), data, _fence_of(fs, path, url), record=True)
    durable.note_file(Path(path))
    durable.sync_noted()


def _write_local(target: Path, data: bytes, fence: Fence | None, *, record: bool) -> None:
    if fence is not None:
        fence.check()  # before a folder is made again
    durable.make_folder(target.parent)
    part = temporary(target)
    try:
        part.write_bytes(data)
        if record:
            durable.sync_noted(part)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    fenced_writes.place(part, target, fence)


def rely_on(urls: Iterable[str]) -> None:
    """Note files of other processes that later records of this one rely on, see `write_record`."""
    for fs, path in map(filesystem, urls):
        if isinstance(fs, LocalFileSystem):
            durable.note_file(Path(path))


def _fence_of(fs: fsspec.AbstractFileSystem, path: str, url: str) -> Fence | None:
    return fence_of(path if isinstance(fs, LocalFileSystem) else url.rstrip("/"))


def put_file(part: Path, url: str) -> None:
    """Move a complete local file to `url`; one beside a local `url` is renamed. It may be of any length.

    Raises
    ------
    OvertakenError : `url` is in an output that another run took over
    """
    fs, path = filesystem(url)
    fence = _fence_of(fs, path, url)
    if isinstance(fs, LocalFileSystem):
        durable.sync_file(part)  # what it replaces may be good
        fenced_writes.place(part, Path(path), fence)
        durable.note_file(Path(path))
        return
    if fence is not None:
        fence.check()
        if (objects := objects_of(fs, scheme(url))).conditional:
            fenced_writes.put_file(objects, path, str(part), fence)
            return
    fs.put_file(str(part), path)


def remove_file(url: str) -> None:
    """Remove a file, if there is one.

    Raises
    ------
    OvertakenError : `url` is in an output that another run took over
    """
    fs, path = filesystem(url)
    fence = _fence_of(fs, path, url)
    _remove(objects_of(fs, scheme(url)), fs, path, None, fence)


def _remove(
    objects: Objects, fs: fsspec.AbstractFileSystem, path: str, version: str | None, fence: Fence | None
) -> None:
    """Remove a file, on the condition that it has this version where the store has conditions; None is any."""
    if fence is not None and objects.conditional:
        fenced_writes.remove(objects, path, version, fence)
        return
    if fence is not None:
        fence.check()
    with suppress(FileNotFoundError):  # also where the answer to a first attempt was lost
        fs.rm_file(path)


def temporary(target: Path) -> Path:
    """Return a new name beside a file that is to be written; short, since the file's own may be as long as can be."""
    return target.with_name(f".{os.urandom(8).hex()}.part")


def remove_partial_files(url: str) -> None:
    """Remove what killed processes were writing below a local `url`; objects in a bucket appear when they are whole."""
    if scheme(url) == "file":
        for part in Path(filesystem(url)[1]).rglob(f".{'?' * 16}.part"):
            part.unlink(missing_ok=True)


def exists(url: str) -> bool:
    """Return whether there is a file at `url` (or, but in a bucket, a folder)."""
    fs, path = filesystem(url)
    return buckets.is_object(fs, path) if scheme(url) in buckets.SCHEMES else bool(fs.exists(path))


def entries(url: str) -> list[str]:
    """List the names of files and folders in the folder at `url`, sorted; none if there is no such folder."""
    fs, path = filesystem(url)
    try:
        return sorted(basename(name) for name in fs.ls(path, detail=False))
    except FileNotFoundError:
        return []


def files_below(url: str) -> Iterator[Listed]:
    """Yield the files below the folder at `url`, in any order; none if there is no such folder."""
    for page in pages(*filesystem(url)):
        yield from page


def remove_folder(url: str) -> None:
    """Remove what is below `url`, or the file there, one by one on buckets: fsspec's `rm` reads ``a[1]`` as a pattern.

    Raises
    ------
    OvertakenError : `url` is in an output that another run took over
    """
    fs, path = filesystem(url)
    fence = _fence_of(fs, path, url)
    if fence is not None:
        fence.check()
    if isinstance(fs, LocalFileSystem):
        if fs.exists(path):
            fs.rm(path, recursive=True)
        return
    objects = objects_of(fs, scheme(url))
    found = False
    with ThreadPoolExecutor(16) as pool:
        for page in pages(fs, path):
            found = found or bool(page)
            running = [pool.submit(_remove, objects, fs, join(path, one.name), one.version, fence) for one in page]
            for task in running:
                task.result()
    if not found and exists(url):
        _remove(objects, fs, path, objects.version(path), fence)


def raise_fences(passes: Iterable[Pass]) -> None:
    """Put fences before writes of this process that works for a run elsewhere, which gave it `passes`."""
    for given in missing(passes):
        raise_fence(fence_for(given))


def fence_for(given: Pass) -> Fence:
    """Return a fence that reads the lock through this module."""
    return Fence(given, read_bytes, 0.0 if scheme(given.root) == "file" else given.timing.lease)
