"""Filesystems of buckets and web servers: their settings in the environment, and how requests are retried.

One filesystem of a kind serves all threads of a process, so that it signs in once and its connections are used
again; another environment, or configuration of fsspec, gets another one. Nothing of a listing is ever kept: other
processes write too.

A request that fails for now (the server is busy or throttles, does not answer, or a connection drops, in the middle
of a body too) is made again after a wait that grows, at random so that many workers do not come back at once.
Objects are put whole and under their own name, so that making a request again is harmless: Google's storage and S3
show an object when all of it has arrived, and not before.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import random
import weakref
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, TypeVar

import fsspec
import fsspec.asyn
from fsspec.config import set_conf_env

from chorus.pipeline.core.retries import RETRIES
from chorus.pipeline.errors import RefusedError

log = logging.getLogger("chorus")
T = TypeVar("T")

SCHEMES = ("gs", "s3", "az")
WEB = ("http", "https")
PART = 50 << 20
"""Bytes per part of an upload; longer files go in several and become visible when all have arrived."""
_CONNECT_SECONDS, _SILENCE_SECONDS, _BODY_SECONDS = 10, 60, 900
_CONNECTIONS = 64
# Beginnings of the names of variables by which the libraries are told where and as whom to work.
_TOLD_BY = (
    "AWS_",
    "AZURE_",
    "CLOUDSDK_",
    "FSSPEC_",
    "GCE_",
    "GCSFS_",
    "GOOGLE_",
    "NO_GCE_CHECK",
    "STORAGE_EMULATOR_HOST",
)
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def bucket(scheme: str, *, asynchronous: bool = False) -> fsspec.AbstractFileSystem:
    """Return the filesystem of a scheme of `SCHEMES` or `WEB`; `asynchronous` for Zarr's own event loop.

    A failed request is repeated, see above. Raises what the library raises for credentials that it cannot read.
    """
    environment = frozenset((key, value) for key, value in os.environ.items() if key.startswith(_TOLD_BY))
    told = hash((environment, repr(fsspec.config.conf.get(scheme))))
    return _bucket(scheme, asynchronous, os.getpid(), told)


def is_object(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Return whether a bucket has an object of that name: one request, while ``fs.exists`` looks for a folder too."""
    exists: bool = fsspec.asyn.sync(fs.loop, fs.is_object, path)
    return exists


@cache
def _bucket(scheme: str, asynchronous: bool, process: int, told: int) -> fsspec.AbstractFileSystem:
    kind = {"gs": _google, "s3": _amazon, "az": _azure}.get(scheme, _web)()
    fs = kind(
        asynchronous=asynchronous, use_listings_cache=False, skip_instance_cache=True, **_options(scheme, os.environ)
    )
    atexit.register(_close, fs)
    return fs


def _options(scheme: str, environment: Any) -> dict[str, Any]:
    """Read options from ``FSSPEC_GS_...``, ``FSSPEC_S3_...`` and ``FSSPEC_AZ_...``, such as ``FSSPEC_S3_ANON=true``."""
    options: dict[str, dict[str, Any]] = {}
    set_conf_env(options, environment)
    return {key: _truth(value) for key, value in options.get(scheme, {}).items()}


def _truth(value: Any) -> Any:
    """Parse booleans: for fsspec every text is true, even ``false``."""
    word = value.strip().lower() if isinstance(value, str) else None
    return True if word in _TRUE else False if word in _FALSE else value


def _not_closed_here(*_: Any) -> None:
    """Replace the libraries' own closing at exit, which runs in an event loop other than Zarr's, with tracebacks."""


def _close(fs: fsspec.AbstractFileSystem) -> None:
    """Close its connections in the event loop in which they were opened."""
    session = getattr(fs, "_session", None) or getattr(fs, "_s3", None) or getattr(fs, "service_client", None)
    if session is None or os.getpid() != fs._pid:
        return

    async def close() -> None:
        await session.close()

    if fs.asynchronous:
        import zarr.core.sync

        zarr.core.sync.sync(close(), timeout=5)
    else:
        fsspec.asyn.sync(fs.loop, close, timeout=5)


async def again(request: Callable[[], Awaitable[T]], passing: Callable[[Exception], bool], name: str) -> T:
    """Return the result of `request`, repeating it (`RETRIES`) while it fails for a reason that is `passing`.

    With the waits between them ten attempts take about a minute, two at most. Waits are random up to a bound that
    doubles ("full jitter"). An error that retries did not cure is marked, so that a request around this one does not
    start over.

    References
    ----------
    M. Brooker, Exponential backoff and jitter, AWS Architecture Blog (2015)
    """
    for attempt in range(RETRIES.request_attempts):
        try:
            return await request()
        except Exception as error:
            if attempt == RETRIES.request_attempts - 1 or hasattr(error, "chorus_attempts") or not passing(error):
                error.chorus_attempts = attempt + 1  # type: ignore[attr-defined]
                raise
            wait = random.uniform(0, min(RETRIES.request_longest_wait, RETRIES.request_first_wait * 2**attempt))
            told = f"{name}: {' '.join(str(error).split()) or type(error).__name__}"
            log.log(
                logging.DEBUG if attempt < 4 else logging.WARNING,
                "%s; attempt %d of %d, the next in %.1f s",
                told[:300],
                attempt + 1,
                RETRIES.request_attempts,
                wait,
            )
            await asyncio.sleep(wait)
    raise AssertionError("unreachable")


@cache
def _google() -> type[fsspec.AbstractFileSystem]:
    import aiohttp

    # Not the one that `gcsfs` itself names: that makes a gRPC call for the layout of a bucket before everything else,
    # 47 s and more per operation against servers that do not answer it.
    from gcsfs.core import GCSFileSystem
    from gcsfs.retry import is_retriable

    once = GCSFileSystem._request.__wrapped__  # without gcsfs' own six attempts

    def passing(error: Exception) -> bool:
        return isinstance(error, TimeoutError) or bool(is_retriable(error))

    class Google(GCSFileSystem):  # type: ignore[misc]
        """`gcsfs` with this module's attempts and limits of time."""

        close_session = staticmethod(_not_closed_here)

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.requests_timeout = aiohttp.ClientTimeout(
                total=_BODY_SECONDS, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS
            )

        async def _request(self, method: str, path: str, *args: Any, **options: Any) -> Any:
            name = f"gs://{'/'.join(args)}" if args else path.partition("?")[0]
            return await again(lambda: once(self, method, path, *args, **options), passing, name)

        async def is_object(self, path: str) -> bool:
            try:
                await self._get_object(path)
            except FileNotFoundError:
                return False
            return True

    return Google


@cache
def _amazon() -> type[fsspec.AbstractFileSystem]:
    from aiohttp import ClientPayloadError
    from botocore.exceptions import HTTPClientError, IncompleteReadError
    from s3fs import S3FileSystem

    def busy(error: Exception) -> bool:
        """Recognise responses of servers other than Amazon's that botocore does not know."""
        answer = getattr(error.__cause__, "response", None) or {}
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode") in (408, 429)

    def broken(error: Exception) -> bool:
        """Recognise a broken body: botocore's retries end with the header."""
        return isinstance(error, HTTPClientError | IncompleteReadError | ClientPayloadError | TimeoutError)

    class Amazon(S3FileSystem):  # type: ignore[misc]
        """`s3fs` with botocore's retries for requests, and this module's for bodies and for what botocore misses."""

        retries = 1  # around those of botocore
        close_session = staticmethod(_not_closed_here)

        def __init__(self, **options: Any) -> None:
            told = os.environ.keys() & {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"}
            config = {
                "connect_timeout": _CONNECT_SECONDS,
                "read_timeout": _SILENCE_SECONDS,
                "max_pool_connections": _CONNECTIONS,
            } | ({} if told else {"retries": {"mode": "standard", "total_max_attempts": RETRIES.request_attempts}})
            super().__init__(**{"config_kwargs": config} | options)

        async def _call_s3(self, method: str, *arguments: Any, **options: Any) -> Any:
            name = f"s3://{options.get('Bucket', '')}/{options.get('Key', '')}"
            return await again(lambda: super(Amazon, self)._call_s3(method, *arguments, **options), busy, name)

        call_s3 = fsspec.asyn.sync_wrapper(_call_s3)  # for files that are written part by part

        async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
            options |= {"max_concurrency": 1}  # more would ask for the size first

            async def read() -> bytes:
                data: bytes = await super(Amazon, self)._cat_file(path, start=start, end=end, **options)
                return data

            return await again(read, broken, f"s3://{path}")

        async def is_object(self, path: str) -> bool:
            name, key, _ = self.split_path(path)
            try:
                await self._call_s3("head_object", Bucket=name, Key=key)
            except FileNotFoundError:
                return False
            return True

    return Amazon


@cache
def _azure() -> type[fsspec.AbstractFileSystem]:
    try:
        from adlfs import AzureBlobFileSystem
    except ImportError as error:
        raise RefusedError(
            "az:// URLs are read by adlfs, which is not installed; install it with `pip install "
            "'chorus-bioimage[azure]'`"
        ) from error
    from azure.core.exceptions import (
        ClientAuthenticationError,
        HttpResponseError,
        IncompleteReadError,
        ResourceNotFoundError,
        ServiceRequestError,
        ServiceResponseError,
    )

    def passing(error: Exception) -> bool:
        if isinstance(error, HttpResponseError) and error.status_code is not None:
            return error.status_code in (408, 429, 500, 502, 503, 504)
        broken = IncompleteReadError | ServiceRequestError | ServiceResponseError | TimeoutError
        return isinstance(error, broken)

    class Azure(AzureBlobFileSystem):  # type: ignore[misc]
        """`adlfs` with this module's attempts, after those of Azure's own client, and with the last bytes of a blob."""

        protocol = ("az", "abfs")

        def __init__(self, **options: Any) -> None:
            limits = {"connection_timeout": _CONNECT_SECONDS, "read_timeout": _SILENCE_SECONDS}
            try:
                super().__init__(**limits | options)
            except ValueError as error:  # nothing in the environment says which account
                raise ClientAuthenticationError(str(error)) from error
            for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
                if (watched := finalizer.peek()) is not None and watched[0] is self:
                    finalizer.detach()  # as `_not_closed_here`; adlfs has no name for it

        async def _info(self, path: str, refresh: bool = False, **options: Any) -> dict[str, Any]:
            async def look() -> dict[str, Any]:
                info: dict[str, Any] = await super(Azure, self)._info(path, refresh=refresh, **options)
                return info

            return await again(look, passing, f"az://{path}")

        async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
            if start is not None and start < 0:  # Azure has no ranges from the end
                size = (await self._info(path))["size"]
                start = max(0, size + start)

            async def read() -> bytes:
                data: bytes = await super(Azure, self)._cat_file(path, start=start, end=end, **options)
                return data

            return await again(read, passing, f"az://{path}")

        async def _pipe_file(self, path: str, value: bytes, **options: Any) -> Any:
            options.pop("chunksize", None)  # Azure's client cuts uploads itself, and shows a blob when all has arrived
            return await again(lambda: super(Azure, self)._pipe_file(path, value, **options), passing, f"az://{path}")

        pipe_file = fsspec.asyn.sync_wrapper(_pipe_file)

        async def is_object(self, path: str) -> bool:
            container, blob, _ = self.split_path(path)

            async def look() -> bool:
                async with self.service_client.get_blob_client(container, blob) as client:
                    try:
                        await client.get_blob_properties()
                    except ResourceNotFoundError:
                        return False
                return True

            return await again(look, passing, f"az://{path}")

    return Azure


@cache
def _web() -> type[fsspec.AbstractFileSystem]:
    from aiohttp import ClientConnectionError, ClientPayloadError, ClientResponseError, ClientTimeout
    from fsspec.implementations.http import HTTPFileSystem

    def passing(error: Exception) -> bool:
        if isinstance(error, ClientResponseError):
            return error.status in (408, 429, 500, 502, 503, 504)
        return isinstance(error, ClientConnectionError | ClientPayloadError | TimeoutError)

    class Web(HTTPFileSystem):  # type: ignore[misc]
        """fsspec's, with this module's attempts and limits of time; a server that fails is no file that is missing."""

        close_session = staticmethod(_not_closed_here)

        def __init__(self, **options: Any) -> None:
            limits = ClientTimeout(total=_BODY_SECONDS, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
            super().__init__(**{"client_kwargs": {"timeout": limits}} | options)

        async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
            async def read() -> bytes:
                data: bytes = await super(Web, self)._cat_file(url, start=start, end=end, **options)
                return data

            return await again(read, passing, url)

        async def _exists(self, path: str, strict: bool = False, **options: Any) -> bool:
            async def look() -> bool:
                return bool(await super(Web, self)._exists(path, strict=True, **options))

            try:
                return await again(look, passing, path)
            except (FileNotFoundError, ClientResponseError) as error:
                if strict or passing(error):
                    raise
                return False  # many servers say "forbidden" of what is not there

    return Web
