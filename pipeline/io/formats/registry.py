"""The formats of files that can be read: those of Chorus, and those that other packages bring as plug-ins.

A plug-in is a package with an entry point in the group ``chorus.readers`` that names a
`chorus.pipeline.io.formats.kind.FormatKind`. Its code was installed by the user, and is run as such. It may not take
the suffixes of another kind.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from chorus.pipeline.errors import ImageError, first_line
from chorus.pipeline.io import storage
from chorus.pipeline.io.formats import hdf5, leica, nikon, numpy_files, slides, tiff, whole_files, zeiss
from chorus.pipeline.io.formats.kind import FormatKind
from chorus.pipeline.io.formats.rasters import PartOf, Raster
from chorus.pipeline.io.models import DTYPES

GROUP = "chorus.readers"
BUILT_IN = (
    tiff.KIND,
    tiff.SVS,
    whole_files.PICTURES,
    whole_files.ITK,
    whole_files.CELLPOSE,
    zeiss.KIND,
    nikon.KIND,
    leica.KIND,
    slides.KIND,
    slides.DICOM,
    hdf5.KIND,
    numpy_files.NPY,
    numpy_files.NPZ,
)
log = logging.getLogger("chorus")


@dataclass(frozen=True)
class Registry:
    """The formats that are installed.

    Attributes
    ----------
    kinds : those of Chorus first
    failures : why plug-ins that are installed cannot be used, a sentence each
    """

    kinds: tuple[FormatKind, ...]
    failures: tuple[str, ...] = ()

    @property
    def suffixes(self) -> list[tuple[str, FormatKind]]:
        """Suffixes and what they stand for, the longest first."""
        pairs = [(suffix, kind) for kind in self.kinds for suffix in kind.suffixes]
        return sorted(pairs, key=lambda pair: -len(pair[0]))


@cache
def registry() -> Registry:
    """Return the formats of this process; plug-ins are searched for once, and those that fail to load are logged."""
    kinds, failures = list(BUILT_IN), []
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        try:
            kind = point.load()
            if not isinstance(kind, FormatKind):
                raise TypeError(f"{point.value} is no chorus.pipeline.io.formats.kind.FormatKind")
            if taken := {suffix for one in kinds for suffix in one.suffixes} & set(kind.suffixes):
                raise ValueError(f"{', '.join(sorted(taken))} is read by another one already")
        except Exception as error:  # noqa: BLE001 - code of others, which must not stop runs without it
            failures.append(f"plug-in {_origin(point)} cannot be used ({first_line(error)}): mend or uninstall it")
            log.warning("%s", failures[-1])
            continue
        kinds.append(kind)
    return Registry(tuple(kinds), tuple(failures))


def kind_of(name: str, *, labels: bool = False) -> FormatKind | None:
    """Return the format of a file by its name; None if it has no suffix of one.

    Parameters
    ----------
    labels : whether files that hold nothing but labels count
    """
    match = _suffix(name, labels=labels)
    return None if match is None else match[1]


def stem(name: str, *, labels: bool = False) -> str | None:
    """Strip the suffix of a format from `name`; None if it has none. Of labels ``_seg`` is kept."""
    match = _suffix(name, labels=labels)
    if match is None:
        return None
    suffix, kind = match
    return name[: -len(f".{suffix.rpartition('.')[2]}" if kind.labels else suffix)]


def _suffix(name: str, *, labels: bool) -> tuple[str, FormatKind] | None:
    lower = name.lower()
    match = next(((suffix, kind) for suffix, kind in registry().suffixes if lower.endswith(suffix)), None)
    return None if match is None or (match[1].labels and not labels) else match


@contextmanager
def open_rasters(
    url: str, data: bytes | None = None, *, dtypes: Collection[str] = DTYPES
) -> Iterator[list[Raster] | PartOf]:
    """Return the images of a file, for as long as it is open; at least one.

    Parameters
    ----------
    data : the file, where it is in memory; then `url` is only its name
    dtypes : names of the types that its pixels may have

    Raises
    ------
    ImageError
        If it cannot be read, or holds what OME-Zarr or Chorus cannot take; reading a window raises it, too. Also
        where the package that reads it is not installed.
    """
    kind = kind_of(url, labels=True)
    if kind is None:
        raise ImageError(f"{url}: is of no format that is read ({suffix_list()}); export it as OME-TIFF")
    if not kind.in_memory and (data is not None or storage.scheme(url) != "file"):
        raise ImageError(f"{url}: files of {kind.name} are read on local disks alone; copy it to one first")
    check_installed(kind, url)
    with kind.open(url, data, dtypes) as opened:
        yield opened


def check_installed(kind: FormatKind, url: str) -> None:
    """Raise ImageError where the modules that read a format are missing."""
    try:
        for module in kind.modules:
            import_module(module)
    except ImportError as error:
        raise ImageError(
            f"{url}: files of {kind.name} are read by {kind.reader}, which is not installed or cannot be imported "
            f"({first_line(error)}); install it with `pip install 'chorus-bioimage[{kind.extra}]'`"
        ) from error


def names() -> str:
    """List the formats, but for labels, by name."""
    return ", ".join(kind.name for kind in registry().kinds if not kind.labels)


def suffix_list() -> str:
    """List the suffixes of the formats, but for labels."""
    return ", ".join(suffix for kind in registry().kinds for suffix in kind.suffixes if not kind.labels)


def _origin(point: EntryPoint) -> str:
    package = f" of {point.dist.name}" if point.dist is not None else ""
    return f"{point.name}{package} ({point.value})"
