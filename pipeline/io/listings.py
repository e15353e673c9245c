"""Files below a folder in pages: nothing is kept of those that were listed, however many there are.

``fsspec``'s ``find`` returns all names at once with all that the store says of each (1 to 3 kB), and that of gcsfs ends
in silence after ten million. Here a page is one answer of the store, mostly of a thousand names, with what is used of
each.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice, pairwise
from typing import Any, NamedTuple

import fsspec
import fsspec.asyn
from fsspec.implementations.local import LocalFileSystem

_PAGE = 1000
_AT_ONCE = 16
# Folders of a part at least: fewer are some pages.
_MANY = 2 * _PAGE


class Listed(NamedTuple):
    """A file in a listing.

    Attributes
    ----------
    name : path below the folder
    size : bytes
    version : as of `chorus.pipeline.io.conditional.Objects`; None where the store does not tell
    """

    name: str
    size: int
    version: str | None


class Span(NamedTuple):
    """Names below a folder between two others, which end in a slash as no file's does; empty at either end of all."""

    start: str = ""
    end: str = ""


ALL = Span()


def pages(fs: fsspec.AbstractFileSystem, path: str, span: Span = ALL) -> Iterator[list[Listed]]:
    """Yield the files below the folder `path`, page by page; none if it is not there, or a file.

    Parameters
    ----------
    path : in the filesystem
    span : of names; stores other than S3 and Google's list all
    """
    if isinstance(fs, LocalFileSystem):
        files = _walk(path, "")
        while page := list(islice(files, _PAGE)):
            yield page
    elif kind := _kind(fs):
        yield from {"s3": _amazon, "gs": _google, "az": _azure}[kind](fs, path, span)
    else:
        found = {file[len(path) :].strip("/"): entry for file, entry in fs.find(path, detail=True).items()}
        yield [Listed(name, int(entry["size"]), None) for name, entry in found.items() if name]


def visit(
    fs: fsspec.AbstractFileSystem, path: str, take: Callable[[list[Listed]], None], folders: Sequence[str] = ()
) -> None:
    """Call `take` with each page of the files below the folder `path`, in any order, and from several threads.

    Parameters
    ----------
    folders : names of folders in `path` over which the files are spread: where there are many, parts of a bucket are
        listed side by side
    """
    spans = _spans(folders) if _kind(fs) in ("s3", "gs") else [ALL]

    def list_span(span: Span) -> None:
        for page in pages(fs, path, span):
            take(page)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(list_span, spans):
            pass


def _kind(fs: fsspec.AbstractFileSystem) -> str | None:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return next((kind for kind in ("s3", "gs", "az") if kind in protocols), None)


def _spans(folders: Sequence[str]) -> list[Span]:
    """Return spans that have about the same number of `folders` each; in Unicode's order, as names in buckets are."""
    cuts = [f"{name}/" for name in sorted(folders)[:: max(_MANY, len(folders) // (2 * _AT_ONCE))][1:]]
    return [Span(start, end) for start, end in pairwise(["", *cuts, ""])]


def _walk(folder: str, prefix: str) -> Iterator[Listed]:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
            continue
        with suppress(FileNotFoundError):  # gone since
            yield Listed(prefix + entry.name, entry.stat().st_size, None)


def _amazon(fs: fsspec.AbstractFileSystem, path: str, span: Span) -> Iterator[list[Listed]]:
    bucket, prefix = _place(fs, path)
    asked: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": _PAGE}
    if span.start:
        asked["StartAfter"] = prefix + span.start
    while True:
        answer = fs.call_s3("list_objects_v2", **asked)
        found = [(one["Key"][len(prefix) :], one) for one in answer.get("Contents", [])]
        inside = [(name, one) for name, one in found if not span.end or name < span.end]
        yield [Listed(name, int(one["Size"]), one.get("ETag")) for name, one in inside if _is_file(name)]
        if not answer.get("IsTruncated") or len(inside) < len(found):
            return
        asked["ContinuationToken"] = answer["NextContinuationToken"]


def _google(fs: fsspec.AbstractFileSystem, path: str, span: Span) -> Iterator[list[Listed]]:
    bucket, prefix = _place(fs, path)
    asked: dict[str, Any] = {"prefix": prefix, "maxResults": _PAGE}
    asked["fields"] = "items(name,size,generation),nextPageToken"
    if span.start:
        asked["startOffset"] = prefix + span.start
    if span.end:
        asked["endOffset"] = prefix + span.end
    while True:
        answer = fs.call("GET", "b/{}/o", bucket, json_out=True, **asked)
        found = [(one["name"][len(prefix) :], one) for one in answer.get("items", [])]
        yield [Listed(name, int(one["size"]), str(one["generation"])) for name, one in found if _is_file(name)]
        if not answer.get("nextPageToken"):
            return
        asked["pageToken"] = answer["nextPageToken"]


def _azure(fs: fsspec.AbstractFileSystem, path: str, span: Span) -> Iterator[list[Listed]]:
    container, prefix = _place(fs, path)

    async def page(listing: AsyncIterator[Any]) -> list[Listed] | None:
        try:
            found = [blob async for blob in await anext(listing)]
        except StopAsyncIteration:
            return None
        named = [(blob.name[len(prefix) :], blob) for blob in found]
        # Elsewhere an ETag is in quotation marks.
        return [Listed(name, int(blob.size), f'"{blob.etag.strip(chr(34))}"') for name, blob in named if _is_file(name)]

    client = fs.service_client.get_container_client(container)
    listing = client.list_blobs(name_starts_with=prefix, results_per_page=_PAGE).by_page()
    while (some := fsspec.asyn.sync(fs.loop, page, listing)) is not None:
        yield some


def _place(fs: fsspec.AbstractFileSystem, path: str) -> tuple[str, str]:
    bucket, key, _ = fs.split_path(path)
    return bucket, f"{key.rstrip('/')}/" if key else ""


def _is_file(name: str) -> bool:
    """Return whether it is a file: some programs leave an empty object in the place of a folder."""
    return bool(name) and not name.endswith("/")
