"""Which file holds the labels of which image, where names say it; and what labels are stored as.

Images and labels may lie in one folder, as Cellpose leaves them (``000.tif``, ``000_masks.tif``, ``000_seg.npy``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import DTYPES
from chorus.pipeline.io.sources.discovery import identity

LABEL_SUFFIXES = ("_masks", "_mask", "_cp_masks", "_labels", "_label", "_seg", "_gt")
"""What follows an image's name in that of its labels, the first one that is there; after them the name alone."""

LABEL_DTYPES = (*DTYPES, "int64", "uint64")
"""As labels are stored: scikit-image and NumPy count in 64 bits."""


def image_of(label: str) -> str:
    """Name of the image that labels of this name belong to."""
    ends = [suffix for suffix in LABEL_SUFFIXES if label.endswith(suffix) and storage.basename(label) != suffix]
    return label[: -len(max(ends, key=len))] if ends else label


def pair_labels(images: Mapping[str, str | None], labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of each image that has some: by its name with a suffix of labels, else by its name alone.

    A file is never its own label. Where a folder holds ``a`` and ``a_masks``, files without such a suffix in it are
    images, so that ``b`` there is not the label of the image ``b``.

    Parameters
    ----------
    images : URL by name; None where it is not known from which file the image was made
    labels : URL by name

    Returns
    -------
    Name of the labels by name of the image.
    """
    pairs = {}
    for name in images:
        candidates = [name + suffix for suffix in LABEL_SUFFIXES]
        label = next((one for one in candidates if one in labels and not _another(one, images, labels)), None)
        if label is not None:
            pairs[name] = label
    for name in images.keys() & labels.keys() - pairs.keys() - set(pairs.values()) - images_among(labels):
        if not _same(images[name], labels[name]):
            pairs[name] = name
    return {name: pairs[name] for name in images if name in pairs}


def images_among(names: Iterable[str]) -> set[str]:
    """Return the names without a suffix of labels in folders where some name stands both with and without one."""
    known = set(names)
    mixed = {_folder(name) for name in known if (image := image_of(name)) != name and image in known}
    return {name for name in known if image_of(name) == name and _folder(name) in mixed}


def stored_labels(pixels: NDArray[Any], url: str) -> NDArray[Any]:
    """Labels that were read, those of 64 bits as int32; raises ImageError where they do not fit."""
    if pixels.dtype.name not in ("int64", "uint64"):
        return pixels
    limits = np.iinfo(np.int32)
    if pixels.size and not (int(pixels.min()) >= limits.min and int(pixels.max()) <= limits.max):
        raise ImageError(f"{url}: has labels beyond 32 bits ({pixels.min()} to {pixels.max()}); renumber them")
    return pixels.astype(np.int32)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _another(label: str, images: Mapping[str, str | None], labels: Mapping[str, str]) -> bool:
    """Whether labels whose name ends with a suffix are those of an image that is called so itself."""
    url = images.get(label)
    return url is not None and not _same(url, labels[label])


def _same(image: str | None, label: str) -> bool:
    return image is not None and identity(image) == identity(label)
