"""Check finished images with other readers, under ``--strict``: ome-zarr's reader and a schema.

ome-zarr's writer is not used: it goes through dask, and its labels of 0.5 lack their version and are listed twice when
they are written twice (0.18). As a reader it shares nothing with our writer but zarr, so that it finds what viewers
built on it would not show; but it takes metadata of any form that it understands, so that ome-zarr-models checks this
before. It reads remote images without their labels: there the metadata alone is checked.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import zarr

from chorus.pipeline.errors import ImageError, first_line
from chorus.pipeline.io import storage

_MEND = "this is a fault of Chorus: report it, and leave --strict out to keep the image"


def check_image(url: str) -> None:
    """Check the image group at `url` and its label images: metadata, shapes and types of levels, values of the last.

    Raises
    ------
    ImageError
        Where they are not valid, or ome-zarr does not find them as they are stored.
    """
    url = storage.normalise(url)
    group = zarr.open_group(storage.store(url, read_only=True), mode="r")
    images = {url: group} if "multiscales" in _metadata(group) else {}
    images |= {storage.join(url, "labels", name): image for name, image in _labels(group).items()}
    for path, image in images.items():
        _check_metadata(path, image)
    if "://" not in url:
        seen = _seen(url)
        for path, image in images.items():
            _check_levels(path, image, seen.get(os.path.realpath(path)))


def _labels(group: zarr.Group) -> dict[str, zarr.Group]:
    """Return the label images that an image lists, by name."""
    labels = group.get("labels")
    names = _metadata(labels).get("labels", []) if isinstance(labels, zarr.Group) else []
    images = {name: labels.get(name) for name in names} if isinstance(labels, zarr.Group) else {}
    return {name: image for name, image in images.items() if isinstance(image, zarr.Group)}


def _check_metadata(path: str, image: zarr.Group) -> None:
    from ome_zarr_models import v04, v05

    v3 = image.metadata.zarr_format == 3
    is_label = path.rpartition("/")[0].endswith("/labels")
    model: Any
    if is_label:
        model = v05.image_label.ImageLabel if v3 else v04.image_label.ImageLabel
    else:
        model = v05.image.Image if v3 else v04.image.Image
    try:
        model.from_zarr(image)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ImageError(f"{path}: is no valid {model.__name__} of OME-Zarr ({first_line(error)}); {_MEND}") from error


def _seen(url: str) -> dict[str, list[Any]]:
    """Read the levels of the image at `url` and its label images by real path, as ome-zarr's dask arrays."""
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    location = parse_url(url)
    if location is None:
        raise ImageError(f"{url}: ome-zarr finds no image there; {_MEND}")
    try:
        return {os.path.realpath(node.zarr.path): list(node.data) for node in Reader(location)() if node.data}
    except (KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        raise ImageError(f"{url}: ome-zarr cannot read what was written ({error!r}); {_MEND}") from error


def _check_levels(path: str, image: zarr.Group, seen: list[Any] | None) -> None:
    stored = [image[level["path"]] for level in _metadata(image)["multiscales"][0]["datasets"]]
    arrays = [array for array in stored if isinstance(array, zarr.Array)]
    if seen is None:
        raise ImageError(f"{path}: ome-zarr does not find this image; {_MEND}")
    if [(one.shape, one.dtype) for one in seen] != [(one.shape, one.dtype) for one in arrays]:
        raise ImageError(f"{path}: ome-zarr finds other levels than were written; {_MEND}")
    try:
        values, theirs = np.asarray(arrays[-1][...]), np.asarray(seen[-1])
    except (ValueError, RuntimeError, OSError) as error:
        raise ImageError(f"{path}: its coarsest level cannot be read ({first_line(error)}); {_MEND}") from error
    if not np.array_equal(theirs, values, equal_nan=values.dtype.kind == "f"):
        raise ImageError(f"{path}: ome-zarr reads other values than were written; {_MEND}")


def _metadata(group: zarr.Group) -> dict[str, Any]:
    attributes: dict[str, Any] = group.attrs.asdict()
    inner: dict[str, Any] = attributes.get("ome", attributes)
    return inner
