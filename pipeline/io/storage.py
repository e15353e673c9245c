"""The one place that opens a URL: Zarr stores for arrays, fsspec filesystems for small files.

A URL is a local path, ``file://``, ``memory://``, ``gs://``, ``s3://``, ``az://`` or (read-only) ``http(s)://``.
Credentials come from the environment of the filesystem's own library, never from arguments.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from chorus.pipeline.errors import OutputError, RefusedError
from chorus.pipeline.io import durable, fenced_writes
from chorus.pipeline.io import object_stores as buckets
from chorus.pipeline.io.conditional import objects_of
from chorus.pipeline.io.fences import Fence, Pass, fence_of, missing, raise_fence

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
    if fence is not None and (objects := objects_of(fs, scheme(url))).conditional:
        fenced_writes.remove(objects, path, None, fence)
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


def words(error: BaseException) -> str:
    """Return an error's message in one line; the name of its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def explain(error: BaseException, url: str) -> str | None:
    """Explain a storage error in one sentence; None if it is not storage's, for example of damaged data."""
    if _is_damage(error):
        return None
    names, text = _type_names(error), str(error).lower()
    if "botocore.ClientError" in names:
        error = _as_os_error(error)
    number = getattr(error, "errno", None)
    status = _http_status(error, names)
    reason = f"the server answered {status}" if status else words(error)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"{url}: no space left; free some or choose another --out, then run the same command again"
    if number == errno.EROFS:
        return f"{url}: the file system is read-only; choose another place"
    if "requester pays" in text:
        return f"{url}: whoever reads this bucket pays; set FSSPEC_GS_REQUESTER_PAYS to the project that does"
    if names & _SIGN_IN_ERRORS or status == 401:
        return f"{url}: not signed in ({reason}); {_SIGN_IN.get(scheme(url), 'give a URL that needs no login')}"
    if status == 403 or isinstance(error, PermissionError) or text.startswith("forbidden"):  # as gcsfs words 403
        answer = f" ({reason})" if status else ""
        return f"{url}: permission denied{answer}; check the rights of the folder or the credentials in the environment"
    if "nosuchbucket" in text or "bucket does not exist" in text:
        return f"{url}: no such bucket; check its name and the project or account that you are signed in to"
    if status == 404 or isinstance(error, FileNotFoundError):
        return f"{url}: not found; check the path or URL"
    if names & _BROKEN_OFF:
        return (
            f"{url}: the connection breaks off in the middle ({words(error)}); check the network, then run the same "
            "command again to resume"
        )
    if names & _NETWORK_ERRORS or isinstance(error, ConnectionError | TimeoutError):
        return (
            f"{url}: the server cannot be reached ({words(error)}); check the address and the network, then run the "
            "same command again to resume"
        )
    if status in (408, 429) or (status or 0) >= 500:
        return f"{url}: the server is busy or failing ({reason}); run the same command again to resume"
    if isinstance(error, OSError) or names & _OTHER_ERRORS or text.startswith("bad request: "):
        return f"{url}: storage failed ({reason}); check the URL, then run the same command again to resume"
    return None


# Types of the libraries below fsspec, as package and name: so none of them is imported to look for its errors.
_NETWORK_ERRORS = {
    "aiohttp.ClientConnectionError",
    "azure.ServiceRequestError",
    "azure.ServiceResponseError",
    "botocore.ConnectionError",
    "botocore.HTTPClientError",
    "google.TransportError",
    "requests.ConnectionError",
}
_BROKEN_OFF = {
    "aiohttp.ClientPayloadError",
    "azure.IncompleteReadError",
    "botocore.IncompleteReadError",
    "botocore.ResponseStreamingError",
}
_SIGN_IN_ERRORS = {
    "azure.ClientAuthenticationError",
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
    "azure.AzureError",
    "botocore.BotoCoreError",
    "gcsfs.HttpError",
    "gcsfs.ChecksumError",
    "gcsfs.NonRetryableError",
    "google.GoogleAuthError",
    "google.GoogleAPIError",
}
_SIGN_IN = {
    "az": "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and sign in with `az login` "
    "(AZURE_STORAGE_ANON=true reads public containers without)",
    "gs": "sign in with `gcloud auth application-default login` or set GOOGLE_APPLICATION_CREDENTIALS "
    "(FSSPEC_GS_TOKEN=anon reads public buckets without)",
    "s3": "sign in with `aws sso login` or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (FSSPEC_S3_ANON=true reads "
    "public buckets without)",
}


def _type_names(error: BaseException) -> set[str]:
    """Return the types of an error as top-level package and name, for example ``aiohttp.ClientError``."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}


def _as_os_error(error: BaseException) -> BaseException:
    """Convert a ClientError of botocore to the OSError that s3fs makes of its code, such as AccessDenied."""
    from s3fs.errors import translate_boto_error  # takes a second to import, and is there when botocore is

    translated: BaseException = translate_boto_error(error)
    return translated


def _http_status(error: BaseException, names: set[str]) -> int | None:
    """Return the status that a web server or Google's storage answered with."""
    if "aiohttp.ClientResponseError" in names:
        return int(getattr(error, "status", 0)) or None
    if "azure.HttpResponseError" in names:
        return int(getattr(error, "status_code", 0) or 0) or None
    if "gcsfs.HttpError" in names:
        code = str(getattr(error, "code", ""))
        return int(code) if code.isdecimal() else None
    # s3fs makes OSErrors of what S3 answers, by their names; a status without one is in the error before.
    answer = getattr(error.__cause__, "response", None)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) if isinstance(answer, dict) else 0
    return status if status in (408, 429) or status >= 500 else None


def _is_damage(error: BaseException) -> bool:
    """Return whether an OSError is of a decoder: gzip, and bz2, which has no type of its own."""
    return isinstance(error, gzip.BadGzipFile) or (type(error) is OSError and error.args == ("Invalid data stream",))


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Convert storage errors to an OutputError of one sentence; other errors pass.

    Raises
    ------
    OutputError : storage does not take it
    """
    try:
        yield
    except Exception as error:
        sentence = explain(error, url)
        if sentence is None:
            raise
        raise OutputError(sentence) from error


def remove_folder(url: str) -> None:
    """Remove what is below `url`, file by file on buckets: fsspec's `rm` reads ``a[1]`` as a pattern.

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

    def remove(file: str, version: str | None) -> None:
        if fence is not None and objects.conditional:
            fenced_writes.remove(objects, file, version, fence)
            return
        if fence is not None:
            fence.check()
        with suppress(FileNotFoundError):  # as in `remove_file`
            fs.rm_file(file)

    with ThreadPoolExecutor(16) as pool:
        running = [
            pool.submit(remove, file, objects.listed(entry)) for file, entry in fs.find(path, detail=True).items()
        ]
        for task in running:
            task.result()


def raise_fences(passes: Iterable[Pass]) -> None:
    """Put fences before writes of this process that works for a run elsewhere, which gave it `passes`."""
    for given in missing(passes):
        raise_fence(fence_for(given))


def fence_for(given: Pass) -> Fence:
    """Return a fence that reads the lock through this module."""
    return Fence(given, read_bytes, 0.0 if scheme(given.root) == "file" else given.timing.lease)
