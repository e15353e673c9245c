"""The declaration of a file format; everything that depends on formats derives from it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

from chorus.pipeline.io.formats.rasters import PartOf, Raster

Open: TypeAlias = Callable[[str, bytes | None, Collection[str]], AbstractContextManager[list[Raster] | PartOf]]
"""Open the file at a URL, or in memory, whose pixels may be of these types, for as long as the context lasts.

Raises ImageError in one sentence where it cannot be read, or holds what OME-Zarr or Chorus cannot take. The list is
never empty. Where the file is in memory its URL is only its name.
"""


@dataclass(frozen=True)
class FormatKind:
    """A file format and its reader.

    Attributes
    ----------
    name : of the format in messages and documentation
    suffixes : in lower case with their dots; of two that fit a name, the longer one decides
    open : see `Open`
    reader, licence : the library that decodes, and its licence
    modules : top-level modules of the reader that are imported when a file is opened
    extra : of Chorus's package, installs them; empty where they are always installed
    windows : whether a window is read without the rest of the plane, so that ``predict`` reads such files directly
    in_folders : whether folders are searched for such files; others must be named, since they may hold anything
    searched : whether ``predict`` takes such files from a folder, beside OME-Zarr
    in_memory : whether a file in memory, or on a bucket, can be opened
    labels : whether such a file holds nothing but labels
    parallel : whether several threads may read windows of one open file at once
    """

    name: str
    suffixes: tuple[str, ...]
    open: Open
    reader: str
    licence: str
    modules: tuple[str, ...] = ()
    extra: str = ""
    windows: bool = False
    in_folders: bool = True
    searched: bool = False
    in_memory: bool = False
    labels: bool = False
    parallel: bool = False
