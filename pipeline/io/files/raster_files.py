"""Find the raster files to convert, and name their results."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fsspec import AbstractFileSystem

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.formats.registry import kind_of, names, stem
from chorus.pipeline.io.inside import fault, fitting, readable, shown
from chorus.pipeline.io.sources.discovery import expand, identity
from chorus.pipeline.io.storage_failures import failure_sentence


@dataclass(frozen=True, slots=True)
class RasterFile:
    """A file to convert.

    Attributes
    ----------
    url : of the file
    name : path of the result below the output, unique within a run
    stamp : size and time of change (or what a bucket has instead): differs when the content does
    failure : why it cannot be read, known before
    """

    url: str
    name: str
    stamp: str
    failure: str = ""


def find_files(sources: Sequence[str], *, labels: bool = False) -> list[RasterFile]:
    """Return the raster files that paths, folders, globs and ``.txt`` lists stand for, in order, each once.

    Folders are searched to their leaves, also linked ones, but hidden files and folders and OME-Zarrs are left out.

    Parameters
    ----------
    labels : whether files that hold nothing but labels are taken, too (Cellpose's ``_seg.npy``)

    Raises
    ------
    RefusedError : a source is missing, is a file of another kind, or holds no raster file
    """
    by_url: dict[str, tuple[str, str]] = {}
    for url in expand(sources):
        before = len(by_url)
        for relative, file, stamp in _files(url, labels=labels):
            by_url.setdefault(file, (relative if fault(relative) else fitting(relative, file), stamp))
            before = -1
        if before >= 0:
            raise RefusedError(
                f"{url}: holds no file of {names()}; check the path, and name files of HDF5, NumPy and DICOM, "
                "as 'folder/*.h5' does"
            )
    seen = Counter(relative.casefold() for relative, _ in by_url.values())
    files = []
    for url, (relative, stamp) in by_url.items():
        if reason := fault(relative):
            digest = hashlib.sha256(url.encode(errors="surrogateescape")).hexdigest()[:12]
            message = f"{readable(url)}: its name {shown(readable(relative))} {reason}; rename it"
            files.append(RasterFile(readable(url), f"refused-{digest}.ome.zarr", stamp, message))
            continue
        tag = f"-{hashlib.sha256(url.encode()).hexdigest()[:6]}" if seen[relative.casefold()] > 1 else ""
        files.append(RasterFile(url, f"{relative}{tag}.ome.zarr", stamp))
    return files


def _files(url: str, *, labels: bool) -> Iterator[tuple[str, str, str]]:
    """(path below `url` without suffix, URL, stamp) of every raster file at or below `url`, sorted."""
    fs, root = storage.filesystem(url)
    try:
        info = fs.info(root)
        if info["type"] != "directory":
            name = stem(storage.basename(url), labels=labels)
            if name is None:
                raise RefusedError(f"{url}: is no {names()} file; leave it out, or export it as OME-TIFF")
            yield name, url, _stamp(info)
            return
        listed = []
        for below, files in _folders(fs, root):
            listed += [(f"{below}/{name}".lstrip("/"), entry) for name, entry in files.items() if name[:1] != "."]
    except OSError as error:
        raise RefusedError(failure_sentence(error, url) or f"{url}: {error}") from error
    for path, info in sorted(listed, key=lambda item: item[0]):
        kind = kind_of(path, labels=labels)
        relative = stem(path, labels=labels) if kind is not None and kind.in_folders else None
        if relative is not None and storage.basename(relative):
            yield relative, storage.join(url, path), _stamp(info)


def _folders(fs: AbstractFileSystem, root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path below `root`, files by name) of each folder that is searched, each once; linked ones after the others."""
    pending, seen = [("", root)], set()
    while pending:
        above, top = pending.pop(0)
        if identity(top) in seen:
            continue
        links = []
        for folder, folders, files in fs.walk(top, detail=True, on_error="raise"):
            below = f"{above}/{folder.removeprefix(top).strip('/')}".strip("/")
            seen.add(identity(folder))
            for name in list(folders):
                if _is_left_out(name) or identity(f"{folder}/{name}") in seen:
                    del folders[name]  # the walk does not enter it
            for name in [name for name, entry in files.items() if entry.get("islink") and fs.isdir(f"{folder}/{name}")]:
                del files[name]
                if not _is_left_out(name):
                    links.append((f"{below}/{name}".strip("/"), f"{folder}/{name}"))
            yield below, files
        pending += sorted(links)


def _is_left_out(folder: str) -> bool:
    return folder.startswith(".") or folder.lower().endswith(".zarr")


def _stamp(info: dict[str, Any]) -> str:
    keys = ("size", "mtime", "etag", "ETag", "md5Hash", "updated", "LastModified", "created")
    return " ".join(str(info[key]) for key in keys[: 2 if "mtime" in info else None] if key in info)


def is_zarr(images: str) -> bool:
    """Return whether `images` are OME-Zarr: by name, or where a folder holds any of that name at its top."""
    url = storage.normalise(images)
    if url.endswith(".zarr") or "*" in url:
        return url.endswith(".zarr")
    fs, path = storage.filesystem(url)
    if not fs.isdir(path):
        return False
    names = {storage.basename(name) for name in fs.ls(path, detail=False)}
    return bool(names & {"zarr.json", ".zgroup"}) or any(name.endswith(".zarr") for name in names)
