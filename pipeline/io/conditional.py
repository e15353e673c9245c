"""Objects that are written and removed only if nobody else changed them: what locks and fences of outputs stand on.

A version is what the store itself calls one object's state: the ETag on S3 and Azure, the generation on Google's
storage. Other stores have none here: a put is exclusive where it creates, and else compares contents first, which two
writers at once may get past; a lock is therefore read again after a while.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

import fsspec
import fsspec.asyn
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from chorus.pipeline.io.object_stores import PART

LONGEST_READ = 1 << 16
"""Bytes of an object that are read; locks are far shorter."""
_AMAZON_LONGEST = 5 << 30


class Versioned(NamedTuple):
    """An object as it was read.

    Attributes
    ----------
    age : seconds since it was written, both times by the store's clock; None where the store does not tell
    """

    data: bytes
    version: str
    age: float | None


class Objects(Protocol):
    """The objects of a store, by their paths in its filesystem."""

    conditional: bool
    """Whether the store itself compares versions, in one step with the change."""

    def read(self, path: str) -> Versioned:
        """Return a small object; of one that is longer than `LONGEST_READ`, another content than its own.

        Raises FileNotFoundError if there is none.
        """

    def version(self, path: str) -> str | None:
        """Return the version of an object, None if there is none."""

    def put(self, path: str, data: bytes, expected: str | None) -> str | None:
        """Write an object whose version is `expected` (None: that is not there); return its new version.

        Returns None, and writes nothing, if its version is another one.
        """

    def create_from(self, path: str, file: str) -> str | None:
        """Write an object of any length from a local file, like `put` where nothing is there."""

    def remove(self, path: str, expected: str) -> bool:
        """Remove an object of the version `expected`; return whether there is none of that version any more."""


def objects_of(fs: fsspec.AbstractFileSystem, scheme: str) -> Objects:
    """Return the objects of a filesystem of that URL scheme."""
    if scheme == "s3":
        return _Amazon(fs)
    if scheme == "az":
        from chorus.pipeline.io.azure_objects import AzureObjects  # built on what is here

        return AzureObjects(fs)
    return _Google(fs) if scheme == "gs" else _Plain(fs)


class _Amazon:
    conditional = True

    def __init__(self, fs: fsspec.AbstractFileSystem) -> None:
        self._fs = fs

    def read(self, path: str) -> Versioned:
        async def get() -> tuple[dict[str, Any], bytes]:
            answer = await self._fs._call_s3("get_object", **self._where(path))
            async with answer["Body"] as body:
                return answer, await body.read(LONGEST_READ)

        answer, data = fsspec.asyn.sync(self._fs.loop, get)
        now = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return Versioned(data, answer["ETag"], age_of(now, answer["LastModified"]))

    def version(self, path: str) -> str | None:
        try:
            return str(self._fs.call_s3("head_object", **self._where(path))["ETag"])
        except FileNotFoundError:
            return None

    def put(self, path: str, data: bytes, expected: str | None) -> str | None:
        if len(data) >= (2 * PART if expected is None else _AMAZON_LONGEST):
            return _in_parts(self, path, lambda: self._fs.pipe_file(path, data, chunksize=PART, mode=_mode(expected)))
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}

        def put(**options: str) -> str:
            return str(self._fs.call_s3("put_object", **self._where(path), Body=data, **options)["ETag"])

        try:
            return put(**condition)
        except FileNotFoundError:
            if expected is None:  # no such bucket
                raise
            return None
        except OSError as error:
            if _refused_by_amazon(error):
                return None
            if error.errno == errno.ENOSYS:  # a server that knows no conditions and says so
                return put()
            raise

    def create_from(self, path: str, file: str) -> str | None:
        return _in_parts(self, path, lambda: self._fs.put_file(file, path, mode="create"))

    def remove(self, path: str, expected: str) -> bool:
        try:
            self._fs.call_s3("delete_object", **self._where(path), IfMatch=expected)
        except FileNotFoundError:
            return True
        except OSError as error:
            if _refused_by_amazon(error):
                return False
            if error.errno != errno.ENOSYS:
                raise
            if self.version(path) != expected:
                return False
            self._fs.rm_file(path)
        return True

    def _where(self, path: str) -> dict[str, str]:
        bucket, key, _ = self._fs.split_path(path)
        return {"Bucket": bucket, "Key": key}


def _refused_by_amazon(error: OSError) -> bool:
    """Return whether a condition was not met, or a write to the same object at the same time won."""
    answer = getattr(error.__cause__, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return isinstance(error, FileExistsError) or status in (409, 412)


class _Google:
    conditional = True

    def __init__(self, fs: fsspec.AbstractFileSystem) -> None:
        self._fs = fs

    def read(self, path: str) -> Versioned:
        headers, content = self._fs.call("GET", "b/{}/o/{}", *self._where(path))
        about = json.loads(content)
        # If it changes between the two, the version is the older one, and a put that expects it fails.
        data: bytes = self._fs.cat_file(path) if int(about["size"]) <= LONGEST_READ else b""
        dates = [value for name, value in dict(headers).items() if name.lower() == "date"]
        changed = about.get("updated")
        age = age_of(dates[0], datetime.fromisoformat(changed)) if dates and changed else None
        return Versioned(data, str(about["generation"]), age)

    def version(self, path: str) -> str | None:
        try:
            _, content = self._fs.call("GET", "b/{}/o/{}", *self._where(path))
        except FileNotFoundError:
            return None
        return str(json.loads(content)["generation"])

    def put(self, path: str, data: bytes, expected: str | None) -> str | None:
        if len(data) >= PART and expected is None:
            return _in_parts(self, path, lambda: self._fs.pipe_file(path, data, chunksize=PART, mode="create"))
        bucket, key = self._where(path)
        head = f"--==0==\nContent-Type: application/json; charset=UTF-8\n\n{json.dumps({'name': key})}\n--==0==\n"
        body = head.encode() + b"Content-Type: application/octet-stream\n\n" + data + b"\n--==0==--"
        try:
            answer = self._fs.call(
                "POST",
                f"{self._fs._location}/upload/storage/v1/b/{quote(bucket)}/o",
                uploadType="multipart",
                headers={"Content-Type": 'multipart/related; boundary="==0=="'},
                data=body,
                json_out=True,
                ifGenerationMatch=expected or "0",
            )
        except FileExistsError:
            return None
        return str(answer["generation"])

    def create_from(self, path: str, file: str) -> str | None:
        return _in_parts(self, path, lambda: self._fs.put_file(file, path, mode="create"))

    def remove(self, path: str, expected: str) -> bool:
        try:
            self._fs.call("DELETE", "b/{}/o/{}", *self._where(path), ifGenerationMatch=expected)
        except FileNotFoundError:
            return True
        except FileExistsError:
            return False
        return True

    def _where(self, path: str) -> tuple[str, str]:
        bucket, key, _ = self._fs.split_path(path)
        return bucket, key


class _Plain:
    conditional = False

    def __init__(self, fs: fsspec.AbstractFileSystem) -> None:
        self._fs = fs

    def read(self, path: str) -> Versioned:
        data: bytes = self._fs.cat_file(path, 0, LONGEST_READ)
        return Versioned(data, _digest(data), self._age(path))

    def version(self, path: str) -> str | None:
        try:
            return _digest(self._fs.cat_file(path, 0, LONGEST_READ))
        except FileNotFoundError:
            return None

    def put(self, path: str, data: bytes, expected: str | None) -> str | None:
        if expected is None:
            try:
                self._create(path, data)
            except FileExistsError:
                return None
        else:
            if self.version(path) != expected:
                return None
            self._replace(path, data)
        return _digest(data[:LONGEST_READ])

    def create_from(self, path: str, file: str) -> str | None:
        return self.put(path, Path(file).read_bytes(), None)

    def remove(self, path: str, expected: str) -> bool:
        current = self.version(path)
        if current == expected:
            with suppress(FileNotFoundError):
                self._fs.rm_file(path)
        return current in (None, expected)

    def _create(self, path: str, data: bytes) -> None:
        if not isinstance(self._fs, LocalFileSystem):
            self._fs.pipe_file(path, data, mode="create")
            return
        part = self._aside(path, data)
        try:
            # Where there are no hard links, exclusive creation: a reader may then meet it empty.
            try:
                os.link(part, path)
            except FileExistsError:
                raise
            except OSError:
                with Path(path).open("xb") as file:
                    file.write(data)
        finally:
            part.unlink(missing_ok=True)

    def _replace(self, path: str, data: bytes) -> None:
        if isinstance(self._fs, LocalFileSystem):
            self._aside(path, data).replace(path)
        else:
            self._fs.pipe_file(path, data)

    @staticmethod
    def _aside(path: str, data: bytes) -> Path:
        part = Path(path).with_name(f".{os.urandom(8).hex()}.part")
        part.write_bytes(data)
        return part

    def _age(self, path: str) -> float | None:
        if isinstance(self._fs, LocalFileSystem):
            now = self._aside(path, b"")  # its time is by the clock of the file system, like that of the file
            try:
                return now.stat().st_mtime - Path(path).stat().st_mtime
            finally:
                now.unlink(missing_ok=True)
        if isinstance(self._fs, MemoryFileSystem):
            modified: datetime = self._fs.modified(path)
            return (datetime.now(UTC) - modified).total_seconds()
        return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _mode(expected: str | None) -> str:
    return "create" if expected is None else "overwrite"


def _in_parts(objects: Objects, path: str, put: Callable[[], object]) -> str | None:
    """Put a long object as the library does it, in parts: its creation is conditional."""
    try:
        put()
    except OSError as error:
        if isinstance(error, FileExistsError) or _refused_by_amazon(error):
            return None
        raise
    return objects.version(path)


def age_of(now: str | None, changed: datetime) -> float | None:
    """Return the seconds between two times of a server."""
    if now is None:
        return None
    return float((parsedate_to_datetime(now) - changed).total_seconds())
