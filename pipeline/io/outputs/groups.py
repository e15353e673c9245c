"""Zarr groups: their documents, how these are put into storage, and the groups around images.

A plate or collection of the source keeps its layout in the results: the same rows, wells and series, in NGFF
0.5, around the images that `chorus.pipeline.io.outputs.writer` prepares. Documents are made in memory and put whole;
whoever puts the same ones at the same time writes the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import zarr
from fsspec.implementations.local import LocalFileSystem
from ome_zarr_models.base import BaseAttrs
from ome_zarr_models.v05.bioformats2raw import BioFormats2RawAttrs
from ome_zarr_models.v05.hcs import HCSAttrs
from ome_zarr_models.v05.plate import Plate
from ome_zarr_models.v05.well import WellAttrs
from ome_zarr_models.v05.well_types import WellMeta as Well

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import Ngff
from chorus.pipeline.io.storage_failures import storage_errors

# Documents that are put into a bucket at the same time.
_AT_ONCE = 16


def prepare_plate(url: str, plate: Plate, wells: Mapping[str, Well]) -> None:
    """Create the groups of a plate, its rows and its wells, or those of them that are missing.

    Parameters
    ----------
    url : the plate's group, ``OUT/images/<plate>.ome.zarr``
    plate : its metadata; it may name wells beyond `wells`
    wells : metadata by the well's path (``A/1``)

    Raises
    ------
    OutputError : storage does not take it
    """
    documents = group_documents("", {"ome": dump(HCSAttrs(version="0.5", plate=plate))}, "0.5")
    for path in wells:
        documents |= group_documents(path.split("/", 1)[0], {}, "0.5")
    for path, well in wells.items():
        documents |= group_documents(path, {"ome": dump(WellAttrs(version="0.5", well=well))}, "0.5")
    put_documents(url, documents)


def prepare_collection(url: str, series: Sequence[str]) -> None:
    """Create the groups of a collection of the images at the paths `series`.

    Raises
    ------
    OutputError : storage does not take it
    """
    put_documents(url, collection_documents(series))


def collection_documents(series: Sequence[str]) -> dict[str, bytes]:
    """Return the groups of a collection (``bioformats2raw.layout`` 3) of the images at the paths `series`."""
    root = dump(BioFormats2RawAttrs.model_validate({"version": "0.5", "bioformats2raw.layout": 3}))
    documents = group_documents("", {"ome": root}, "0.5")
    documents |= group_documents("OME", {"ome": {"version": "0.5", "series": list(series)}}, "0.5")
    return documents


def dump(attributes: BaseAttrs) -> dict[str, Any]:
    """Return metadata as it is stored: names as in the specification, unset fields left out."""
    return attributes.model_dump(mode="json", by_alias=True, exclude_none=True)


def group_documents(path: str, attributes: dict[str, Any], ngff: Ngff) -> dict[str, bytes]:
    """Return the metadata files of a group at `path` (empty for the root), by path: Zarr v3 for 0.5, v2 for 0.4."""
    objects: dict[str, Any] = {}
    zarr.create_group(store=objects, attributes=attributes, zarr_format=3 if ngff == "0.5" else 2)
    return {f"{path}/{key}".lstrip("/"): value.to_bytes() for key, value in objects.items()}


def put_documents(url: str, documents: Mapping[str, bytes]) -> None:
    """Put metadata files below `url`: those that are missing or damaged, and those of groups that changed.

    All are read, then written, in one batch each, since a bucket takes some 50 ms to answer.

    Raises
    ------
    RefusedError : an array is there with another form; its chunks would be misread
    OutputError : storage does not take it
    """
    with storage_errors(url):
        fs, root = storage.filesystem(url)
        paths = list(documents)
        contents = fs.cat_ranges([f"{root}/{path}" for path in paths], None, None, on_error="return")
        wanted: dict[str, bytes] = {}
        for path, existing in zip(paths, contents, strict=True):
            if isinstance(existing, FileNotFoundError):
                wanted[path] = documents[path]
            elif isinstance(existing, BaseException):
                raise existing
            elif existing != documents[path]:
                document = json.loads(documents[path])
                is_array = path.endswith(".zarray") or document.get("node_type") == "array"
                if is_array and _content(existing) not in (None, document):
                    raise RefusedError(
                        f"{url}/{path}: is an array of another form, from a run with other settings; "
                        "remove it or choose another place"
                    )
                wanted[path] = documents[path]
        storage.rely_on(storage.join(url, path) for path in paths if path not in wanted)
        at_once = 1 if isinstance(fs, LocalFileSystem) else _AT_ONCE
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda path: storage.write_bytes(storage.join(url, path), wanted[path]), wanted))


def _content(data: bytes) -> object:
    """Return what a metadata file says; None if it is cut, empty or garbage."""
    try:
        return json.loads(data)
    except ValueError:
        return None
