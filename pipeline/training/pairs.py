"""Images and their labels: which belong together, how they are read, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import ImageError, RefusedError
from pipeline.geometry import Window
from pipeline.images import find_images
from pipeline.layout import FailedImage, SourceImage
from pipeline.ngff import open_image
from pipeline.raster_files import find_files
from pipeline.rasters import PartOf, Raster, open_rasters
from pipeline.reading import choose_channels, open_level, read_window
from pipeline.training.settings import TrainSettings

# What a label's file may be called besides its image's own name.
_LABEL_SUFFIXES = ("", "_mask", "_masks", "_label", "_labels")
# What a pair takes in memory, per pixel: float32 channels, class and flows, and the order of its pixels by class.
_BYTES_PER_CHANNEL, _BYTES_PER_LABEL = 4, 4 + 4 + 8
_BYTES_PER_NETWORK = 1 << 30


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """One plane of an image and its labels.

    Attributes
    ----------
    name : unique within a training
    image, label : URLs of raster files, or of an image and of one of its label images in OME-Zarr
    group : name of the image; its planes are never split between training and validation
    kind : how they are read
    channels : indices of the image's channels
    height, width : of both, in pixels
    t, z : indices of the plane
    """

    name: str
    image: str
    label: str
    group: str
    kind: Literal["raster", "zarr"]
    channels: tuple[int, ...]
    height: int
    width: int
    t: int = 0
    z: int = 0


@dataclass(frozen=True, slots=True)
class Pairs:
    """What was found to train on.

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


@dataclass(frozen=True, slots=True)
class Checked:
    """What the labels of all pairs hold.

    Attributes
    ----------
    empty : names of the pairs without any foreground; they are trained on
    objects : per pair, where labels are instances
    pixels : per class, in all pairs
    """

    empty: tuple[str, ...]
    objects: int | None
    pixels: tuple[int, ...]


def find_pairs(images: str, labels: str, channels: Sequence[str]) -> Pairs:
    """Match images and labels.

    Parameters
    ----------
    images : folder or glob of TIFF, PNG or JPEG files; or an OME-Zarr image, plate, collection or folder of them
    labels : the same of label files, matched by their path below the folder without suffix (``_mask``, ``_label``
        and their plurals may follow); for OME-Zarr the name of the label image in each image's ``labels`` group
    channels : names of the channels that members see; names or indices of an image's own

    Raises
    ------
    RefusedError
        where a source is missing, or no pair is left
    """
    found = _zarr_pairs(images, labels, channels) if _is_zarr(images) else _raster_pairs(images, labels, channels)
    if not found.pairs:
        reasons = [reason for _, reason in found.failed]
        why = reasons[0] if reasons else f"{len(found.without_label)} images have no label of their name"
        raise RefusedError(f"{labels}: no label fits an image of {images} ({why}); give pairs of equal names")
    return found


def load_pair(pair: TrainingPair) -> tuple[NDArray[Any], NDArray[np.integer]]:
    """Raw pixels (channels, y, x) and labels (y, x), both as stored.

    Raises
    ------
    ImageError
        where either cannot be read, or the labels are no integers
    """
    whole = Window.of(0, pair.height, 0, pair.width)
    if pair.kind == "raster":
        with open_rasters(pair.image) as opened:
            image = _select(_first(opened, pair.image).read, pair, whole)
        with open_rasters(pair.label) as opened:
            label = _first(opened, pair.label).read(pair.t, pair.z, range(1), whole)[0]
    else:
        source = open_image(pair.image, "image", "", pair.name)
        array = open_level(source.url, source.levels[0].path)
        image = read_window(array, source.axes, pair.t, pair.z, pair.channels, whole)
        source = open_image(pair.label, "image", "", pair.name)
        array = open_level(source.url, source.levels[0].path)
        label = read_window(array, source.axes, pair.t, pair.z, (0,), whole)[0]
    if label.dtype.kind not in "iu":
        raise ImageError(f"{pair.label}: labels are {label.dtype}, not integers; save them as uint8, uint16 or int32")
    return image, label


def class_image(label: NDArray[np.integer], settings: TrainSettings, name: str) -> NDArray[np.uint8]:
    """(y, x) index of each pixel's class; raises ImageError for values that no class has."""
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


def check_memory(pairs: Sequence[TrainingPair], settings: TrainSettings, workers: int) -> int:
    """Bytes that `workers` folds at a time take on this machine, estimated before anything is loaded.

    Raises
    ------
    RefusedError
        where they are more than is available
    """
    channels = len(settings.channels) * (2 if settings.augment.clahe else 1)
    per_pixel = _BYTES_PER_CHANNEL * channels + _BYTES_PER_LABEL
    each = sum(pair.height * pair.width for pair in pairs) * per_pixel + _BYTES_PER_NETWORK
    needed, available = workers * each, psutil.virtual_memory().available
    if needed > available:
        raise RefusedError(
            f"training: {workers} folds at a time need about {needed / 1e9:.1f} GB for {len(pairs)} images, and "
            f"{available / 1e9:.1f} GB are free; train fewer folds at a time, or on fewer or smaller images"
        )
    return needed


def check_pairs(pairs: Sequence[TrainingPair], settings: TrainSettings) -> Checked:
    """Read every label; raises RefusedError where nothing can be learnt from them, or they are too few for folds."""
    groups = {pair.group for pair in pairs}
    if len(groups) < max(2, settings.folds):
        raise RefusedError(
            f"training: {len(groups)} images with labels are fewer than {max(2, settings.folds)} folds need; annotate "
            "more images or ask for fewer folds"
        )
    pixels, objects, empty = np.zeros(len(settings.classes), np.int64), 0, []
    for pair in pairs:
        label = load_pair(pair)[1]
        counted = np.bincount(class_image(label, settings, pair.label).ravel(), minlength=len(pixels))
        pixels += counted
        objects += int(np.count_nonzero(np.unique(label)))
        if not counted[1:].any():
            empty.append(pair.name)
    if not pixels[1:].any():
        raise RefusedError("training: every label image is empty; annotate some objects, or check --labels")
    missing = [name for name, count in zip(settings.classes, pixels, strict=True) if not count]
    if missing:
        raise RefusedError(
            f"training: no label holds any pixel of class {', '.join(missing)}; annotate it, or name only the classes "
            "that there are"
        )
    return Checked(tuple(empty), objects if settings.labels == "instances" else None, tuple(pixels.tolist()))


@dataclass(frozen=True, slots=True)
class Split:
    """Names of the groups of pairs that a fold is trained and validated on, sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def split(names: Sequence[str], folds: int, seed: int) -> list[Split]:
    """Folds whose validation shares are disjoint and together everything; the same for any order of `names`.

    One fold keeps a fifth apart. Raises RefusedError for fewer names than folds.
    """
    from sklearn.model_selection import KFold  # takes a second to import

    ordered = sorted(set(names))
    parts = folds if folds > 1 else max(2, min(5, len(ordered)))
    if len(ordered) < parts:
        raise RefusedError(f"training: {len(ordered)} images are fewer than {parts} folds; ask for fewer folds")
    shuffled = KFold(n_splits=parts, shuffle=True, random_state=seed).split(ordered)
    found = [Split(*(tuple(ordered[i] for i in sorted(part)) for part in parts_of)) for parts_of in shuffled]
    return found[:folds]


def _is_zarr(images: str) -> bool:
    """Whether `images` are OME-Zarr: by name, or where a folder holds any of that name at its top."""
    url = storage.normalise(images)
    if url.endswith(".zarr") or "*" in url:
        return url.endswith(".zarr")
    fs, path = storage.filesystem(url)
    if not fs.isdir(path):
        return False
    names = {storage.basename(name) for name in fs.ls(path, detail=False)}
    return bool(names & {"zarr.json", ".zgroup"}) or any(name.endswith(".zarr") for name in names)


def _raster_pairs(images: str, labels: str, channels: Sequence[str]) -> Pairs:
    pictures = {file.name.removesuffix(".ome.zarr"): file.url for file in find_files([images])}
    annotated = {file.name.removesuffix(".ome.zarr"): file.url for file in find_files([labels])}
    pairs: list[TrainingPair] = []
    failed, without_label, used = [], [], set()
    for name, url in sorted(pictures.items()):
        key = next((name + suffix for suffix in _LABEL_SUFFIXES if name + suffix in annotated), None)
        if key is None:
            without_label.append(name)
            continue
        used.add(key)
        try:
            pairs += _raster_planes(name, url, annotated[key], channels)
        except ImageError as error:
            failed.append((name, str(error)))
    unused = tuple(sorted(annotated.keys() - used))
    return Pairs(tuple(pairs), tuple(without_label), unused, tuple(failed))


def _raster_planes(name: str, image: str, label: str, channels: Sequence[str]) -> Iterator[TrainingPair]:
    with open_rasters(image) as opened:
        raster = _first(opened, image)
        lengths, own = raster.lengths, raster.channels
    with open_rasters(label) as opened:
        other = _first(opened, label).lengths
    count = lengths.get("c", 1)
    names = own if len(own) == count else tuple(str(index) for index in range(count))
    yield from _planes(name, image, label, "raster", _chosen(image, names, channels), lengths, other)


def _zarr_pairs(images: str, labels: str, channels: Sequence[str]) -> Pairs:
    pairs: list[TrainingPair] = []
    failed, without_label = [], []
    for source in find_images([images]):
        if isinstance(source, FailedImage):
            failed.append((source.name, source.message))
            continue
        url = storage.join(source.url, "labels", labels)
        if not any(storage.exists(storage.join(url, file)) for file in ("zarr.json", ".zattrs")):
            without_label.append(source.name)
            continue
        try:
            label = open_image(url, "image", "", source.name)
            pairs += _planes(
                source.name,
                source.url,
                url,
                "zarr",
                choose_channels(source, [], channels),
                _lengths(source),
                _lengths(label),
            )
        except ImageError as error:
            failed.append((source.name, str(error)))
    return Pairs(tuple(sorted(pairs, key=lambda pair: pair.name)), tuple(without_label), (), tuple(failed))


def _lengths(image: SourceImage) -> dict[str, int]:
    return dict(zip(image.axes, image.levels[0].shape, strict=True))


def _planes(
    name: str,
    image: str,
    label: str,
    kind: Literal["raster", "zarr"],
    channels: tuple[int, ...],
    lengths: dict[str, int],
    other: dict[str, int],
) -> Iterator[TrainingPair]:
    """A pair per plane; raises ImageError where image and labels differ in size."""
    size, labelled = ({axis: sizes.get(axis, 1) for axis in "tzyx"} for sizes in (lengths, other))
    if size != labelled or other.get("c", 1) != 1:
        shapes = " and ".join("x".join(str(n) for n in sizes.values()) for sizes in (size, labelled))
        raise ImageError(
            f"{label}: image and labels differ in size ({shapes} in t, z, y, x; {other.get('c', 1)} channels of "
            "labels); give labels of one channel in the image's size"
        )
    several = size["t"] * size["z"] > 1
    for t in range(size["t"]):
        for z in range(size["z"]):
            plane = f"{name}:t{t}:z{z}" if several else name
            yield TrainingPair(plane, image, label, name, kind, channels, size["y"], size["x"], t, z)


def _chosen(image: str, own: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    """As `pipeline.reading.choose_channels` for a file: by name, else all in order where their number fits."""
    folded = [name.casefold() for name in own]
    if all(folded.count(name.casefold()) == 1 for name in wanted):
        return tuple(folded.index(name.casefold()) for name in wanted)
    if len(own) == len(wanted):
        return tuple(range(len(own)))
    raise ImageError(
        f"{image}: has the channels {', '.join(own)}, but members are to see {', '.join(wanted)}; name its channels"
    )


def _first(opened: list[Raster] | PartOf, url: str) -> Raster:
    if isinstance(opened, PartOf):
        raise ImageError(f"{url}: its planes begin in {opened.url}; give that file alone")
    return opened[0]


def _select(read: Any, pair: TrainingPair, whole: Window) -> NDArray[Any]:
    first, last = min(pair.channels), max(pair.channels)
    pixels: NDArray[Any] = read(pair.t, pair.z, range(first, last + 1), whole)
    return pixels[[channel - first for channel in pair.channels]]
