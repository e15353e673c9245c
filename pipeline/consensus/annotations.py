"""Find and read the annotators' drawings of each image: ``EXPERTS/<expert>/<image>``.

A drawing is a TIFF, PNG or JPEG file of labels, an OME-Zarr image of labels, or a label image of an OME-Zarr image.
Drawings of one image have the same path below their annotator's folder, except for the suffix and for what
`chorus.pipeline.io.files.label_files` takes off the names of labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.files.label_files import LABEL_DTYPES, image_of, pair_labels, stored_labels
from chorus.pipeline.io.files.raster_files import find_files, is_zarr
from chorus.pipeline.io.formats.rasters import only_one
from chorus.pipeline.io.formats.registry import open_rasters
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.models import FailedImage, SourceImage
from chorus.pipeline.io.sources.discovery import find_images, identity
from chorus.pipeline.io.sources.ngff import open_image
from chorus.pipeline.io.sources.reading import open_level, read_window
from chorus.pipeline.io.storage_failures import failure_sentence


@dataclass(frozen=True, slots=True)
class Drawing:
    """One annotator's labels of one image.

    Attributes
    ----------
    expert : name of the folder
    url : of a raster file, or of a group with the multiscales of labels
    kind : how it is read
    stamp : changes with the content of a raster file; empty for OME-Zarr
    failure : why it cannot be read, if that is known already
    """

    expert: str
    url: str
    kind: Literal["raster", "zarr"]
    stamp: str = ""
    failure: str = ""


def digest_of(drawings: Iterable[Drawing]) -> str:
    """Return a digest of some drawings in their order; it changes if others take their place, or a file changed."""
    lines = [f"{drawing.expert} {drawing.url} {drawing.stamp}" for drawing in drawings]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """An image and its drawings, in the order of the annotators' names; `missing` are the annotators without one."""

    name: str
    drawings: tuple[Drawing, ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Drawings:
    """All drawings found: the annotators' names, sorted; folders that were left out; images by name."""

    experts: tuple[str, ...]
    left_out: tuple[str, ...]
    images: tuple[DrawnImage, ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """An open drawing.

    Attributes
    ----------
    url : as in `Drawing`
    axes, shape : letters of ``tzyx`` in this order, and their lengths
    dtype : of the stored labels, an integer type
    image : metadata of an OME-Zarr
    read : returns the (y, x) labels of time point t, plane z and a window
    """

    url: str
    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.integer]
    image: SourceImage | None
    read: Callable[[int, int, Window], NDArray[np.integer]]

    @property
    def lengths(self) -> dict[str, int]:
        """Length per letter of ``tzyx``; 1 for an axis that it lacks."""
        return dict.fromkeys("tzyx", 1) | dict(zip(self.axes, self.shape, strict=True))


def find_drawings(
    root: str, patterns: Sequence[str] = (), label: str | None = None, *, without: str | None = None
) -> Drawings:
    """Find the drawings below `root`, which has a folder per annotator.

    Parameters
    ----------
    root : URL of the folder
    patterns : names or patterns (``expert_*``) of the annotators' folders; empty takes all
    label : name of the label image within each OME-Zarr image; None takes the images themselves for labels
    without : URL of a folder that is no expert's, such as that of the results; None for none

    Raises
    ------
    RefusedError
        If no folder is left, a pattern matches none, or a folder contains nothing to read.
    """
    root = storage.normalise(root)
    folders = [
        name for name in _folders(root) if not without or identity(storage.join(root, name)) != identity(without)
    ]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in folders):
            raise RefusedError(f"{root}: --expert {pattern} is none of its folders ({', '.join(folders) or 'none'})")
    experts = [name for name in folders if not patterns or any(fnmatchcase(name, one) for one in patterns)]
    if not experts:
        raise RefusedError(f"{root}: holds no folders; give a folder with one folder of drawings per expert")
    by_image: dict[str, dict[str, Drawing]] = {}
    for expert in experts:
        for name, drawing in _drawings(expert, storage.join(root, expert), label):
            by_image.setdefault(name, {})[expert] = drawing
    images = []
    for name, drawings in sorted(by_image.items()):
        missing = tuple(expert for expert in experts if expert not in drawings)
        images.append(DrawnImage(name, tuple(drawings[expert] for expert in experts if expert in drawings), missing))
    left_out = tuple(name for name in folders if name not in experts)
    return Drawings(tuple(experts), left_out, tuple(images))


@contextmanager
def open_drawing(drawing: Drawing) -> Iterator[Labels]:
    """Open a drawing for the duration of the context.

    Raises
    ------
    ImageError
        If it cannot be read, or contains no labels: several channels, or numbers that are not integers.
    """
    if drawing.failure:
        raise ImageError(drawing.failure)
    if drawing.kind == "zarr":
        yield _open_zarr(drawing.url)
        return
    with open_rasters(drawing.url, dtypes=LABEL_DTYPES) as opened:
        raster = only_one(opened, drawing.url)
        _check(drawing.url, raster.dtype, raster.lengths.get("c", 1))
        axes = raster.axes.replace("c", "")
        yield Labels(
            drawing.url,
            axes,
            tuple(raster.lengths[axis] for axis in axes),
            np.dtype(raster.dtype),
            None,
            lambda t, z, window: stored_labels(raster.read(t, z, range(1), window)[0], drawing.url),
        )


def class_labels(labels: NDArray[np.integer], classes: int, url: str) -> NDArray[np.integer]:
    """Return labels as classes 0 to `classes` - 1.

    Of two classes everything that is not 0 is foreground, as in masks of 0 and 255.

    Parameters
    ----------
    labels : (y, x) integer
    classes : number of classes, including the background
    url : for the message

    Returns
    -------
    NDArray[np.integer]
        (y, x); uint8 for two classes, else `labels` itself.

    Raises
    ------
    ImageError
        For values that no class has.
    """
    if classes == 2:
        foreground: NDArray[np.uint8] = (labels != 0).astype(np.uint8)
        return foreground
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ImageError(
            f"{url}: labels go from {labels.min()} to {labels.max()}, but --classes {classes} are 0 to {classes - 1}; "
            "give the right number, or --instances"
        )
    return labels


def _open_zarr(url: str) -> Labels:
    image = open_image(url, "image", "", storage.basename(url), dtypes=LABEL_DTYPES)
    lengths = dict(zip(image.axes, image.levels[0].shape, strict=True))
    _check(url, image.levels[0].dtype, lengths.get("c", 1))
    array = open_level(image.url, image.levels[0].path)
    axes = "".join(axis for axis in "tzyx" if axis in lengths)
    return Labels(
        url,
        axes,
        tuple(lengths[axis] for axis in axes),
        np.dtype(image.levels[0].dtype),
        image,
        lambda t, z, window: stored_labels(read_window(array, image.axes, t, z, (0,), window)[0], url),
    )


def _check(url: str, dtype: str, channels: int) -> None:
    if np.dtype(dtype).kind not in "iu":
        raise ImageError(f"{url}: labels are {dtype}, not integers; save them as uint8, uint16 or int32")
    if channels != 1:
        raise ImageError(f"{url}: has {channels} channels; save labels as an image of one channel")


def _folders(root: str) -> list[str]:
    """Return the names of the folders in `root`, sorted, without hidden ones."""
    fs, path = storage.filesystem(root)
    try:
        entries = fs.ls(path, detail=True)
    except OSError as error:
        raise RefusedError(failure_sentence(error, root) or f"{root}: {error}") from error
    names = [storage.basename(entry["name"]) for entry in entries if entry["type"] == "directory"]
    return sorted(name for name in names if not name.startswith("."))


def _drawings(expert: str, folder: str, label: str | None) -> Iterator[tuple[str, Drawing]]:
    """Yield (name of the image, drawing) of everything in an annotator's folder."""
    if not is_zarr(folder):
        files = {file.name.removesuffix(".ome.zarr"): file for file in find_files([folder], labels=True)}
        label_of = pair_labels(dict.fromkeys(map(image_of, files)), {name: file.url for name, file in files.items()})
        for name, label in label_of.items():
            yield name, Drawing(expert, files[label].url, "raster", files[label].stamp, files[label].failure)
        return
    for image in find_images([folder]):
        name = image.name.replace(".ome.zarr", "", 1)
        if isinstance(image, FailedImage):
            yield name, Drawing(expert, image.root, "zarr", "", image.message)
        else:
            url = inside(storage.join(image.url, "labels"), label, what="the label") if label else image.url
            if not label or any(storage.exists(storage.join(url, file)) for file in ("zarr.json", ".zattrs")):
                yield name, Drawing(expert, url, "zarr")
