"""Find the images of a source: one OME-Zarr, a plate, a collection, or a folder of many.

What stops one image is recorded as a `FailedImage` and the others go on; only a named source that holds no image
at all is refused. What an image's metadata say is read by `chorus.pipeline.io.sources.ngff`.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import zarr
import zarr.errors

from chorus.pipeline.errors import ChorusError, ImageError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.formats.registry import kind_of, stem
from chorus.pipeline.io.inside import fault, fitting, readable, shown
from chorus.pipeline.io.models import DTYPES, FailedImage, SourceImage
from chorus.pipeline.io.sources.ngff import (
    MEND,
    Kind,
    collection_series,
    open_group,
    open_image,
    plate_metadata,
    well_metadata,
)
from chorus.pipeline.io.storage_failures import failure_sentence


@dataclass(frozen=True, slots=True)
class _Place:
    """What was found at a URL: a root of images (`kind`), or else folders to search and words for the rest."""

    url: str
    kind: Kind | None = None
    children: tuple[str, ...] = ()
    words: str = ""
    failure: ChorusError | None = None


def expand(sources: Sequence[str]) -> list[str]:
    """Expand paths, globs and ``.txt`` lists (one URL per line, ``#`` comments) to normalised URLs.

    Arguments keep their order; each one's URLs are sorted, and every URL is given once.
    Raises RefusedError for a list that cannot be read and for a glob that matches nothing.
    """
    urls: list[str] = []
    for source in sources:
        lines = _lines(source) if source.lower().endswith(".txt") else [source]
        urls += sorted({url for line in lines for url in _matches(line)})
    return list(dict.fromkeys(urls))


def find_images(
    sources: Sequence[str], *, dtypes: Collection[str] = DTYPES, without: str | None = None, workers: int = 16
) -> Iterator[SourceImage | FailedImage]:
    """Every image of `sources` in a fixed order: that of the arguments, then of sorted paths.

    Metadata is read by `workers` threads.

    Parameters
    ----------
    dtypes : names of the types that pixels may have
    without : URL of a folder that is not searched, such as the output of a run; None for none

    Raises
    ------
    RefusedError
        Before the first image, for a source that is not OME-Zarr and holds none.
    """
    with ThreadPoolExecutor(workers) as pool:
        # a folder that is reached by two ways (twice named, a link) counts once
        roots: dict[str, _Place] = {}
        for url in expand(sources):
            for place in _roots(url, pool, without):
                roots.setdefault(identity(place.url), place)
        names = _names([place.url for place in roots.values()])
        images = [entry for place in roots.values() for entry in _entries(place, names[place.url], pool)]
        yield from pool.map(partial(_open_entry, dtypes=dtypes), images)


def _lines(url: str) -> list[str]:
    with _storage_refusals(url):
        data = storage.read_bytes(url)
    try:
        text = data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedError(f"{url}: is not a text file; give one URL a line in UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _matches(source: str) -> list[str]:
    if storage.is_web(source) or not glob.has_magic(source):
        return [storage.normalise(source)]
    fs, path = storage.filesystem(source)
    with _storage_refusals(source):
        if fs.exists(path):  # a name that has a bracket in it
            return [storage.normalise(source)]
        matches = [storage.normalise(fs.unstrip_protocol(match)) for match in fs.glob(path)]
    if not matches:
        raise RefusedError(f"{source}: matches nothing; check the pattern and the folder before it")
    return matches


@contextmanager
def _storage_refusals(url: str) -> Iterator[None]:
    """Convert storage errors to a RefusedError of one sentence; other errors pass."""
    try:
        yield
    except Exception as error:
        if sentence := failure_sentence(error, url):
            raise RefusedError(sentence) from error
        raise


def identity(url: str) -> str:
    """Return what two URLs of one local file or folder have in common, whatever links lead there."""
    return os.path.realpath(url) if storage.scheme(url) == "file" else url


def _names(urls: Sequence[str]) -> dict[str, str]:
    """Names of the roots; equal ones (also on file systems that ignore case) are told apart by their URL."""
    bases = ((url, storage.basename(url)) for url in urls)
    own = ((url, (stem(base) or base).removesuffix(".zarr").removesuffix(".ome")) for url, base in bases)
    stems = {url: fitting(stem, url) for url, stem in own}
    seen = Counter(stem.casefold() for stem in stems.values())
    tags = {url: f"-{hashlib.sha256(url.encode()).hexdigest()[:6]}" for url in urls}
    return {u: f"{s}{tags[u] if seen[s.casefold()] > 1 else ''}.ome.zarr" for u, s in stems.items()}


def _roots(url: str, pool: ThreadPoolExecutor, without: str | None) -> Iterator[_Place]:
    """Return the roots at and below a named `url`; raises RefusedError where there is none."""
    top = _look(url)
    if isinstance(top.failure, RefusedError):
        raise top.failure
    any_root = False
    # The output is left out by not entering it, as a link that leads back up is.
    closed = frozenset() if without is None or identity(without) == identity(url) else {identity(without)}
    for place in _descend(top, pool, frozenset(closed)):
        any_root = True
        yield place
    if not any_root:
        raise RefusedError(
            f"{url}: holds no OME-Zarr image, it is {top.words}; give an OME-Zarr image, plate, collection or a "
            "folder of them, or convert other files first with `chorus convert`"
        )


def _descend(place: _Place, pool: ThreadPoolExecutor, above: frozenset[str]) -> Iterator[_Place]:
    if place.kind or place.failure:
        yield place
    elif (own := identity(place.url)) not in above:  # a link may lead back up
        for child in pool.map(_look, place.children):
            yield from _descend(child, pool, above | {own})


def _look(url: str) -> _Place:
    """Return what is at `url`; a failure is part of the answer."""
    try:
        if any("\ud800" <= c <= "\udfff" for c in url):  # bytes that are not UTF-8
            message = "its name is not UTF-8, so that nothing in it can be named in results; rename it"
            return _Place(readable(url), failure=ImageError(f"{readable(url)}: {message}"))
        group = open_group(url)
        kind = None if group is None else _kind(group)
        if kind and not storage.is_web(url) and (reason := fault(storage.basename(url))):
            # Its results would have the same name.
            return _Place(readable(url), failure=ImageError(f"{readable(url)}: its name {reason}; rename it"))
        return _Place(url, kind) if kind else _folder(url, group)
    except zarr.errors.ContainsArrayError:
        return _Place(url, words="a plain Zarr array")
    except ChorusError as error:
        return _Place(url, failure=error)


def _kind(group: zarr.Group) -> Kind | None:
    attributes = group.attrs.asdict()
    ome = attributes.get("ome", attributes)
    keys: dict[str, Kind] = {"plate": "plate", "multiscales": "image", "bioformats2raw.layout": "collection"}
    return next((kind for key, kind in keys.items() if isinstance(ome, Mapping) and key in ome), None)


def _folder(url: str, group: zarr.Group | None) -> _Place:
    if storage.is_web(url):
        what = "no OME-Zarr is found" if group is None else "a Zarr group without an image is found"
        raise RefusedError(
            f"{url}: {what}, and folders cannot be listed over HTTP; give the URL of one image, plate or collection"
        )
    fs, path = storage.filesystem(url)
    with _storage_refusals(url):
        try:
            entries = {storage.basename(entry["name"]): entry["type"] for entry in fs.ls(path, detail=True)}
        except NotADirectoryError:
            return _Place(url, words="a file")
    if entries == {storage.basename(url): "file"}:
        return _Place(url, words="a file")
    if ".zarray" in entries:
        return _Place(url, words="a plain Zarr array")
    entered = (name for name, type_ in entries.items() if name[0] != "." and (type_ == "directory" or _searched(name)))
    words = "a folder without any" if entries else "an empty folder"
    return _Place(url, children=tuple(storage.join(url, name) for name in sorted(entered)), words=words)


def _searched(name: str) -> bool:
    """Return whether a file in a folder is of a format that is read directly, and is nothing but an image."""
    kind = kind_of(name)
    return kind is not None and kind.searched


@dataclass(frozen=True, slots=True)
class _Entry:
    """An image to open, or one that has failed already."""

    root: str
    kind: Kind
    path: str
    name: str
    failure: ChorusError | None = None


def _entries(place: _Place, name: str, pool: ThreadPoolExecutor) -> list[_Entry]:
    """List the images of a root, in the order of its metadata."""

    def entry(path: str, failure: ChorusError | None = None) -> _Entry:
        path = path.removesuffix("/")
        if path and fault(path):
            # Its results and records would lie elsewhere: they get a name of ours.
            failure = ImageError(f"{place.url}: lists the image {shown(path)}, which {fault(path)}; {MEND}")
            path = f"refused-{hashlib.sha256(path.encode(errors='surrogatepass')).hexdigest()[:12]}"
        return _Entry(place.url, place.kind or "image", path, f"{name}/{path}" if path else name, failure)

    def fields(well: str) -> list[_Entry]:
        try:
            return [entry(f"{well}/{image.path}") for image in well_metadata(place.url, well).images]
        except ChorusError as error:
            return [entry(well, error)]

    if place.failure or place.kind == "image":
        return [entry("", place.failure)]
    try:
        if place.kind == "plate":
            wells = [well.path for well in plate_metadata(place.url).wells]
            listed = [field for well in pool.map(fields, wells) for field in well]
        else:
            listed = [entry(path) for path in collection_series(place.url)]
    except ChorusError as error:
        return [entry("", error)]
    return _apart(listed) or [entry("", ImageError(f"{place.url}: the {place.kind} lists no image; {MEND}"))]


def _apart(entries: Sequence[_Entry]) -> list[_Entry]:
    """Return each image once, and a failure for one inside another, as its results would be inside the other's."""
    once = {entry.path: entry for entry in entries}
    for path, entry in once.items():
        above = path
        while above := above.rpartition("/")[0]:
            if above in once:
                within = ImageError(f"{entry.root}: the image {shown(path)} lies within {shown(above)}; {MEND}")
                tag = hashlib.sha256(path.encode()).hexdigest()[:12]
                name = f"{entry.name.removesuffix(path)}refused-{tag}"
                once[path] = replace(entry, name=name, failure=within)
    return list(once.values())


def _open_entry(entry: _Entry, dtypes: Collection[str]) -> SourceImage | FailedImage:
    try:
        if entry.failure:
            raise entry.failure
        return open_image(entry.root, entry.kind, entry.path, entry.name, dtypes=dtypes)
    except ChorusError as error:
        return FailedImage(entry.root, entry.path, entry.name, str(error))
