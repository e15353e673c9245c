"""Metadata of the groups of one image's results: ``multiscales``, ``omero`` and ``image-label``.

Viewers read places and sizes, colours and names of classes from here. Everything is built with the models of
``ome-zarr-models``, so that what does not go with the specification fails before it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping

from ome_zarr_models.common.image_label_types import Color, Property, Source
from ome_zarr_models.common.omero import Channel, Omero
from ome_zarr_models.common.omero import Window as ContrastWindow
from ome_zarr_models.v04.image_label import ImageLabelAttrs as ImageLabelAttrsV04
from ome_zarr_models.v04.image_label_types import Label as LabelV04
from ome_zarr_models.v05.axes import Axis
from ome_zarr_models.v05.image import ImageAttrs
from ome_zarr_models.v05.image_label import ImageLabelAttrs
from ome_zarr_models.v05.image_label_types import Label
from ome_zarr_models.v05.multiscales import Dataset, Multiscale

from chorus.pipeline.core.fields import field_of, shown_first
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.outputs.arrays import LabelImage, label_plan, posterior_axes, semantic_labels
from chorus.pipeline.io.outputs.groups import dump, group_documents

AXIS_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
BACKGROUND_COLOR = "808080"


def label_documents(layout: ImageLayout, image: LabelImage) -> dict[str, bytes]:
    """Return the metadata files of a label image, its group's and its arrays', by path below the image's group."""
    documents: dict[str, bytes] = {}
    for level in range(layout.levels):
        documents |= label_plan(layout, image, level).documents()
    multiscale = _multiscale(layout, layout.axes, "s", image.name, "nearest")
    label = _label(image)
    if layout.labels_ngff == "0.5":
        new = {"version": "0.5", "multiscales": [multiscale], "image-label": label}
        attributes = {"ome": dump(ImageLabelAttrs.model_validate(new))}
    else:
        multiscale_04 = multiscale.to_version("0.4").model_copy(update={"version": "0.4"})
        label_04 = LabelV04.model_validate(dump(label) | {"version": "0.4"})
        old = {"multiscales": [multiscale_04], "image-label": label_04}
        attributes = dump(ImageLabelAttrsV04.model_validate(old))
    return documents | group_documents(image.path, attributes, layout.labels_ngff)


def image_attributes(layout: ImageLayout) -> ImageAttrs:
    """Return the attributes of the image's group: of its posterior, or of its labels where none is kept."""
    name = storage.basename(layout.url).removesuffix(".zarr").removesuffix(".ome")
    if not layout.channels:
        labels = _multiscale(layout, layout.axes, f"{semantic_labels(layout).path}/s", name, "nearest")
        return ImageAttrs(version="0.5", multiscales=[labels])
    posterior = _multiscale(layout, posterior_axes(layout), "s", name, "mean")
    omero = Omero(channels=[_channel(layout, channel) for channel in layout.channels])
    return ImageAttrs.model_validate({"version": "0.5", "multiscales": [posterior], "omero": dump(omero)})


def _multiscale(layout: ImageLayout, axes: str, prefix: str, name: str, method: str) -> Multiscale:
    scale = dict(zip(layout.axes, layout.scale, strict=True))
    offset = dict(zip(layout.axes, layout.translation, strict=True))
    units = dict(zip(layout.axes, layout.units, strict=True))
    return multiscale(axes, scale, offset, units, layout.levels, prefix=prefix, name=name, method=method)


def multiscale(
    axes: str,
    scale: Mapping[str, float],
    offset: Mapping[str, float],
    units: Mapping[str, str | None],
    levels: int,
    *,
    prefix: str,
    name: str,
    method: str,
) -> Multiscale:
    """Return levels ``<prefix>0``, ... of `axes`, each pixel at the centre of the pixels that it covers.

    `scale` (1 where it says nothing), `offset` (0) and `units` are of the first level. A level's pixel stands for a
    square of 2^level pixels of the first. The same holds for labels, although nearest takes its upper left pixel: so
    labels and posterior line up on every level.
    """
    datasets = []
    for level in range(levels):
        factor = {"y": 2**level, "x": 2**level}
        steps = [scale.get(a, 1.0) * factor.get(a, 1) for a in axes]
        starts = [offset.get(a, 0.0) + (factor.get(a, 1) - 1) / 2 * scale.get(a, 1.0) for a in axes]
        datasets.append(Dataset.build(path=f"{prefix}{level}", scale=steps, translation=starts))
    named = [Axis(name=a, type=AXIS_TYPES[a], unit=units.get(a)) for a in axes]
    return Multiscale(axes=named, datasets=tuple(datasets), name=name, type=method)


def _channel(layout: ImageLayout, name: str) -> Channel:
    """Return how a viewer first shows a channel: over its field's range, in its class's or its field's colour."""
    field = field_of(name)
    if field is None:
        raise ValueError(f"{layout.url}: {name!r} is a channel of no field")
    display = layout.displays[layout.channels.index(name)]
    background = layout.classes[0].name
    if field.display.colors:
        own = [layout.channels[index] for index in field.among(layout.channels)]
        color = field.display.colors[own.index(name) % len(field.display.colors)]
    else:
        colors = {field.channel(info.name): info.color.removeprefix("#") for info in layout.classes}
        color = (colors | {field.channel(background): BACKGROUND_COLOR})[name]
    window = ContrastWindow(min=display.low, max=display.high, start=display.low, end=display.high)
    active = name in shown_first(layout.channels, background)
    shown = {"label": name, "color": color, "active": active, "window": window}
    return Channel.model_validate(shown | ({"unit": display.unit} if display.unit else {}))


def _label(image: LabelImage) -> Label:
    """Return colours and names of classes; objects get the viewer's own colours."""
    colors, properties = [], []
    for value, info in enumerate(image.classes):
        rgba = (*bytes.fromhex(info.color.removeprefix("#")), 255 if value else 0)
        colors.append(Color.model_validate({"label-value": value, "rgba": rgba}))
        properties.append(Property.model_validate({"label-value": value, "class": info.name}))
    source = Source(image="../../")
    return Label(version="0.5", colors=tuple(colors) or None, properties=tuple(properties) or None, source=source)
