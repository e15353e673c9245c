"""Whether a TIFF has the planes that its metadata promise: sets of files, companions, headers of OME and ImageJ.

tifffile fills what is missing with zeros. Here it is an error that names what is missing and what to do.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import tifffile
from fsspec.implementations.local import LocalFileSystem

from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage

# Names of the pictures that slide scanners add, in tifffile's series and in OME-XML of Bio-Formats.
_ASIDE = re.compile(r"(thumbnail|macro|overview|map|label)( image)?", re.IGNORECASE)
_ASIDE_LINE = re.compile(r"^(label|macro|thumbnail) \d+x\d+", re.IGNORECASE | re.MULTILINE)
_NAMED = 3


@dataclass(frozen=True, slots=True)
class TiffData:
    """Position of some planes of an image by OME-XML: `count` pages of a file from `first` on (None: all)."""

    file: str
    uuid: str
    first: int
    count: int | None


def open_tiff(url: str, data: bytes | None, stack: ExitStack) -> tifffile.TiffFile:
    """Open the TIFF at `url`, with the OME-XML of its companion file if its own only points there.

    Parameters
    ----------
    data : the file, where it is in memory; then `url` is only its name
    stack : closes it

    Raises
    ------
    ImageError : the companion is missing, cannot be read, or does not list the file
    """
    tiff = stack.enter_context(tifffile.TiffFile(_source(url, data, stack)))
    root = _xml(tiff.ome_metadata)
    pointer = None if root is None else next(_children(root, "BinaryOnly"), None)
    if root is None or pointer is None:
        return tiff
    name = pointer.get("MetadataFile", "").replace("\\", "/")
    text = _companion(url, data, name)
    companion = _xml(text)
    if companion is None or not any(_children(companion, "Image")):
        raise ImageError(f"{url}: its metadata are in {name}, which is no OME-XML with images; copy that file again")
    own, listed = root.get("UUID"), [part for image in _children(companion, "Image") for part in planes_of(image)]
    if own not in {part.uuid for part in listed} and storage.basename(url) not in {part.file for part in listed}:
        raise ImageError(
            f"{url}: {name}, which its metadata are in, does not list it; copy the whole set of files again"
        )
    # The companion's planes with this UUID are in this file, whatever its name.
    companion.set("UUID", own or "")
    return stack.enter_context(
        tifffile.TiffFile(_source(url, data, stack), omexml=ElementTree.tostring(companion, "unicode"))
    )


def series_of(url: str, tiff: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    """Return the series of a TIFF as tifffile makes them; raise ImageError if a file of its set is damaged."""
    try:
        return list(tiff.series)
    except Exception as error:
        for name in dict.fromkeys(part.file for image in ome_images(tiff.ome_metadata) for part in planes_of(image)):
            where = _beside(url, name)
            if where is not None and name != storage.basename(url) and storage.exists(where) and not _opens(where):
                damaged = f"{url}: {name}, a file of its set, is damaged; copy it again, or export the image anew"
                raise ImageError(damaged) from error
        raise


def _opens(url: str) -> bool:
    """Return whether there is a TIFF at `url` whose pages can be read."""
    try:
        with ExitStack() as stack:
            return bool(stack.enter_context(tifffile.TiffFile(_source(url, None, stack))).pages)
    except Exception:  # noqa: BLE001 - of many libraries' types; that it does not open is the answer
        return False


def _source(url: str, data: bytes | None, stack: ExitStack) -> Any:
    """Return what tifffile reads from; it follows the files of a set only from a path."""
    if data is not None:
        return BytesIO(data)
    fs, path = storage.filesystem(url)
    storage.check_regular(fs, path)
    return path if isinstance(fs, LocalFileSystem) else stack.enter_context(fs.open(path))


def _companion(url: str, data: bytes | None, name: str) -> str:
    """Read the OME-XML of the file `name` beside the one at `url`."""
    where = _beside(url, name)
    if data is not None or where is None or not storage.exists(where):
        raise ImageError(
            f"{url}: its metadata are in {name or 'another file'}, which is not beside it; put both in one folder, or "
            "export the image as one OME-TIFF"
        )
    content = storage.read_bytes(where)
    if content[:2] in (b"II", b"MM"):
        with tifffile.TiffFile(BytesIO(content)) as tiff:
            return tiff.ome_metadata or ""
    return content.decode("utf-8-sig", errors="replace")


def _beside(url: str, name: str) -> str | None:
    """Return the URL of the file of this relative name; None for a name that leads out of the folder."""
    plain = posixpath.normpath(name.replace("\\", "/"))
    if not name or posixpath.isabs(plain) or plain.startswith("..") or ":" in plain:
        return None
    return storage.join(url.rpartition("/")[0], plain)


def ome_images(xml: str | None) -> list[ElementTree.Element]:
    """Return the Image elements of OME-XML; none if it cannot be parsed."""
    root = _xml(xml)
    return [] if root is None else list(_children(root, "Image"))


def _xml(text: str | None) -> ElementTree.Element | None:
    try:
        return ElementTree.fromstring(text) if text else None
    except (ElementTree.ParseError, ValueError):
        return None


def _children(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if child.tag.rpartition("}")[2] == name)


def planes_of(image: ElementTree.Element) -> list[TiffData]:
    """Read from an Image element where its planes are."""
    planes = []
    for pixels in _children(image, "Pixels"):
        for data in _children(pixels, "TiffData"):
            count = data.get("PlaneCount", data.get("NumPlanes", "1" if "IFD" in data.attrib else ""))
            named = next(_children(data, "UUID"), None)
            file, uuid = ("", "") if named is None else (named.get("FileName", ""), (named.text or "").strip())
            planes.append(TiffData(file, uuid, int(data.get("IFD", 0)), int(count) if count and int(count) else None))
    return planes


def image_of_series(
    tiff: tifffile.TiffFile, series: Sequence[tifffile.TiffPageSeries], images: Sequence[ElementTree.Element]
) -> list[int | None]:
    """Return the index of the Image element of each series; images without planes have no series.

    Both are in the same order; an image is that of a series if it lists the series' first page.
    """
    image_indices: list[int | None] = []
    index = 0
    listed = [planes_of(image) for image in images]
    own = _own_uuid(tiff)
    for one in series:
        first = next((page for page in pages_of(one) if page is not None), None)
        match = next(
            (i for i in range(index, len(images)) if first is not None and _lists(listed[i], first, tiff, own)), None
        )
        image_indices.append(match)
        index = index if match is None else match + 1
    return image_indices


def _own_uuid(tiff: tifffile.TiffFile) -> str:
    root = _xml(tiff.ome_metadata)
    return "" if root is None else root.get("UUID", "")


def _lists(parts: Sequence[TiffData], page: Any, tiff: tifffile.TiffFile, own: str) -> bool:
    name, index = page.parent.filename, page.index
    for part in parts:
        inside = part.first <= index and (part.count is None or index < part.first + part.count)
        here = not part.uuid or part.uuid == own or part.file.lower() == tiff.filename.lower()
        if inside and (name == storage.basename(part.file) or (here and name == tiff.filename)):
            return True
    return False


def pages_of(series: tifffile.TiffPageSeries) -> list[Any]:
    """Return the pages of a series that tifffile read: one alone may hold all planes; None is a missing one."""
    return list(series._pages)


def check_planes(
    url: str, tiff: tifffile.TiffFile, one: tifffile.TiffPageSeries, image: ElementTree.Element | None
) -> None:
    """Raise ImageError where planes of a series are missing.

    Parameters
    ----------
    image : that the series was made of, where it is known
    """
    pages = pages_of(one)
    there = sum(page is not None for page in pages)
    plane = math.prod(one.keyframe.shape) or 1
    promised = math.prod(one.get_shape(squeeze=False)) // plane
    if len(pages) == 1 and there and one.dataoffset is not None:
        # One page, and planes after it without pages of their own.
        size = tiff.filehandle.size - one.dataoffset
        there = min(promised, max(size, 0) // (plane * one.dtype.itemsize)) if promised > 1 else 1
    if there >= promised:
        return
    missing = f"{promised - there} of its {promised} planes are missing"
    files = [] if image is None else list(dict.fromkeys(part.file for part in planes_of(image) if part.file))
    others = [name for name in files if name.lower() != storage.basename(url).lower()]
    gone = [name for name in others if (where := _beside(url, name)) is None or not storage.exists(where)]
    if gone:
        raise ImageError(
            f"{url}: {missing}, since {_named(gone)} {'is' if len(gone) == 1 else 'are'} not beside it; put all "
            "files of the set in one folder, or export the image as one file"
        )
    if others and not tiff.filehandle.is_file:
        raise ImageError(
            f"{url}: its planes are in several files ({_named(files)}), which are read together from a disk only; copy "
            "the set to one first, or export the image as one file"
        )
    where = f" or {_named(others)} {'is' if len(others) == 1 else 'are'} damaged" if others else ""
    raise ImageError(
        f"{url}: {missing}, the metadata promise more than the file has: it was cut short, or its acquisition was "
        f"stopped{where}; copy the file again, or save the planes that there are as a new file"
    )


def check_promises(url: str, tiff: tifffile.TiffFile, series: Sequence[tifffile.TiffPageSeries]) -> None:
    """Raise ImageError where an ImageJ header, or OME-XML, promises more images than tifffile made series of."""
    have = sum(math.prod(one.get_shape(squeeze=False)) // (math.prod(one.keyframe.shape) or 1) for one in series)
    if tiff.is_imagej and not tiff.is_ome and series[0].kind != "imagej":
        header: Mapping[str, Any] = tiff.imagej_metadata or {}
        lengths = [header.get(name, 1) for name in ("channels", "slices", "frames")]
        promised = max(int(header.get("images", 1)), math.prod(int(length) for length in lengths))
        if promised > have * series[0].keyframe.samplesperpixel:
            raise ImageError(
                f"{url}: {promised - have} of its {promised} planes are missing, the ImageJ header promises more than "
                "the file has; copy the file again, or save the planes that there are as a new file"
            )
    images = ome_images(tiff.ome_metadata if tiff.is_ome else None)
    used = set(image_of_series(tiff, series, images))
    for index, image in enumerate(images):
        beyond = [part.first for part in planes_of(image) if _in(part, tiff) and part.first >= len(tiff.pages)]
        if index not in used and beyond:
            raise ImageError(
                f"{url}: image {index} of its metadata begins at page {beyond[0]}, but the file has {len(tiff.pages)}; "
                "copy the file again, or export its images anew"
            )


def _in(part: TiffData, tiff: tifffile.TiffFile) -> bool:
    """Return whether planes are in this very file."""
    return not part.uuid or part.uuid == _own_uuid(tiff) or part.file.lower() == tiff.filename.lower()


def main_images(series: Sequence[tifffile.TiffPageSeries]) -> tuple[list[tifffile.TiffPageSeries], list[str]]:
    """Separate the series to segment from names of those that are not: thumbnails, labels, overviews.

    A picture of that kind has colours, or is a reduced one by its own tag. Where nothing else is left, all are images.
    """
    aside = [_aside(one) for one in series]
    kept = [one for one, name in zip(series, aside, strict=True) if not name]
    return (kept, [name for name in aside if name]) if kept else (list(series), [])


def _aside(series: tifffile.TiffPageSeries) -> str:
    """Return what kind of accompanying picture a series is; empty for an image."""
    page = series.keyframe
    text = page.description if isinstance(page, tifffile.TiffPage) else ""
    line = _ASIDE_LINE.search(text)
    coloured = page.samplesperpixel >= 3
    if coloured and (_ASIDE.fullmatch(series.name.strip()) or line):
        return (line[1] if line else series.name).strip().lower()
    return "thumbnail" if page.is_reduced and series.kind != "ome" else ""


def _named(names: Sequence[str]) -> str:
    """List some names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
