"""A result in the form that a client asks for: JSON, NPZ, TIFF, or a zipped OME-Zarr."""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from chorus.pipeline.core.fields import FIELDS
from chorus.pipeline.core.geometry import RegionGrid
from chorus.pipeline.core.units import micrometers
from chorus.pipeline.io.outputs.arrays import LabelImage
from chorus.pipeline.io.outputs.pyramid import write_label_pyramid, write_pyramid
from chorus.pipeline.io.outputs.writer import prepare_image, prepare_labels, write_labels, write_region
from chorus.serving.contract.problems import RequestError
from chorus.serving.contract.schemas import JSON, NPZ, TIFF, ZIP, Output
from chorus.serving.prediction.steps import Result

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def encode(result: Result, media: str, outputs: list[Output]) -> bytes:
    """Encode a result as the body of an answer.

    Parameters
    ----------
    media : one of `chorus.serving.contract.schemas.ANSWERS`
    outputs : what was asked for; of arrays the labels where nothing was

    Raises
    ------
    RequestError : 406, a TIFF holds one output
    """
    if media == JSON:
        return result.prediction.model_dump_json().encode()
    wanted: list[str] = list(dict.fromkeys(outputs)) or ["labels"]
    if media == NPZ:
        return _npz(result, wanted)
    if media == TIFF:
        return _tiff(result, wanted)
    assert media == ZIP
    return _zip(result)


def arrays(result: Result, outputs: list[str]) -> dict[str, NDArray[np.generic]]:
    """Return outputs by name.

    Returns
    -------
    ``labels`` and ``objects-<class>``: (y, x) unsigned integers; maps: (y, x), or (channels, y, x) where a kind has
    several channels, floats of the dtype of `Result.maps`
    """
    by_name: dict[str, NDArray[np.generic]] = {}
    for output in outputs:
        if output == "labels":
            by_name["labels"] = result.labels
        elif output == "objects":
            by_name |= {f"objects-{_UNSAFE.sub('_', name)}": labels for name, labels in result.objects.items()}
        else:
            field = FIELDS[output]
            maps = result.channels(field)
            by_name[output] = maps if field.per_channel else maps[0]
    return by_name


def _npz(result: Result, outputs: list[str]) -> bytes:
    buffer = io.BytesIO()
    about = np.array(result.prediction.model_dump_json())
    np.savez(buffer, allow_pickle=False, prediction=about, **arrays(result, outputs))
    return buffer.getvalue()


def _tiff(result: Result, outputs: list[str]) -> bytes:
    by_name = arrays(result, outputs)
    if len(by_name) != 1:
        raise RequestError(406, f"a TIFF holds one output, not {', '.join(by_name)}; ask for one, or for {NPZ}")
    (name, values), buffer = next(iter(by_name.items())), io.BytesIO()
    # TIFF has no half precision that viewers read.
    values = values.astype(np.float32) if values.dtype.kind == "f" else values
    metadata: dict[str, object] = {"axes": "CYX"[3 - values.ndim :], "Name": name}
    if values.ndim == 3:
        own = FIELDS[name].among(result.layout.channels)
        metadata["Channel"] = {"Name": [result.layout.channels[index] for index in own]}
    size, units = result.layout.scale, result.layout.units
    factors = [micrometers(unit) for unit in units[:2]]
    if factors[0] and factors[1]:
        metadata |= {"PhysicalSizeY": size[0] * factors[0], "PhysicalSizeX": size[1] * factors[1]}
        metadata |= {"PhysicalSizeYUnit": "µm", "PhysicalSizeXUnit": "µm"}
    tifffile.imwrite(buffer, values, ome=True, compression="zlib", photometric="minisblack", metadata=metadata)
    return buffer.getvalue()


def _zip(result: Result) -> bytes:
    """Return a Zip file of all maps and label images, as a run writes them."""
    with tempfile.TemporaryDirectory(prefix="chorus-serve-") as folder:
        inside = Path(folder) / "prediction.ome.zarr"
        layout = replace(result.layout, url=str(inside), labels_url=str(inside), labels_ngff="0.5")
        grid = RegionGrid.make((layout.height, layout.width), layout.region)
        prepare_image(layout)
        labels = {name: LabelImage(name, values.dtype.name) for name, values in result.objects.items()}
        for label in labels.values():
            prepare_labels(layout, label)
        for index in range(grid.count):
            window = grid.window(index)
            at = window.y.slice, window.x.slice
            write_region(layout, 0, 0, window, result.maps[:, *at], result.labels[at])
            for name, label in labels.items():
                write_labels(layout, label, 0, 0, 0, window, result.objects[name][at])
        write_pyramid(layout)
        for label in labels.values():
            write_label_pyramid(layout, label)
        (Path(folder) / "prediction.json").write_text(result.prediction.model_dump_json(indent=2))
        return zipped(Path(folder))


def zipped(folder: Path) -> bytes:
    """Return a Zip file of all files below a folder, stored without compression: chunks are compressed already."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.writestr(zipfile.ZipInfo(path.relative_to(folder).as_posix()), path.read_bytes())
    return buffer.getvalue()
