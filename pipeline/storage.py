"""The one place that opens a URL: Zarr stores for arrays, fsspec filesystems for small files.

A URL is a local path, ``file://``, ``memory://``, ``gs://``, ``s3://`` or (read-only) ``http(s)://``.
Credentials come from the environment of the filesystem's own library, never from arguments.
"""

from __future__ import annotations

import errno
import gzip
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


def is_web(url: str) -> bool:
    """Whether `url` is on a web server, where files are read by name: nothing is listed and nothing written."""
    return scheme(url) in ("http", "https")


def check_writable(url: str) -> None:
    """Raises RefusedError where nothing can ever be written; whether the rights are there, only writing tells."""
    if is_web(url):
        raise RefusedError(f"{url}: cannot be written over HTTP; choose a folder or a gs:// or s3:// URL")


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


def words(error: BaseException) -> str:
    """What an error says, in one line; the name of its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def explain(error: BaseException, url: str) -> str | None:
    """One sentence for what storage answered, or None when the error is not storage's, as of damaged data."""
    if _is_damage(error):
        return None
    names, text = _type_names(error), str(error).lower()
    if "botocore.ClientError" in names:
        error = _as_os_error(error)
    number = getattr(error, "errno", None)
    status = _http_status(error, names)
    said = f"the server answered {status}" if status else words(error)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"{url}: no space left; free some or choose another --out, then run the same command again"
    if number == errno.EROFS:
        return f"{url}: the file system is read-only; choose another place"
    if names & _SIGN_IN_ERRORS or status == 401:
        return f"{url}: not signed in ({said}); {_SIGN_IN.get(scheme(url), 'give a URL that needs no login')}"
    if status == 403 or isinstance(error, PermissionError) or text.startswith("forbidden"):  # as gcsfs words 403
        answer = f" ({said})" if status else ""
        return f"{url}: permission denied{answer}; check the rights of the folder or the credentials in the environment"
    if "nosuchbucket" in text or "bucket does not exist" in text:
        return f"{url}: no such bucket; check its name and the project or account that you are signed in to"
    if status == 404 or isinstance(error, FileNotFoundError):
        return f"{url}: not found; check the path or URL"
    if names & _NETWORK_ERRORS or isinstance(error, ConnectionError | TimeoutError):
        return (
            f"{url}: the server cannot be reached ({words(error)}); check the address and the network, then run the "
            "same command again to resume"
        )
    if status in (408, 429) or (status or 0) >= 500:
        return f"{url}: the server is busy or failing ({said}); run the same command again to resume"
    if isinstance(error, OSError) or names & _OTHER_ERRORS or text.startswith("bad request: "):
        return f"{url}: storage failed ({said}); check the URL, then run the same command again to resume"
    return None


# Types of the libraries below fsspec, as package and name: so none of them is imported to look for its errors.
_NETWORK_ERRORS = {
    "aiohttp.ClientConnectionError",
    "botocore.ConnectionError",
    "botocore.HTTPClientError",
    "google.TransportError",
    "requests.ConnectionError",
}
_SIGN_IN_ERRORS = {
    "botocore.NoCredentialsError",
    "botocore.PartialCredentialsError",
    "botocore.CredentialRetrievalError",
    "botocore.TokenRetrievalError",
    "botocore.SSOError",
    "botocore.ProfileNotFound",
    "google.DefaultCredentialsError",
    "google.RefreshError",
}
_OTHER_ERRORS = {
    "aiohttp.ClientError",
    "botocore.BotoCoreError",
    "gcsfs.HttpError",
    "gcsfs.ChecksumError",
    "gcsfs.NonRetryableError",
    "google.GoogleAuthError",
    "google.GoogleAPIError",
}
_SIGN_IN = {
    "gs": "sign in with `gcloud auth application-default login` or set GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "sign in with `aws sso login` or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (FSSPEC_S3_ANON=true reads "
    "public buckets without)",
}


def _type_names(error: BaseException) -> set[str]:
    """The types that an error is of, as top package and name: ``aiohttp.ClientError``."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}


def _as_os_error(error: BaseException) -> BaseException:
    """A ClientError of botocore as the OSError that s3fs makes of its code, such as AccessDenied."""
    from s3fs.errors import translate_boto_error  # takes a second to import, and is there when botocore is

    translated: BaseException = translate_boto_error(error)
    return translated


def _http_status(error: BaseException, names: set[str]) -> int | None:
    """The status that a web server or Google's storage answered with."""
    if "aiohttp.ClientResponseError" in names:
        return int(getattr(error, "status", 0)) or None
    if "gcsfs.HttpError" in names:
        code = str(getattr(error, "code", ""))
        return int(code) if code.isdecimal() else None
    return None


def _is_damage(error: BaseException) -> bool:
    """Whether an OSError is of a decoder: gzip, and bz2, which has no type of its own."""
    return isinstance(error, gzip.BadGzipFile) or (type(error) is OSError and error.args == ("Invalid data stream",))
