"""Which raster files there are to convert, and what their results are called."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import cellpose_files, storage
from chorus.pipeline.io.discovery import expand
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.rasters import SUFFIXES, stem


@dataclass(frozen=True, slots=True)
class RasterFile:
    """A file to convert.

    Attributes
    ----------
    url : of the file
    name : path of the result below the output, unique within a run
    stamp : size and time of change (or what a bucket has instead): differs when the content does
    """

    url: str
    name: str
    stamp: str


def find_files(sources: Sequence[str], *, labels: bool = False) -> list[RasterFile]:
    """The raster files that paths, folders, globs and ``.txt`` lists stand for, in order, each once.

    Folders are searched to their leaves, but hidden files and folders and OME-Zarrs are left out.

    Parameters
    ----------
    labels : whether files that hold nothing but labels are taken, too (Cellpose's ``_seg.npy``)

    Raises
    ------
    RefusedError : a source is missing, is a file of another kind, or holds no raster file
    """
    found: dict[str, tuple[str, str]] = {}
    for url in expand(sources):
        before = len(found)
        for relative, file, stamp in _files(url, labels=labels):
            found.setdefault(file, (relative, stamp))
            before = -1
        if before >= 0:
            raise RefusedError(f"{url}: holds no {_kinds()} file; check the path")
    seen = Counter(relative.casefold() for relative, _ in found.values())
    files = []
    for url, (relative, stamp) in found.items():
        tag = f"-{hashlib.sha256(url.encode()).hexdigest()[:6]}" if seen[relative.casefold()] > 1 else ""
        files.append(RasterFile(url, f"{relative}{tag}.ome.zarr", stamp))
    return files


def _files(url: str, *, labels: bool) -> Iterator[tuple[str, str, str]]:
    """(path below `url` without suffix, URL, stamp) of every raster file at or below `url`, sorted."""
    fs, root = storage.filesystem(url)
    try:
        info = fs.info(root)
        if info["type"] != "directory":
            name = _stem(storage.basename(url), labels=labels)
            if name is None:
                raise RefusedError(f"{url}: is no {_kinds()} file; leave it out, or export it as OME-TIFF")
            yield name, url, _stamp(info)
            return
        listed = []
        for folder, folders, files in fs.walk(root, detail=True, on_error="raise"):
            for name in [name for name in folders if name.startswith(".") or name.lower().endswith(".zarr")]:
                del folders[name]  # the walk does not enter it
            below = folder.removeprefix(root).strip("/")
            listed += [(f"{below}/{name}".lstrip("/"), entry) for name, entry in files.items() if name[:1] != "."]
    except OSError as error:
        raise RefusedError(storage.explain(error, url) or f"{url}: {error}") from error
    for path, info in sorted(listed, key=lambda item: item[0]):
        relative = _stem(path, labels=labels)
        if relative is not None and storage.basename(relative):
            inside(url, relative, what="the key")  # of a bucket, where .. is a name like any other
            yield relative, storage.join(url, path), _stamp(info)


def _stem(name: str, *, labels: bool) -> str | None:
    """`name` without its suffix; None where it is not searched for."""
    if labels and name.lower().endswith(cellpose_files.SUFFIX):
        return name[: -len(".npy")]
    return stem(name)


def _stamp(info: dict[str, Any]) -> str:
    keys = ("size", "mtime", "etag", "ETag", "md5Hash", "updated", "LastModified", "created")
    return " ".join(str(info[key]) for key in keys[: 2 if "mtime" in info else None] if key in info)


def _kinds() -> str:
    return "TIFF, PNG, JPEG, NIfTI, NRRD or MHA" + f" ({', '.join(SUFFIXES[3:])})"


def is_zarr(images: str) -> bool:
    """Whether `images` are OME-Zarr: by name, or where a folder holds any of that name at its top."""
    url = storage.normalise(images)
    if url.endswith(".zarr") or "*" in url:
        return url.endswith(".zarr")
    fs, path = storage.filesystem(url)
    if not fs.isdir(path):
        return False
    names = {storage.basename(name) for name in fs.ls(path, detail=False)}
    return bool(names & {"zarr.json", ".zgroup"}) or any(name.endswith(".zarr") for name in names)
