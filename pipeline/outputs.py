"""Where the results of one image are stored: its groups, its arrays, and the writing of one shard.

::

    <url>                      NGFF group: the posterior as a multiscales image
      s0, s1, ...              posterior, axes (t, c, z, y, x as in the source)
      labels/semantic          multiscales label image with ``image-label`` colours and names
        s0, s1, ...

Every document and every shard is encoded in memory and put whole, so that a writer never reads before it
writes: a shard that a killed process left torn is replaced like any other, and the bytes are the same on every
kind of storage. Nothing that exists is ever deleted, except shards whose new content is background only (Zarr
leaves those out).

An image without a posterior has only label arrays; its group is then a multiscales of these arrays (paths
``labels/semantic/s0``, ...), because viewers and plates look for an image first and find ``labels`` from there.
There is no consolidated metadata: groups are prepared one by one, and it would be out of date with the next.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from ome_zarr_models.common.image_label_types import Color, Property, Source
from ome_zarr_models.common.omero import Channel, Omero
from ome_zarr_models.common.omero import Window as ContrastWindow
from ome_zarr_models.v04.image_label import ImageLabelAttrs as ImageLabelAttrsV04
from ome_zarr_models.v04.image_label_types import Label as LabelV04
from ome_zarr_models.v05.axes import Axis
from ome_zarr_models.v05.image import ImageAttrs
from ome_zarr_models.v05.image_label import ImageLabelAttrs
from ome_zarr_models.v05.image_label_types import Label
from ome_zarr_models.v05.labels import LabelsAttrs
from ome_zarr_models.v05.multiscales import Dataset, Multiscale
from zarr.codecs import ZstdCodec

from pipeline import storage
from pipeline.containers import dump, group_documents, put_documents, storage_errors
from pipeline.errors import RefusedError
from pipeline.geometry import RegionGrid, Window
from pipeline.layout import ImageLayout

LABEL_NAME = "semantic"
LABELS = f"labels/{LABEL_NAME}"

# Measured on a float16 posterior of 5 x 2048 x 2048: level 3 takes 1.6 times as long to write as level 1 and is
# 2 % smaller; for labels level 1 is both faster and smaller.
ZSTD_LEVEL = 1

AXIS_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
VARIANCE_COLORS = {"uncertainty": "FFFFFF", "epistemic": "FFB000", "aleatoric": "00B7FF"}
BACKGROUND_COLOR = "808080"


@dataclass(frozen=True, slots=True)
class ArrayPlan:
    """Everything that defines a stored array; `path` is relative to its image's group, `axes` name the dimensions.

    `shards` is None for Zarr v2, which has none: each chunk is an object there.
    """

    path: str
    axes: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: str

    def create(self, objects: dict[str, Any]) -> zarr.Array[Any]:
        """The array, empty, in memory: `objects` gets its documents and, when it is written to, its shards."""
        common: dict[str, Any] = {
            "store": objects,
            "shape": self.shape,
            "chunks": self.chunks,
            "dtype": self.dtype,
            "fill_value": 0,
        }
        if self.shards is None:
            # Blosc rather than plain zstd: readers of NGFF 0.4 in Java know no other zstd.
            common["compressors"] = {"id": "blosc", "cname": "zstd", "clevel": ZSTD_LEVEL, "shuffle": 0}
            common["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
            return zarr.create_array(**common, zarr_format=2)
        common["compressors"] = ZstdCodec(level=ZSTD_LEVEL)
        return zarr.create_array(**common, shards=self.shards, dimension_names=list(self.axes), zarr_format=3)

    def documents(self) -> dict[str, bytes]:
        """Its metadata files, by path below the image's group."""
        objects: dict[str, Any] = {}
        self.create(objects)
        return {f"{self.path}/{key}": value.to_bytes() for key, value in objects.items()}

    def encode(self, selection: tuple[slice, ...], values: NDArray[Any]) -> dict[str, bytes | None]:
        """The objects that hold `selection`, by path below the image's group; None for one that is all zero.

        `selection` must cover whole shards (or reach the array's end): what else is in them becomes zero.
        """
        objects: dict[str, Any] = {}
        array = self.create(objects)
        array[selection] = values
        edges = self.shards or self.chunks
        touched = (
            range(part.start // edge, -(-part.stop // edge)) for part, edge in zip(selection, edges, strict=True)
        )
        keys = (array.metadata.encode_chunk_key(index) for index in itertools.product(*touched))
        return {f"{self.path}/{key}": objects[key].to_bytes() if key in objects else None for key in keys}


def chunk_edge(length: int, chunk: int) -> int:
    """Edge of a chunk on an axis of `length` pixels: `chunk`, or less (a multiple of 16) where that is enough."""
    return min(chunk, -(-length // 16) * 16)


def shard_edge(length: int, chunk: int, region: int) -> int:
    """Edge of a shard on an axis of `length` pixels: `region`, or the chunks that a shorter axis needs.

    So the regions of the plane and its shards are the same windows. Raises ValueError where `region` is no
    multiple of `chunk`.
    """
    if region % chunk:
        raise ValueError(f"region {region} is no multiple of chunk {chunk}")
    edge = chunk_edge(length, chunk)
    return region if length > region else -(-length // edge) * edge


def region_grid(layout: ImageLayout, level: int) -> RegionGrid:
    """The shards of pyramid `level`: its plane, halved `level` times (rounded up), cut into regions."""
    return RegionGrid(-(-layout.height // 2**level), -(-layout.width // 2**level), layout.region)


def posterior_axes(layout: ImageLayout) -> str:
    return f"tc{layout.axes[1:]}" if layout.axes.startswith("t") else f"c{layout.axes}"


def posterior_plan(layout: ImageLayout, level: int) -> ArrayPlan:
    return _plan(layout, level, f"s{level}", posterior_axes(layout), layout.dtype, sharded=True)


def label_plan(layout: ImageLayout, level: int) -> ArrayPlan:
    dtype = "uint8" if len(layout.classes) <= 256 else "uint16"
    sharded = layout.labels_ngff == "0.5"
    return _plan(layout, level, f"{LABELS}/s{level}", layout.axes, dtype, sharded=sharded)


def _plan(layout: ImageLayout, level: int, path: str, axes: str, dtype: str, *, sharded: bool) -> ArrayPlan:
    grid, channels = region_grid(layout, level), len(layout.channels)
    lengths = dict(zip(layout.axes, layout.shape, strict=True)) | {
        "c": channels,
        "y": grid.height,
        "x": grid.width,
    }
    edges = {axis: chunk_edge(lengths[axis], layout.chunk) for axis in "yx"}
    shards = {axis: shard_edge(lengths[axis], layout.chunk, layout.region) for axis in "yx"} | {"c": channels}
    return ArrayPlan(
        path,
        axes,
        tuple(lengths[axis] for axis in axes),
        tuple(edges.get(axis, 1) for axis in axes),
        tuple(shards.get(axis, 1) for axis in axes) if sharded else None,
        dtype,
    )


def prepare_image(layout: ImageLayout) -> None:
    """Create the groups and arrays of `layout`, or those of them that are missing.

    Any number of processes may do so at once: all write the same bytes.

    Raises
    ------
    RefusedError : an array of another form is there already, as after a run with other settings
    OutputError : storage does not take it
    """
    shared = layout.labels_url == layout.url
    images: dict[str, bytes] = {}
    if layout.channels:
        for level in range(layout.levels):
            images |= posterior_plan(layout, level).documents()
    if layout.channels or shared:
        images |= group_documents("", {"ome": dump(_image_attributes(layout))}, "0.5")
    labels = _label_documents(layout)
    put_documents(layout.url, images | labels if shared else images)
    if not shared:
        put_documents(layout.labels_url, labels)
    _list_labels(layout, lambda names: names if LABEL_NAME in names else [*names, LABEL_NAME])


def write_region(
    layout: ImageLayout,
    t: int,
    z: int,
    window: Window,
    posterior: NDArray[np.floating[Any]] | None,
    labels: NDArray[np.integer[Any]],
) -> None:
    """Write one region of the full resolution: one object per array, whatever was there before.

    Parameters
    ----------
    t, z : the plane; 0 where the image has no such axis
    window : a window of ``RegionGrid(layout.height, layout.width, layout.region)``
    posterior : (channels, y, x), cast to ``layout.dtype``; None where none is kept
    labels : (y, x), values of classes

    Raises
    ------
    OutputError : storage does not take it
    """
    write_shard(layout, 0, t, z, window, posterior, labels)


def write_shard(
    layout: ImageLayout,
    level: int,
    t: int,
    z: int,
    window: Window,
    posterior: NDArray[np.floating[Any]] | None,
    labels: NDArray[np.integer[Any]],
) -> None:
    """As `write_region`, for a window of ``region_grid(layout, level)``; raises ValueError for any other."""
    grid = region_grid(layout, level)
    index = window.y.start // grid.size * grid.columns + window.x.start // grid.size
    if not 0 <= index < grid.count or grid.window(index) != window:
        raise ValueError(f"{window} is no region of {grid}")
    expected = (len(layout.channels), *window.shape)
    given = (0, *labels.shape) if posterior is None else posterior.shape
    if given != expected or labels.shape != window.shape:
        raise ValueError(f"posterior {given} and labels {labels.shape} where {expected} is stored")
    at = {"t": slice(t, t + 1), "c": slice(0, expected[0]), "z": slice(z, z + 1)}
    at |= {"y": window.y.slice, "x": window.x.slice}
    if posterior is not None:
        _put(layout.url, posterior_plan(layout, level), at, posterior)
    _put(layout.labels_url, label_plan(layout, level), at, labels)


def _put(url: str, plan: ArrayPlan, at: Mapping[str, slice], values: NDArray[Any]) -> None:
    selection = tuple(at[axis] for axis in plan.axes)
    shape = tuple(part.stop - part.start for part in selection)
    objects = plan.encode(selection, values.astype(plan.dtype, copy=False).reshape(shape))
    with storage_errors(url):
        for path, data in objects.items():
            if data is not None:
                storage.write_bytes(storage.join(url, path), data)
            else:
                _remove(storage.join(url, path))


def _remove(url: str) -> None:
    """Remove an object, if there is one: what it held is background now."""
    fs, path = storage.filesystem(url)
    with suppress(FileNotFoundError):
        fs.rm_file(path)


def open_posterior(url: str, level: int = 0) -> zarr.Array[Any]:
    """The posterior of the image group at `url`, read-only; raises RefusedError where there is none."""
    return _open(url, f"s{level}")


def open_labels(url: str, level: int = 0) -> zarr.Array[Any]:
    """The label image below the image group at `url` (``labels_url``), read-only; RefusedError where none is."""
    return _open(url, f"{LABELS}/s{level}")


def _open(url: str, path: str) -> zarr.Array[Any]:
    try:
        return zarr.open_array(storage.store(url, read_only=True), path=path, mode="r")
    except FileNotFoundError as error:
        raise RefusedError(f"{url}: has no array {path}; run predict to its end first") from error


def labels_present(layout: ImageLayout) -> bool:
    """Whether a label image of our name is where `prepare_image` would put it."""
    document = "zarr.json" if layout.labels_ngff == "0.5" else ".zgroup"
    return storage.exists(storage.join(layout.labels_url, LABELS, document))


def remove_labels(layout: ImageLayout) -> None:
    """Delete our label image, its entry in ``labels``, and that group where it held no other label.

    Raises
    ------
    OutputError : storage does not allow it
    """
    with storage_errors(layout.labels_url):
        _remove_folder(storage.join(layout.labels_url, LABELS))
        _list_labels(layout, lambda names: [name for name in names if name != LABEL_NAME])
        fs, folder = storage.filesystem(storage.join(layout.labels_url, "labels"))
        if all(file.rpartition("/")[0] == folder for file in fs.find(folder)):
            _remove_folder(storage.join(layout.labels_url, "labels"))  # only its own documents are left


def _remove_folder(url: str) -> None:
    """Remove what is below `url`, file by file on buckets: fsspec's `rm` reads ``a[1]`` as a pattern."""
    fs, path = storage.filesystem(url)
    if isinstance(fs, LocalFileSystem):
        if fs.exists(path):
            fs.rm(path, recursive=True)
        return
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(fs.rm_file, fs.find(path)))


def _list_labels(layout: ImageLayout, edit: Callable[[list[str]], list[str]]) -> None:
    """Change the list in the ``labels`` group and nothing else in it; create the group where there is none."""
    ngff = layout.labels_ngff
    url = storage.join(layout.labels_url, "labels", "zarr.json" if ngff == "0.5" else ".zattrs")
    with storage_errors(layout.labels_url):
        try:
            document = json.loads(storage.read_bytes(url))
        except FileNotFoundError:
            fresh = {"labels": edit([])}
            attributes = {"ome": dump(LabelsAttrs(version="0.5", **fresh))} if ngff == "0.5" else fresh
            put_documents(layout.labels_url, group_documents("labels", attributes, ngff))
            return
        attributes = document.setdefault("attributes", {}).setdefault("ome", {}) if ngff == "0.5" else document
        names = attributes.get("labels", [])
        if (edited := edit(names)) != names:
            attributes["labels"] = edited
            storage.write_bytes(url, json.dumps(document, indent=2).encode())


def _label_documents(layout: ImageLayout) -> dict[str, bytes]:
    """The label image: its group and its arrays."""
    documents: dict[str, bytes] = {}
    for level in range(layout.levels):
        documents |= label_plan(layout, level).documents()
    multiscale = _multiscale(layout, layout.axes, "s", LABEL_NAME, "nearest")
    label = _label(layout)
    if layout.labels_ngff == "0.5":
        new = {"version": "0.5", "multiscales": [multiscale], "image-label": label}
        attributes = {"ome": dump(ImageLabelAttrs.model_validate(new))}
    else:
        multiscale_04 = multiscale.to_version("0.4").model_copy(update={"version": "0.4"})
        label_04 = LabelV04.model_validate(dump(label) | {"version": "0.4"})
        old = {"multiscales": [multiscale_04], "image-label": label_04}
        attributes = dump(ImageLabelAttrsV04.model_validate(old))
    return documents | group_documents(LABELS, attributes, layout.labels_ngff)


def _image_attributes(layout: ImageLayout) -> ImageAttrs:
    name = storage.basename(layout.url).removesuffix(".zarr").removesuffix(".ome")
    if not layout.channels:
        labels = _multiscale(layout, layout.axes, f"{LABELS}/s", name, "nearest")
        return ImageAttrs(version="0.5", multiscales=[labels])
    posterior = _multiscale(layout, posterior_axes(layout), "s", name, "mean")
    omero = Omero(channels=[_channel(layout, channel) for channel in layout.channels])
    return ImageAttrs.model_validate({"version": "0.5", "multiscales": [posterior], "omero": dump(omero)})


def _multiscale(layout: ImageLayout, axes: str, prefix: str, name: str, method: str) -> Multiscale:
    """Levels ``<prefix>0``, ... of `axes`, each pixel placed at the centre of the pixels that it stands for.

    A level's pixel stands for a square of 2^level pixels of the first. The same holds for labels, although
    nearest takes its upper left pixel: so labels and posterior line up on every level.
    """
    scale, offset, units = (
        dict(zip(layout.axes, values, strict=True)) for values in (layout.scale, layout.translation, layout.units)
    )
    datasets = []
    for level in range(layout.levels):
        factor = {"y": 2**level, "x": 2**level}
        steps = [scale.get(a, 1.0) * factor.get(a, 1) for a in axes]
        starts = [offset.get(a, 0.0) + (factor.get(a, 1) - 1) / 2 * scale.get(a, 1.0) for a in axes]
        datasets.append(Dataset.build(path=f"{prefix}{level}", scale=steps, translation=starts))
    named = [Axis(name=a, type=AXIS_TYPES[a], unit=units.get(a)) for a in axes]
    return Multiscale(axes=named, datasets=tuple(datasets), name=name, type=method)


def _channel(layout: ImageLayout, name: str) -> Channel:
    """How a viewer first shows a channel: in its class's colour over its range; background is switched off."""
    colors = {info.name: info.color.removeprefix("#") for info in layout.classes}
    colors[layout.classes[0].name] = BACKGROUND_COLOR
    kind, _, class_name = name.partition(":")
    color = VARIANCE_COLORS.get(kind) or colors.get(class_name, "FFFFFF")
    top = 1.0 if kind == "probability" else 0.25
    window = ContrastWindow(min=0.0, max=top, start=0.0, end=top)
    active = class_name != layout.classes[0].name
    return Channel.model_validate({"label": name, "color": color, "active": active, "window": window})


def _label(layout: ImageLayout) -> Label:
    colors, properties = [], []
    for value, info in enumerate(layout.classes):
        rgba = (*bytes.fromhex(info.color.removeprefix("#")), 255 if value else 0)
        colors.append(Color.model_validate({"label-value": value, "rgba": rgba}))
        properties.append(Property.model_validate({"label-value": value, "class": info.name}))
    source = Source(image="../../")
    return Label(version="0.5", colors=tuple(colors), properties=tuple(properties), source=source)
