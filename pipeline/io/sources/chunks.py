"""Whether any chunk of an array exists: missing chunks are filled, so an array without any would be all black."""

from __future__ import annotations

import itertools
import math
import re
from functools import lru_cache
from typing import Any

import zarr

from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage

_DOCUMENTS = frozenset({".zarray", ".zattrs", "zarr.json"})
# Over HTTP nothing is listed: so many chunks are asked for one by one.
_ASKED = 64


def check_any_chunk(array: zarr.Array[Any], url: str) -> None:
    """Raise ImageError where no chunk (or shard) of the array at `url` exists."""
    first = array.metadata.encode_chunk_key((0,) * array.ndim)
    edges = array.shards or array.chunks
    counts = [-(-length // edge) for length, edge in zip(array.shape, edges, strict=True)]
    if not storage.is_web(url):
        _check_listed(url, first)
    elif math.prod(counts) <= _ASKED:
        keys = (array.metadata.encode_chunk_key(at) for at in itertools.product(*map(range, counts)))
        if not any(storage.exists(storage.join(url, key)) for key in keys):
            raise _none(url)


@lru_cache(maxsize=1024)
def _check_listed(url: str, first: str) -> None:
    """Raise ImageError where no file below `url` is called as the chunk `first`, but for the numbers."""
    pattern = re.compile(re.escape(first).replace("0", r"\d+"))
    fs, root = storage.filesystem(url)
    others = False
    for folder, _, files in fs.walk(root):
        below = folder[len(root) :].strip("/")
        for name in files:
            if pattern.fullmatch(f"{below}/{name}".lstrip("/")):
                return
            others |= name not in _DOCUMENTS
    if others:
        raise ImageError(
            f"{url}: none of its chunks is found, though files are there: by its metadata the first is {first}; "
            "correct the dimension_separator, or copy the image again"
        )
    raise _none(url)


def _none(url: str) -> ImageError:
    return ImageError(
        f"{url}: none of its chunks exists; copy the image again (if all of it is black, write its empty chunks, too)"
    )
