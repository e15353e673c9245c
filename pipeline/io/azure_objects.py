"""Blobs on Azure that change only if nobody else changed them; see `chorus.pipeline.io.conditional`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn
from azure.core import MatchConditions
from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError

from chorus.pipeline.io.conditional import LONGEST_READ, Versioned, age_of


class AzureObjects:
    """The blobs of a filesystem of adlfs, as `chorus.pipeline.io.conditional.Objects`; a version is an ETag."""

    conditional = True

    def __init__(self, fs: fsspec.AbstractFileSystem) -> None:
        self._fs = fs

    def read(self, path: str) -> Versioned:
        """Return a small blob."""
        headers: dict[str, str] = {}

        async def get(blob: Any) -> tuple[Any, bytes]:
            hook = {"raw_response_hook": lambda answer: headers.update(answer.http_response.headers)}
            stream = await blob.download_blob(offset=0, length=LONGEST_READ, **hook)
            return stream.properties, await stream.readall()

        about, data = self._call(path, get)
        dates = [value for name, value in headers.items() if name.lower() == "date"]
        return Versioned(data, str(about.etag), age_of(dates[0] if dates else None, about.last_modified))

    def version(self, path: str) -> str | None:
        """Return the ETag of a blob, None if there is none."""
        try:
            return str(self._call(path, lambda blob: blob.get_blob_properties()).etag)
        except FileNotFoundError:
            return None

    def put(self, path: str, data: bytes, expected: str | None) -> str | None:
        """Write a blob of the ETag `expected` (None: that is not there); return its new one, None if it has another."""
        condition = {"overwrite": False} if expected is None else {"overwrite": True, **self._unchanged(expected)}
        try:
            # Longer ones go up in blocks; the condition is that of the list of them, which comes last.
            return str(self._call(path, lambda blob: blob.upload_blob(data, **condition))["etag"])
        except FileExistsError:
            return None
        except FileNotFoundError:
            if expected is None:  # no such container
                raise
            return None

    def create_from(self, path: str, file: str) -> str | None:
        """Write a blob of any length from a local file, where nothing is there."""

        async def put(blob: Any) -> Any:
            with Path(file).open("rb") as content:
                return await blob.upload_blob(content, overwrite=False)

        try:
            return str(self._call(path, put)["etag"])
        except FileExistsError:
            return None

    def remove(self, path: str, expected: str) -> bool:
        """Remove a blob of the ETag `expected`; return whether there is none of it any more."""
        try:
            self._call(path, lambda blob: blob.delete_blob(**self._unchanged(expected)))
        except FileNotFoundError:
            return True
        except FileExistsError:
            return False
        return True

    @staticmethod
    def _unchanged(version: str) -> dict[str, Any]:
        return {"etag": version, "match_condition": MatchConditions.IfNotModified}

    def _call(self, path: str, request: Callable[[Any], Any]) -> Any:
        """Return what a request on a blob gives; FileExistsError where a condition is not met."""
        container, name, _ = self._fs.split_path(path)

        async def call() -> Any:
            async with self._fs.service_client.get_blob_client(container, name) as blob:
                return await request(blob)

        try:
            return fsspec.asyn.sync(self._fs.loop, call)
        except ResourceNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
        except (ResourceExistsError, ResourceModifiedError) as error:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from error
