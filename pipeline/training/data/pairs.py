"""Images and their labels: how they are matched and read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Axes, Window
from chorus.pipeline.errors import ImageError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.files.label_files import LABEL_DTYPES, LABEL_SUFFIXES, pair_labels, stored_labels
from chorus.pipeline.io.files.raster_files import find_files, is_zarr
from chorus.pipeline.io.formats.rasters import Raster, only_one
from chorus.pipeline.io.formats.registry import open_rasters
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.models import FailedImage, SourceImage
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.sources.ngff import open_image
from chorus.pipeline.io.sources.reading import choose_channels, open_level, read_window
from chorus.pipeline.training.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """One plane or volume of an image and its labels.

    Attributes
    ----------
    name : unique within a training
    image, label : URLs of raster files, or of an image and of one of its label images in OME-Zarr
    group : name of the image; its planes are never split between training and validation
    kind : how they are read
    channels : indices of the image's channels
    shape : of both, (y, x) or (z, y, x) in pixels
    t, z : indices of the plane; z is 0 for a volume
    """

    name: str
    image: str
    label: str
    group: str
    kind: Literal["raster", "zarr"]
    channels: tuple[int, ...]
    shape: tuple[int, ...]
    t: int = 0
    z: int = 0

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Images and labels that were found.

    Attributes
    ----------
    pairs : sorted by name
    without_label : images, by name
    without_image : labels, by name
    failed : by name, why a pair cannot be used: it cannot be read, or the sizes differ
    """

    pairs: tuple[TrainingPair, ...]
    without_label: tuple[str, ...] = ()
    without_image: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()


def find_pairs(images: str, labels: str, channels: Sequence[str], axes: Axes = "yx") -> Pairs:
    """Match images and labels.

    Parameters
    ----------
    images : folder or glob of TIFF, PNG or JPEG files; or an OME-Zarr image, plate, collection or folder of them
    labels : the same of label files, matched by their path below the folder, see `pair_labels`; it may be the folder
        of the images. For OME-Zarr the name of the label image in each image's ``labels`` group
    channels : names of the channels that members see; names or indices of an image's own
    axes : of what a pair is: every plane of an image, or every volume

    Raises
    ------
    RefusedError
        If a source is missing, or no pair is left.
    """
    find = _zarr_pairs if is_zarr(images) else _raster_pairs
    pairs = find(images, labels, channels, axes)
    if not pairs.pairs:
        reasons = [reason for _, reason in pairs.failed]
        why = reasons[0] if reasons else f"{len(pairs.without_label)} images have no label of their name"
        raise RefusedError(
            f"{labels}: no label fits an image of {images} ({why}); name each label as its image, in another folder or "
            f"with one of {', '.join(LABEL_SUFFIXES)} at its end"
        )
    return pairs


def load_pair(pair: TrainingPair) -> tuple[NDArray[Any], NDArray[np.integer]]:
    """Read the pixels and labels of a pair.

    Returns
    -------
    image : (channels, y, x) or (channels, z, y, x), as stored
    label : the same without channels, integer, as stored

    Raises
    ------
    ImageError
        If either cannot be read, or the labels are no integers.
    """
    whole = Window.whole(pair.shape)
    if pair.kind == "raster":
        with open_rasters(pair.image) as opened:
            image = _read(only_one(opened, pair.image), pair, pair.channels)
        with open_rasters(pair.label, dtypes=LABEL_DTYPES) as opened:
            label = _read(only_one(opened, pair.label), pair, (0,))[0]
    else:
        source = open_image(pair.image, "image", "", pair.name)
        array = open_level(source.url, source.levels[0].path)
        image = read_window(array, source.axes, pair.t, pair.z, pair.channels, whole)
        source = open_image(pair.label, "image", "", pair.name, dtypes=LABEL_DTYPES)
        array = open_level(source.url, source.levels[0].path)
        label = read_window(array, source.axes, pair.t, pair.z, (0,), whole)[0]
    if label.dtype.kind not in "iu":
        raise ImageError(f"{pair.label}: labels are {label.dtype}, not integers; save them as uint8, uint16 or int32")
    if len(image) == 1 and len(np.unique(label)) > 2 and np.array_equal(image[0], label):
        raise ImageError(f"{pair.label}: is a copy of its own image {pair.image}; give labels")
    return image, stored_labels(label, pair.label)


def class_image(label: NDArray[np.integer], settings: TrainSettings, name: str) -> NDArray[np.uint8]:
    """Return the index of each pixel's class.

    Parameters
    ----------
    label : integer, (y, x) or (z, y, x)
    settings : define classes and the meaning of labels
    name : for the message

    Returns
    -------
    NDArray[np.uint8]
        Of the shape of `label`, 0 is background.

    Raises
    ------
    ImageError
        For values that no class has.
    """
    if settings.labels == "instances":
        if label.min(initial=0) < 0:
            raise ImageError(f"{name}: labels go down to {label.min()}; 0 is background and objects count from 1")
        return (label > 0).astype(np.uint8)
    classes = len(settings.classes)
    if classes == 2 and label.max(initial=0) == 255 and np.isin(label, (0, 255)).all():
        return (label > 0).astype(np.uint8)
    if label.size and not (label.min() >= 0 and label.max() < classes):
        raise ImageError(
            f"{name}: labels go from {label.min()} to {label.max()}, but there are {classes} classes "
            f"({', '.join(settings.classes)}); name all classes, or use labels: instances"
        )
    return label.astype(np.uint8)


def _raster_pairs(images: str, labels: str, channels: Sequence[str], axes: Axes) -> Pairs:
    files, label_files = find_files([images]), find_files([labels], labels=True)
    pictures = {file.name.removesuffix(".ome.zarr"): file.url for file in files if not file.failure}
    annotated = {file.name.removesuffix(".ome.zarr"): file.url for file in label_files if not file.failure}
    label_of = pair_labels(pictures, annotated)
    used = {annotated[label] for label in label_of.values()}
    pairs: list[TrainingPair] = []
    failed = [(file.url, file.failure) for file in dict.fromkeys((*files, *label_files)) if file.failure]
    for name, label in sorted(label_of.items()):
        try:
            pairs += _of_rasters(name, pictures[name], annotated[label], channels, axes)
        except ImageError as error:
            failed.append((name, str(error)))
    # In one folder each file is found as an image and as a label.
    lonely = tuple(sorted(name for name, url in pictures.items() if name not in label_of and url not in used))
    known = used | set(pictures.values())
    unused = tuple(sorted(name for name, url in annotated.items() if url not in known))
    return Pairs(tuple(pairs), lonely, unused, tuple(failed))


def _of_rasters(name: str, image: str, label: str, channels: Sequence[str], axes: Axes) -> Iterator[TrainingPair]:
    with open_rasters(image) as opened:
        raster = only_one(opened, image)
        lengths, own = raster.lengths, raster.channels
    with open_rasters(label, dtypes=LABEL_DTYPES) as opened:
        other = only_one(opened, label).lengths
    count = lengths.get("c", 1)
    names = own if len(own) == count else tuple(str(index) for index in range(count))
    yield from _parts(name, image, label, "raster", _chosen(image, names, channels), lengths, other, axes)


def _zarr_pairs(images: str, labels: str, channels: Sequence[str], axes: Axes) -> Pairs:
    pairs: list[TrainingPair] = []
    failed, without_label = [], []
    for source in find_images([images]):
        if isinstance(source, FailedImage):
            failed.append((source.name, source.message))
            continue
        url = inside(storage.join(source.url, "labels"), labels, what="the label")
        if not any(storage.exists(storage.join(url, file)) for file in ("zarr.json", ".zattrs")):
            without_label.append(source.name)
            continue
        try:
            label = open_image(url, "image", "", source.name, dtypes=LABEL_DTYPES)
            pairs += _parts(
                source.name,
                source.url,
                url,
                "zarr",
                choose_channels(source, [], channels),
                _lengths(source),
                _lengths(label),
                axes,
            )
        except ImageError as error:
            failed.append((source.name, str(error)))
    return Pairs(tuple(sorted(pairs, key=lambda pair: pair.name)), tuple(without_label), (), tuple(failed))


def _lengths(image: SourceImage) -> dict[str, int]:
    return dict(zip(image.axes, image.levels[0].shape, strict=True))


def _parts(
    name: str,
    image: str,
    label: str,
    kind: Literal["raster", "zarr"],
    channels: tuple[int, ...],
    lengths: dict[str, int],
    other: dict[str, int],
    axes: Axes,
) -> Iterator[TrainingPair]:
    """Yield a pair per plane or volume; raise ImageError if image and labels differ in size, or there is no volume."""
    size, labelled = ({axis: sizes.get(axis, 1) for axis in "tzyx"} for sizes in (lengths, other))
    if size != labelled or other.get("c", 1) != 1:
        shapes = " and ".join("x".join(str(n) for n in sizes.values()) for sizes in (size, labelled))
        raise ImageError(
            f"{label}: image and labels differ in size ({shapes} in t, z, y, x; {other.get('c', 1)} channels of "
            "labels); give labels of one channel in the image's size"
        )
    if axes == "zyx" and size["z"] == 1:
        raise ImageError(f"{image}: has a single plane; give images with a z axis, or leave --axes zyx out")
    single = [axis for axis in "tz" if axis not in axes]
    shape = tuple(size[axis] for axis in axes)
    several = math.prod(size[axis] for axis in single) > 1
    for indices in itertools.product(*(range(size[axis]) for axis in single)):
        at = dict(zip(single, indices, strict=True))
        suffix = "".join(f":{axis}{index}" for axis, index in at.items()) if several else ""
        yield TrainingPair(name + suffix, image, label, name, kind, channels, shape, **at)


def _chosen(image: str, own: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    """Select channels of a file by name, or all in order if their number fits.

    As `chorus.pipeline.io.sources.reading.choose_channels`, which is for OME-Zarr.
    """
    folded = [name.casefold() for name in own]
    if all(folded.count(name.casefold()) == 1 for name in wanted):
        return tuple(folded.index(name.casefold()) for name in wanted)
    if len(own) == len(wanted):
        return tuple(range(len(own)))
    raise ImageError(
        f"{image}: has the channels {', '.join(own)}, but members are to see {', '.join(wanted)}; name its channels"
    )


def _read(raster: Raster, pair: TrainingPair, channels: Sequence[int]) -> NDArray[Any]:
    """Return some channels of a pair's plane or volume, (channels, y, x) or (channels, z, y, x)."""
    first, last = min(channels), max(channels)
    plane = Window.whole(pair.shape[-2:])
    planes = range(pair.shape[0]) if len(pair.shape) == 3 else (pair.z,)
    read = [raster.read(pair.t, z, range(first, last + 1), plane) for z in planes]
    pixels = np.stack(read, axis=1) if len(pair.shape) == 3 else read[0]
    return pixels[[channel - first for channel in channels]]
