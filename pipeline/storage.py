"""The one place that opens a URL: Zarr stores for arrays, fsspec filesystems for small files.

A URL is a local path, ``file://``, ``memory://``, ``gs://``, ``s3://`` or (read-only) ``http(s)://``.
Credentials come from the environment of the filesystem's own library, never from arguments.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# gcsfs otherwise makes a gRPC storage-layout call before everything else: 47 s and more per operation against
# servers that do not answer it. Read when gcsfs is imported, so it is set here, before any filesystem is made.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

import fsspec
import zarr.storage
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import Store

from pipeline.errors import RefusedError

SCHEMES = ("file", "memory", "gs", "s3", "http", "https")


def scheme(url: str) -> str:
    """The URL's scheme, ``file`` for plain paths; raises RefusedError for one that Chorus does not read."""
    found = urlsplit(url).scheme if "://" in url else "file"
    if found not in SCHEMES:
        raise RefusedError(f"{url}: scheme {found!r} is not supported; use a path or one of {', '.join(SCHEMES)}")
    return found


def normalise(url: str) -> str:
    """Canonical form: absolute path for local files (``file://`` stripped), no trailing slash."""
    if scheme(url) == "file":
        return str(Path(url.removeprefix("file://")).absolute())
    return url.rstrip("/")


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def basename(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of `url` and the path in it. Listings are never cached: other processes write too."""
    if scheme(url) == "file":
        return LocalFileSystem(auto_mkdir=True), normalise(url)
    options: dict[str, Any] = {} if scheme(url) == "memory" else {"use_listings_cache": False}
    fs, path = fsspec.core.url_to_fs(url, **options)
    return fs, path


def store(url: str, *, read_only: bool) -> Store:
    """The Zarr store whose root is `url`."""
    if scheme(url) == "file":
        return zarr.storage.LocalStore(normalise(url), read_only=read_only)
    return zarr.storage.FsspecStore.from_url(url, read_only=read_only)


def read_bytes(url: str) -> bytes:
    fs, path = filesystem(url)
    data: bytes = fs.cat_file(path)
    return data


def write_bytes(url: str, data: bytes) -> None:
    """Write a small file whole: a reader sees the old content or the new one, never a part."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.part")
        try:
            part.write_bytes(data)
            part.replace(target)
        except OSError:
            part.unlink(missing_ok=True)
            raise
    else:
        fs.pipe_file(path, data)


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def explain(error: BaseException, url: str) -> str | None:
    """One sentence for what storage answered, or None when the error is not storage's."""
    text = str(error).lower()
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"{url}: no space left; free some or choose another --out, then run the same command again"
    if number == errno.EROFS:
        return f"{url}: the file system is read-only; choose another place"
    if isinstance(error, PermissionError) or number in (errno.EACCES, errno.EPERM):
        return f"{url}: permission denied; check the rights of the folder or the credentials in the environment"
    if "nosuchbucket" in text or "bucket does not exist" in text:
        return f"{url}: no such bucket; check its name and the project or account that you are signed in to"
    if isinstance(error, FileNotFoundError):
        return f"{url}: not found; check the path or URL"
    if isinstance(error, OSError):
        return f"{url}: storage failed ({error or type(error).__name__}); run the same command again to resume"
    return None
