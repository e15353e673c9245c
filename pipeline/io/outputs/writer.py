"""Where the results of one image are stored: its groups, its arrays, and the writing of one shard.

::

    <url>                      NGFF group: the posterior as a multiscales image
      s0, s1, ...              posterior, axes (t, c, z, y, x as in the source)
      labels/semantic          multiscales label image with ``image-label`` colours and names
        s0, s1, ...
      labels/<class>           objects of a class, written after them by `chorus.pipeline.instances`

The arrays are those of `chorus.pipeline.io.outputs.arrays`, the groups say what
`chorus.pipeline.io.outputs.ngff_metadata` says.

Every document and every shard is encoded in memory and put whole, so that a writer never reads before it
writes: a shard that a killed process left torn is replaced like any other, and the bytes are the same on every
kind of storage. Nothing that exists is ever deleted, except shards whose new content is background only (Zarr
leaves those out).

An image without a posterior has only label arrays; its group is then a multiscales of these arrays (paths
``labels/semantic/s0``, ...), because viewers and plates look for an image first and find ``labels`` from there.
There is no consolidated metadata: groups are prepared one by one, and it would be out of date with the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from ome_zarr_models.v05.labels import LabelsAttrs

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.models import ImageLayout, Ngff
from chorus.pipeline.io.opened_arrays import open_array
from chorus.pipeline.io.outputs.arrays import (
    LABEL_NAME,
    ArrayPlan,
    LabelImage,
    label_plan,
    posterior_plan,
    region_grid,
    semantic_labels,
)
from chorus.pipeline.io.outputs.groups import dump, group_documents, put_documents
from chorus.pipeline.io.outputs.ngff_metadata import image_attributes, label_documents
from chorus.pipeline.io.storage import remove_folder
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.io.stored_files import StoredFiles, damaged_files, sizes_below, sizes_of, stored


def prepare_image(layout: ImageLayout) -> None:
    """Create the groups and arrays of `layout`, or those of them that are missing.

    Any number of processes may do so at once: all write the same bytes.

    Raises
    ------
    RefusedError : an array of another form is there already, as after a run with other settings
    OutputError : storage does not take it
    """
    shared = layout.labels_url == layout.url
    images, labels = _documents(layout)
    put_documents(layout.url, images | labels if shared else images)
    if not shared:
        put_documents(layout.labels_url, labels)
    _add_to_list(layout, LABEL_NAME)


def _documents(layout: ImageLayout) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the metadata files of an image and of its label image, by path."""
    images: dict[str, bytes] = {}
    if layout.channels:
        for level in range(layout.levels):
            images |= posterior_plan(layout, level).documents()
    if layout.channels or layout.labels_url == layout.url:
        images |= group_documents("", {"ome": dump(image_attributes(layout))}, "0.5")
    return images, label_documents(layout, semantic_labels(layout))


def prepared_files(layout: ImageLayout) -> StoredFiles:
    """Return the metadata files that `prepare_image` writes, for the image's record; see `url_of`."""
    images, labels = _documents(layout)
    of_list = _list_documents([LABEL_NAME], layout.labels_ngff)
    return {path: stored(data) for path, data in (images | labels | of_list).items()}


def url_of(layout: ImageLayout, path: str) -> str:
    """Return the URL of one of the files of an image."""
    return storage.join(layout.labels_url if path.startswith("labels/") else layout.url, path)


def damaged_results(layout: ImageLayout, files: StoredFiles, sizes: Mapping[str, int], *, contents: bool) -> list[str]:
    """Return the paths of those files of an image that are not as they were written; `sizes` as of `result_sizes`."""
    return damaged_files(files, {path: url_of(layout, path) for path in files}, sizes, contents=contents)


def shards_lost(layout: ImageLayout, files: StoredFiles) -> bool:
    """Return whether one of a few files of an image is not of the size with which it was written."""
    urls = {path: url_of(layout, path) for path in files}
    return bool(damaged_files(files, urls, sizes_of(urls), contents=False))


def result_sizes(layout: ImageLayout) -> dict[str, int]:
    """Return the sizes of an image's files, by path, from one listing, or two for labels in the source."""
    if layout.labels_url == layout.url:
        return sizes_below(layout.url)
    below = sizes_below(storage.join(layout.labels_url, "labels"))
    found = {f"labels/{path}": size for path, size in below.items()}
    return found | (sizes_below(layout.url) if layout.channels else {})


def prepare_labels(layout: ImageLayout, label: LabelImage) -> None:
    """Prepare one more label image beside existing ones, as `prepare_image` does."""
    put_documents(layout.labels_url, label_documents(layout, label))
    _add_to_list(layout, label.name)


def write_region(
    layout: ImageLayout,
    t: int,
    z: int,
    window: Window,
    posterior: NDArray[np.floating[Any]] | None,
    labels: NDArray[np.integer[Any]],
    *,
    level: int = 0,
) -> StoredFiles:
    """Write one region of a level: one object per array, whatever was there before.

    Parameters
    ----------
    t, z : the plane; 0 where the image has no such axis, or the window has a z axis of its own
    window : a window of ``region_grid(layout, level)``
    posterior : (channels, *window), cast to ``layout.dtype``; None where none is kept
    labels : of the window's shape, values of classes
    level : of the pyramid, 0 is the full resolution

    Returns
    -------
    StoredFiles
        What was written, by path below the image's group.

    Raises
    ------
    ValueError : `window` is none of the grid's, or an array has another shape
    OutputError : storage does not take it
    """
    at = _place(layout, level, t, z, window)
    expected = (len(layout.channels), *window.shape)
    given = (0, *labels.shape) if posterior is None else posterior.shape
    if given != expected or labels.shape != window.shape:
        raise ValueError(f"posterior {given} and labels {labels.shape} where {expected} is stored")
    files: StoredFiles = {}
    if posterior is not None:
        files = put_array(layout.url, posterior_plan(layout, level), at, posterior)
    return files | write_labels(layout, semantic_labels(layout), level, t, z, window, labels)


def write_labels(
    layout: ImageLayout,
    label: LabelImage,
    level: int,
    t: int,
    z: int,
    window: Window,
    values: NDArray[np.integer[Any]],
) -> StoredFiles:
    """Write one shard of a label image.

    Parameters
    ----------
    t, z : the plane; 0 where the image has no such axis, or the window has a z axis of its own
    window : a window of ``region_grid(layout, level)``
    values : of the window's shape, cast to the dtype of `label`

    Raises
    ------
    ValueError : `window` is none of the grid's
    OutputError : storage does not accept it
    """
    plan, at = label_plan(layout, label, level), _place(layout, level, t, z, window)
    return put_array(layout.labels_url, plan, at, values)


def _place(layout: ImageLayout, level: int, t: int, z: int, window: Window) -> dict[str, slice]:
    """Return the position of a region of a level, per axis; raise ValueError for a window that is none."""
    region_grid(layout, level).index(window)
    at = {"t": slice(t, t + 1), "c": slice(0, len(layout.channels)), "z": slice(z, z + 1)}
    return at | {axis: span.slice for axis, span in window.by_axis.items()}


def put_array(
    url: str, plan: ArrayPlan, at: Mapping[str, slice], values: NDArray[Any], *, empty: bool = False
) -> StoredFiles:
    """Write `values` of whole shards of `plan`, cast to its type, below the group at `url`; return what was written.

    `at` says per axis where they lie. Shards of zeros are left out, but with `empty`.
    Raises OutputError where storage does not take them.
    """
    selection = tuple(at[axis] for axis in plan.axes)
    shape = tuple(part.stop - part.start for part in selection)
    objects = plan.encode(selection, values.astype(plan.dtype, copy=False).reshape(shape), empty=empty)
    with storage_errors(url):
        for path, data in objects.items():
            if data is not None:
                storage.write_bytes(storage.join(url, path), data)
            else:
                storage.remove_file(storage.join(url, path))  # its pixels are background now
    return {path: None if data is None else stored(data) for path, data in objects.items()}


def open_posterior(url: str, level: int = 0) -> zarr.Array[Any]:
    """Open the posterior of the image group at `url`, read-only; raise RefusedError if there is none."""
    return _open(url, f"s{level}")


def open_labels(url: str, level: int = 0, name: str = LABEL_NAME) -> zarr.Array[Any]:
    """Open a label image below the image group at `url` (``labels_url``), read-only; raise RefusedError if none."""
    return _open(url, f"labels/{name}/s{level}")


def _open(url: str, path: str) -> zarr.Array[Any]:
    try:
        return open_array(storage.store(url, read_only=True), path)
    except FileNotFoundError as error:
        raise RefusedError(f"{url}: has no array {path}; run predict to its end first") from error


def labels_present(layout: ImageLayout) -> bool:
    """Return whether a label image of our name is where `prepare_image` would put it."""
    document = "zarr.json" if layout.labels_ngff == "0.5" else ".zgroup"
    return storage.exists(storage.join(layout.labels_url, "labels", LABEL_NAME, document))


def remove_labels(layout: ImageLayout, label: str = LABEL_NAME) -> None:
    """Delete the label image of that name, its entry in ``labels``, and that group where it held no other label.

    Raises
    ------
    OutputError : storage does not allow it
    """
    with storage_errors(layout.labels_url):
        remove_folder(inside(storage.join(layout.labels_url, "labels"), label))
        _list_labels(layout, lambda names: [name for name in names if name != label])
        fs, folder = storage.filesystem(storage.join(layout.labels_url, "labels"))
        if all(file.rpartition("/")[0] == folder for file in fs.find(folder)):
            remove_folder(storage.join(layout.labels_url, "labels"))  # only its own documents are left


def _add_to_list(layout: ImageLayout, name: str) -> None:
    _list_labels(layout, lambda names: names if name in names else [*names, name])


def _list_labels(layout: ImageLayout, edit: Callable[[list[str]], list[str]]) -> None:
    """Change the list in the ``labels`` group and nothing else in it; create the group where there is none."""
    ngff = layout.labels_ngff
    url = storage.join(layout.labels_url, "labels", "zarr.json" if ngff == "0.5" else ".zattrs")
    with storage_errors(layout.labels_url):
        try:
            document = json.loads(storage.read_bytes(url))
        except (FileNotFoundError, ValueError):  # new, or removed, cut or empty
            put_documents(layout.labels_url, _list_documents(edit(_labels_there(layout)), ngff))
            return
        attributes = document.setdefault("attributes", {}).setdefault("ome", {}) if ngff == "0.5" else document
        names = attributes.get("labels", [])
        if (edited := edit(names)) != names:
            attributes["labels"] = edited
            storage.write_bytes(url, json.dumps(document, indent=2).encode())


def _list_documents(names: list[str], ngff: Ngff) -> dict[str, bytes]:
    """Return the metadata files of the group that lists the label images."""
    attributes = {"ome": dump(LabelsAttrs(version="0.5", labels=names))} if ngff == "0.5" else {"labels": names}
    return group_documents("labels", attributes, ngff)


def _labels_there(layout: ImageLayout) -> list[str]:
    """Return the names of the label images in the order in which they are made: that of all classes first."""
    folder, document = (
        storage.join(layout.labels_url, "labels"),
        "zarr.json" if layout.labels_ngff == "0.5" else ".zgroup",
    )
    others = [name for name in storage.entries(folder) if name != LABEL_NAME]
    names = [LABEL_NAME, *(name for name in others if storage.exists(storage.join(folder, name, document)))]
    made = [LABEL_NAME, *(info.name for info in layout.classes)]
    return sorted(names, key=lambda name: (made.index(name) if name in made else len(made), name))
