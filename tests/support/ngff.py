"""Writes OME-Zarr groups of every kind for tests, and says what is found there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io.models import FailedImage, SourceImage
from chorus.pipeline.io.sources.discovery import find_images

TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
FORMATS = {"0.4": 2, "0.5": 3}


def write_group(url: str, ngff: str, metadata: dict[str, Any]) -> None:
    attributes = {"ome": {"version": "0.5", **metadata}} if ngff == "0.5" else metadata
    zarr.open_group(url, mode="a", zarr_format=FORMATS[ngff]).attrs.update(attributes)


def multiscales(axes: str, levels: int = 1, **more: Any) -> dict[str, Any]:
    datasets = [
        {"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": [float(2**i)] * len(axes)}]}
        for i in range(levels)
    ]
    units = {"space": {"unit": "micrometer"}}
    listed = [{"name": axis, "type": TYPES[axis], **units.get(TYPES[axis], {})} for axis in axes]
    return {"axes": listed, "datasets": datasets, **more}


def write_image(
    url: str | Path,
    ngff: str = "0.5",
    axes: str = "cyx",
    shape: tuple[int, ...] = (2, 16, 16),
    *,
    dtype: str = "uint16",
    levels: int = 1,
    metadata: dict[str, Any] | None = None,
    **more: Any,
) -> str:
    options: dict[str, Any] = {"zarr_format": FORMATS[ngff], "chunks": tuple(min(4, n) for n in shape)}
    if ngff == "0.5":
        options["shards"] = tuple(2 * chunk for chunk in options["chunks"])
    else:
        options["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    write_group(str(url), ngff, {"multiscales": [metadata or multiscales(axes, levels)], **more})
    for level in range(levels):
        halved = (n if axis == "c" else -(-n // 2**level) for axis, n in zip(axes, shape, strict=False))
        shrunk = tuple(halved) if level else shape
        array = zarr.create_array(f"{url}/{level}", shape=shrunk, dtype=dtype, **options)
        array[...] = np.arange(np.prod(shrunk)).reshape(shrunk).astype(dtype)
    return str(url)


def write_plate(url: str | Path, ngff: str, *, missing: str = "") -> str:
    wells = ["A/1", "A/2", "B/1"]
    plate = {
        "columns": [{"name": "1"}, {"name": "2"}],
        "rows": [{"name": "A"}, {"name": "B"}],
        "wells": [{"path": w, "rowIndex": "AB".index(w[0]), "columnIndex": int(w[2]) - 1} for w in wells],
        "acquisitions": [{"id": 0, "name": "first"}],
        "name": "screen",
    }
    write_group(str(url), ngff, {"plate": plate})
    for well in wells:
        if well != missing:
            write_group(f"{url}/{well}", ngff, {"well": {"images": [{"path": "0", "acquisition": 0}, {"path": "1"}]}})
            for field in "01":
                write_image(f"{url}/{well}/{field}", ngff, "yx", (8, 8))
    return str(url)


def names(*sources: str | Path) -> list[str]:
    found = list(find_images([str(source) for source in sources]))
    assert not [image for image in found if isinstance(image, FailedImage)]
    return [image.name for image in found]


def only(source: str | Path) -> SourceImage:
    (image,) = find_images([str(source)])
    assert isinstance(image, SourceImage), image
    return image


def failure(source: str | Path) -> str:
    (image,) = find_images([str(source)])
    assert isinstance(image, FailedImage), image
    assert image.message.startswith(image.root)
    assert "\n" not in image.message
    return image.message


def refused(source: str | Path) -> str:
    with pytest.raises(RefusedError) as caught:
        list(find_images([str(source)]))
    assert str(caught.value).startswith(str(source))
    return str(caught.value)
