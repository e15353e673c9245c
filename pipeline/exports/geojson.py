"""GeoJSON as QuPath writes and reads it: a feature per object, in pixels of the finest level.

References
----------
RFC 7946; QuPath 0.4 and later (``qupath.lib.io.PathObjectTypeAdapters``): ``id`` is a UUID, ``measurements`` an object
of numbers, colours are [red, green, blue], and a geometry beyond the first plane says its ``plane``.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable
from typing import Any, Literal

from chorus.pipeline.exports.contours import Polygon
from chorus.pipeline.exports.files import Parts, whole_file
from chorus.pipeline.exports.outlines import LabelledImage, Outline, full_resolution

# Columns that are no measurements: the outline tells where an object is.
_PLACE = {"image", "t", "z", "class", "y0", "x0", "y1", "x1", "y", "x"}
_NAMES = uuid.UUID("6b1f9a3e-4f0e-5d0c-9d52-6f1b0a7c3c11")


def write_geojson(
    image: LabelledImage,
    outlines: Iterable[Outline],
    count: int,
    url: str,
    *,
    object_type: Literal["detection", "annotation"],
    painted: bool,
) -> None:
    """Write the `count` objects of an image as a FeatureCollection, the most uncertain first.

    Parameters
    ----------
    painted : objects have colours of their own, beside those of their classes

    Raises
    ------
    ImageError : see `chorus.pipeline.exports.outlines.outlines`
    OutputError : storage does not take them
    """
    with Parts(count) as parts:
        for one in outlines:
            content = feature(image, one, object_type=object_type, painted=painted)
            parts.put(one.rank - 1, json.dumps(content, separators=(",", ":"), allow_nan=False).encode())
        with whole_file(url) as file:
            file.write(b'{"type":"FeatureCollection","features":[')
            for index, part in enumerate(parts):
                file.write(b",\n" if index else b"\n")
                file.write(part)
            file.write(b"\n]}\n")


def feature(image: LabelledImage, one: Outline, *, object_type: str, painted: bool) -> dict[str, Any]:
    """Convert an object to a GeoJSON feature."""
    row, color = one.row, image.color(one.row["class"])
    identity = f"{image.name} {row['t']} {row['z']} {row['class']} {row['label']}"
    properties: dict[str, Any] = {"objectType": object_type, "name": one.name}
    if painted:
        properties["color"] = list(one.color)
    properties |= {
        "classification": {"name": row["class"], "color": list(color)},
        "isLocked": False,
        "measurements": _measurements(one),
    }
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMES, identity)),
        "geometry": _geometry(image, one),
        "properties": properties,
    }


def _measurements(one: Outline) -> dict[str, float]:
    """Return the numeric measurements of an object; QuPath accepts nothing else."""
    measurements: dict[str, float] = {"rank": one.rank}
    for name, value in one.row.items():
        if name not in _PLACE and value is not None and math.isfinite(value):
            measurements[name] = int(value) if isinstance(value, bool) else value
    return measurements


def _geometry(image: LabelledImage, one: Outline) -> dict[str, Any]:
    parts = [_coordinates(part, image) for part in one.parts]
    several = len(parts) > 1
    geometry: dict[str, Any] = {
        "type": "MultiPolygon" if several else "Polygon",
        "coordinates": parts if several else parts[0],
    }
    t, z = image.plane(one.row)
    if t or z:
        geometry["plane"] = {"c": -1, "z": z, "t": t}
    return geometry


def _coordinates(part: Polygon, image: LabelledImage) -> list[list[list[float]]]:
    """Return closed rings, the exterior first."""
    rings = [full_resolution(ring, image).tolist() for ring in part.rings]
    return [[*ring, ring[0]] for ring in rings]
