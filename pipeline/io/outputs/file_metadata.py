"""Metadata of an OME-Zarr image that is made of a file of another format: what its reader says, as NGFF.

Position on the stage becomes the image's translation. What NGFF has no field for (the image's name in its file, when it
was acquired) is in the group's attribute ``chorus``, under ``source``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ome_zarr_models.common.omero import Channel, Omero
from ome_zarr_models.v05.image import ImageAttrs
from ome_zarr_models.v05.multiscales import Multiscale

from chorus.pipeline.io.formats.rasters import Raster
from chorus.pipeline.io.outputs.groups import dump

_SAMPLE_COLORS = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}
_COLORS = ("00FFFF", "FF00FF", "FFFF00", "00FF00", "FF0000", "0000FF")


def position_of(raster: Raster) -> dict[str, float]:
    """Return the translation of an image: its position, where it has a pixel size in the same unit."""
    return {axis: value for axis, value in raster.position.items() if axis in raster.scale}


def group_attributes(
    raster: Raster, levels: Multiscale, names: Sequence[str], ranges: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Return the attributes of an image's group.

    Parameters
    ----------
    names : of the channels; empty where they have none
    ranges : of values that a viewer first shows, per channel; empty for an image without a c axis
    """
    content: dict[str, Any] = {"version": "0.5", "multiscales": [levels]}
    if ranges:
        channels = [_channel(raster, names, index, limits) for index, limits in enumerate(ranges)]
        content["omero"] = dump(Omero(channels=channels))
    attributes: dict[str, Any] = {"ome": dump(ImageAttrs.model_validate(content))}
    source = {"image": raster.name, "acquired": raster.acquired}
    source = {key: value for key, value in source.items() if value}
    return attributes | ({"chorus": {"source": source}} if source else {})


def _channel(raster: Raster, names: Sequence[str], index: int, limits: tuple[float, float]) -> Channel:
    """Return how a viewer first shows a channel: over a range of values, in the file's colour where it has one."""
    label = names[index] if names else str(index)
    color = "FFFFFF" if raster.lengths.get("c", 1) == 1 else _COLORS[index % len(_COLORS)]
    if raster.samples > 1:
        color = _SAMPLE_COLORS.get(label.rpartition(" ")[2], color)
    elif index < len(raster.colors):
        color = raster.colors[index]
    low, high = limits
    if not low < high:  # all the same, or nothing finite
        low, high = (low, low + 1) if np.isfinite(low) else (0.0, 1.0)
    window = {"min": low, "max": high, "start": low, "end": high}
    active = not (raster.samples > 1 and label.endswith("alpha"))
    return Channel.model_validate({"label": label, "color": color, "active": active, "window": window})
