"""The ground truth of each image of a run: found by name, and read window by window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.consensus.annotations import Drawing, find_drawings, open_drawing
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.files.label_files import LABEL_DTYPES, images_among, pair_labels, stored_labels
from chorus.pipeline.io.files.raster_files import find_files, is_zarr
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.models import FailedImage, SourceImage
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.sources.reading import open_level, read_window

ReadLabels = Callable[[int, int, Window], NDArray[np.integer]]
"""Returns (y, x) labels of time point t, plane z and a window."""

TRUTH = "truth"
"""Name of the ground truth where it is read like annotators' drawings."""

_GROUP_FILES = ("zarr.json", ".zattrs")
_WORKERS = 16


@dataclass(frozen=True)
class FoundTruths:
    """Assignment of ground truths to images.

    Attributes
    ----------
    truths : by name of the image in the run
    without_truth : images, by name
    without_image : truths, by name
    failed : by name of the image, why its truth cannot be used
    """

    truths: dict[str, Drawing]
    without_truth: list[str] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Lengths of an image's axes, 1 for an axis that it lacks."""

    t: int
    z: int
    y: int
    x: int

    @classmethod
    def of(cls, axes: str, shape: Iterable[int]) -> Sizes:
        """Return the sizes of an image with these axes and lengths."""
        lengths = dict(zip(axes, shape, strict=True))
        return cls(*(lengths.get(axis, 1) for axis in "tzyx"))

    def __str__(self) -> str:
        return f"{self.t}x{self.z}x{self.y}x{self.x}"


def find_truths(images: Mapping[str, str], truth: str | None, label: str | None) -> FoundTruths:
    """Match the images of a run and their ground truth.

    Parameters
    ----------
    images : URL of the source by name in the run (``a.ome.zarr``, ``plate.ome.zarr/B/02/0``)
    truth : folder or glob of TIFF, PNG or JPEG files whose path below the folder, without suffix, is the image's name
        or ends with it, see `pair_labels`; or OME-Zarr with the images' names; None if it is inside the sources
    label : name in the ``labels`` group of each OME-Zarr; None if the OME-Zarrs of `truth` are label images

    Raises
    ------
    RefusedError
        If `truth` is missing, or fits no image.
    """
    if truth is None:
        if label is None:
            raise RefusedError("no truth is given; use --truth FOLDER, or --truth-label NAME for labels in the sources")
        truths = _existing(
            {name: inside(storage.join(source, "labels"), label, what="the label") for name, source in images.items()}
        )
        matched = FoundTruths(truths, [name for name in images if name not in truths])
        where = f"labels/{label} of the sources"
    else:
        matched = _zarr_truths(images, truth, label) if is_zarr(truth) else _raster_truths(images, truth)
        where = truth
    if not matched.truths and not matched.failed:
        raise RefusedError(
            f"{where}: fits none of the {len(images)} images of the run (such as {next(iter(images), '-')}); name "
            "each truth as its image"
        )
    return matched


@contextmanager
def open_truth(truth: Drawing, sizes: Sizes) -> Iterator[ReadLabels]:
    """Open a ground truth for the duration of the context; of an OME-Zarr the level of the requested size.

    Raises
    ------
    ImageError
        If it cannot be read, has another size or more than one channel, or contains no integers; also when a window is
        read.
    """
    with open_drawing(truth) as labels:
        given, image = Sizes(**labels.lengths), labels.image
        if given == sizes:
            yield labels.read
            return
        levels = [one for one in image.levels if Sizes.of(image.axes, one.shape) == sizes] if image else []
        if not image or not levels:
            raise ImageError(
                f"{truth.url}: is {given} (t, z, y, x), but the prediction is {sizes}; give labels of the image's size"
            )
        array = open_level(image.url, levels[0].path)
        yield lambda t, z, window: stored_labels(read_window(array, image.axes, t, z, (0,), window)[0], truth.url)


def truth_classes(label: NDArray[np.integer], classes: int, where: str) -> NDArray[np.integer]:
    """Return the index of each pixel's class.

    With one foreground class every value but 0 counts as foreground, so that objects and masks of 255 are accepted.

    Parameters
    ----------
    label : (y, x) integer
    classes : number of classes, including the background
    where : for the message

    Returns
    -------
    NDArray[np.integer]
        (y, x), 0 is background; uint8 for two classes, else `label` itself.

    Raises
    ------
    ImageError
        For values that no class has.
    """
    if label.min(initial=0) < 0 or (classes > 2 and label.max(initial=0) >= classes):
        unknown = [int(value) for value in np.unique(label) if not 0 <= value < (classes if classes > 2 else np.inf)]
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise ImageError(
            f"{where}: has the label values {shown}, but the ensemble has the classes 0 to {classes - 1}; renumber them"
        )
    return (label != 0).astype(np.uint8) if classes == 2 else label


def _key(name: str) -> str:
    """Return the name of an image without the suffix of its container: ``plate/B/02/0``."""
    return name.replace(".ome.zarr", "", 1)


def _existing(urls: Mapping[str, str]) -> dict[str, Drawing]:
    """Return the label images in OME-Zarr that exist."""

    def present(url: str) -> bool:
        return any(storage.exists(storage.join(url, file)) for file in _GROUP_FILES)

    with ThreadPoolExecutor(_WORKERS) as pool:
        there = pool.map(present, urls.values())
    return {name: Drawing(TRUTH, url, "zarr") for (name, url), yes in zip(urls.items(), there, strict=True) if yes}


def _zarr_truths(images: Mapping[str, str], truth: str, label: str | None) -> FoundTruths:
    """Match OME-Zarrs by the images' names, or labels within them."""
    by_key: dict[str, SourceImage | FailedImage] = {}
    known: dict[str, SourceImage | FailedImage] = {}
    for one in find_images([truth], dtypes=LABEL_DTYPES):
        # By its path below the folder, as `chorus truth` writes it, or by its name in a run, as fields of plates have.
        below = storage.join(one.root, one.path).removeprefix(storage.normalise(truth)).strip("/")
        by_key[_key(one.name)] = one
        known |= {below.replace(".ome.zarr", "", 1): one, _key(one.name): one}
    if label is None:
        sources = {_key(name): url for name, url in images.items()}
        pairs = pair_labels(sources, {name: storage.join(one.root, one.path) for name, one in known.items()})
    else:  # within the images themselves, or in copies of them
        pairs = {_key(name): _key(name) for name in images if _key(name) in known}
    urls: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name, one in ((name, known[pairs[_key(name)]]) for name in images if _key(name) in pairs):
        if isinstance(one, FailedImage):
            failed[name] = one.message
        else:
            urls[name] = one.url if label is None else inside(storage.join(one.url, "labels"), label, what="the label")
    truths = _existing(urls)
    missing = [name for name in images if name not in truths and name not in failed]
    used = {id(known[key]) for key in pairs.values()}
    images_beside = images_among(by_key)
    unused = sorted(name for name, one in by_key.items() if id(one) not in used and name not in images_beside)
    return FoundTruths(truths, missing, unused, failed)


def _raster_truths(images: Mapping[str, str], truth: str) -> FoundTruths:
    files = {_key(file.name): file for file in find_files([truth], labels=True)}
    # A run names an image by its file name alone; the truth may lie in folders, as the images did originally.
    ends = Counter(key.rpartition("/")[2] for key in files)
    known = {key.rpartition("/")[2]: key for key in files if ends[key.rpartition("/")[2]] == 1}
    known |= {key: key for key in files}
    pairs = pair_labels({_key(name): None for name in images}, {name: files[key].url for name, key in known.items()})
    chosen = {name: files[known[pairs[_key(name)]]] for name in images if _key(name) in pairs}
    truths = {name: Drawing(TRUTH, file.url, "raster", file.stamp) for name, file in chosen.items()}
    used = {file.url for file in chosen.values()}
    unused = sorted(key for key in files.keys() - images_among(files) if files[key].url not in used)
    return FoundTruths(truths, [name for name in images if name not in truths], unused)


def find_experts(images: Iterable[str], folder: str, patterns: Sequence[str]) -> dict[str, tuple[Drawing, ...]]:
    """Return the annotators' drawings by name of the image, for images that were drawn; see `find_drawings`.

    Raises
    ------
    RefusedError
        If `folder` is missing or has another layout, or nobody drew any of the images.
    """
    drawn = {image.name: image.drawings for image in find_drawings(folder, patterns).images}
    drawings = {name: drawn[_key(name)] for name in images if _key(name) in drawn}
    if not drawings:
        raise RefusedError(
            f"{folder}: no expert drew any image of the run; lay it out as <expert>/<image>, named as the images"
        )
    return drawings
