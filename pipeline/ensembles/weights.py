"""The weights of an ensemble as files beside its ``ensemble.yaml``: copy, measure and delete them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence


def bring(url: str, folder: str, digest: str, only: Sequence[str] = ()) -> str:
    """Copy a file or a package of weights into `folder`; its path relative to that.

    What lies there already stays as it is. Where another file has its name, `digest` makes a new one.

    Parameters
    ----------
    only : paths in a package that are copied; it may be brought several times with others. All if there are none

    Raises
    ------
    RefusedError
        Where it cannot be read or written, or is a description on the web, whose package cannot be listed.
    """
    if url.startswith(f"{folder}/"):
        return url.removeprefix(f"{folder}/")
    description = ""
    if url.endswith((".yaml", ".yml")):  # of a package, which is the folder around it
        if storage.is_web(url):
            raise RefusedError(f"{url}: a folder on the web cannot be copied; add --link, or download the package")
        url, description = url.rsplit("/", 1)
    files = {path: _read(storage.join(url, path)) for path in only or _files(url)}
    name = storage.basename(url)
    try:
        storage.check_writable(folder)
        if _is_other(files, storage.join(folder, name), partly=bool(only)):
            stem, dot, suffix = name.rpartition(".")
            name = f"{stem}-{digest[:8]}.{suffix}" if dot and stem else f"{name}-{digest[:8]}"
        for path, data in files.items():
            target = storage.join(folder, name, path)
            if not storage.exists(target):
                storage.write_bytes(target, data)
    except OSError as error:
        raise RefusedError(f"copying weights to {failure_sentence(error, folder) or folder}") from error
    return storage.join(name, description)


def copy(url: str, target: str) -> None:
    """Copy a file that belongs to weights; raise RefusedError where it cannot be read or written."""
    try:
        if url != target:
            storage.write_bytes(target, _read(url))
    except OSError as error:
        raise RefusedError(f"copying weights to {failure_sentence(error, target) or target}") from error


def delete(weights: str, folder: str) -> None:
    """Delete the weights at a path relative to `folder`; those elsewhere are not ours and stay."""
    if "://" in weights or weights.startswith("/") or ".." in weights.split("/"):
        return
    if weights.endswith((".yaml", ".yml")) and "/" in weights:
        weights = weights.rsplit("/", 1)[0]
    fs, path = storage.filesystem(storage.join(folder, weights))
    try:
        if fs.exists(path):
            fs.rm(path, recursive=_is_folder(storage.join(folder, weights)))
    except OSError as error:
        raise RefusedError(f"deleting weights: {failure_sentence(error, path) or path}") from error


def size(url: str) -> int | None:
    """Return the size of a file or a package in bytes; None if it is missing or its size is unknown."""
    fs, path = storage.filesystem(url)
    try:
        return int(fs.du(path)) if _is_folder(url) else int(fs.size(path))
    except (OSError, TypeError):  # the web may not tell a size
        return None


def _files(url: str) -> list[str]:
    """List the files in a package as paths relative to `url`; for a file, the one empty path."""
    if not _is_folder(url):
        return [""]
    fs, path = storage.filesystem(url)
    return [str(file).removeprefix(f"{path}/") for file in fs.find(path)]


def _read(url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except OSError as error:
        raise RefusedError(f"weights {failure_sentence(error, url) or url}") from error


def _is_other(files: Mapping[str, bytes], target: str, *, partly: bool) -> bool:
    """Return whether something is at `target` that has not these files; with `partly` it may lack them."""
    if not (_is_folder(target) or storage.exists(target)):
        return False
    paths = {storage.join(target, path): data for path, data in files.items()}
    there = {path: storage.exists(path) for path in paths}
    return not all(storage.read_bytes(path) == data if there[path] else partly for path, data in paths.items())


def _is_folder(url: str) -> bool:
    """Return whether `url` is a folder; on the web all are files, as looking for a listing would download them."""
    fs, path = storage.filesystem(url)
    return not storage.is_web(url) and bool(fs.isdir(path))
