"""GeoJSON for QuPath: every object once, in place, whatever the blocks in which labels are read."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from numpy.typing import NDArray
from skimage.draw import polygon2mask
from skimage.measure import regionprops

from chorus.pipeline.errors import ImageError
from chorus.pipeline.exports import outlines as module
from chorus.pipeline.exports.geojson import write_geojson
from chorus.pipeline.exports.outlines import LabelledImage, ObjectTable, outlines
from chorus.pipeline.io.models import ClassInfo
from tests.support.object_runs import drawn

CLASSES = (ClassInfo("background", "#000000"), ClassInfo("cell", "#4daf4a"), ClassInfo("dot", "#ff0000"))


def stored(folder: Path, labels: dict[str, NDArray[np.int32]], group: int = 7) -> tuple[LabelledImage, ObjectTable]:
    """Label images (t, z, y, x) of classes, and their table, in small groups of rows."""
    rows: list[dict[str, Any]] = []
    shape = next(iter(labels.values())).shape
    for t, z in np.ndindex(shape[:2]):
        for name, values in labels.items():
            for one in regionprops(values[t, z]):
                y0, x0, y1, x1 = one.bbox
                place = {"image": "a.ome.zarr", "t": t, "z": z, "class": name, "label": one.label}
                box = {"area": int(one.area), "y0": y0, "x0": x0, "y1": y1, "x1": x1, "touches_border": y0 == 0}
                uncertainty = None if one.label % 5 == 0 else one.label * 37 % 11 / 44
                rows.append(place | box | {"uncertainty": uncertainty, "mean:dna": float("nan")})
    for name, values in labels.items():
        array = zarr.create_array(
            str(folder / "labels" / name / "s0"), shape=shape, chunks=(1, 1, 32, 32), dtype=np.uint32
        )
        array[:] = values.astype(np.uint32)
    pq.write_table(pa.Table.from_pylist(rows), folder / "objects.parquet", row_group_size=group)
    image = LabelledImage("a.ome.zarr", str(folder), "tzyx", (shape[0], shape[1]), 1, CLASSES)
    return image, ObjectTable(str(folder / "objects.parquet"), 0, len(rows))


def written(image: LabelledImage, table: ObjectTable, url: Path, *, painted: bool = True) -> list[dict[str, Any]]:
    found = outlines(image, table, "uncertainty", "uncertainty" if painted else "class")
    write_geojson(image, found, len(table), str(url), object_type="detection", painted=painted)
    content = json.loads(url.read_text(), parse_constant=pytest.fail)
    assert content["type"] == "FeatureCollection"
    return list(content["features"])


def pixels(feature: dict[str, Any], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """What is inside by scikit-image: pixel (y, x) has its centre at (y + 0.5, x + 0.5) of the outline."""
    geometry, mask = feature["geometry"], np.zeros(shape, bool)
    several = geometry["type"] == "MultiPolygon"
    for part in geometry["coordinates"] if several else [geometry["coordinates"]]:
        for ring in part:
            assert ring[0] == ring[-1]
            mask ^= polygon2mask(shape, np.asarray(ring, float)[:, ::-1] - 0.5)
    return mask


@pytest.fixture
def stack() -> dict[str, NDArray[np.int32]]:
    """Two time points, three planes, discs that touch; rings and parts among the dots."""
    cells = np.stack([[drawn(10 * t + z, 90, 110, 20) for z in range(3)] for t in range(2)])
    dots = np.zeros_like(cells)
    dots[:, :, 10:20, 10:20] = 3
    dots[:, :, 12:18, 12:18] = 0
    dots[:, :, 14:16, 14:16] = 3
    dots[1, 2, 50:52, 40:42] = dots[1, 2, 52:54, 42:44] = 8
    return {"cell": cells, "dot": dots}


def test_every_object_is_there_once_and_covers_its_pixels(stack: dict[str, NDArray[np.int32]], tmp_path: Path) -> None:
    image, table = stored(tmp_path, stack)
    features = written(image, table, tmp_path / "a.geojson")
    seen = {name: np.zeros_like(values) for name, values in stack.items()}
    for feature in features:
        properties, plane = feature["properties"], feature["geometry"].get("plane", {"c": -1, "z": 0, "t": 0})
        mask = pixels(feature, stack["cell"].shape[2:])
        drawn_on = seen[properties["classification"]["name"]][plane["t"], plane["z"]]
        assert not drawn_on[mask].any()
        drawn_on[mask] = properties["measurements"]["label"]
        assert properties["measurements"]["area"] == mask.sum()
    for name, values in stack.items():
        assert np.array_equal(seen[name], values)
    assert len({uuid.UUID(feature["id"]) for feature in features}) == len(features) == len(table)


def test_properties_are_those_that_qupath_reads(stack: dict[str, NDArray[np.int32]], tmp_path: Path) -> None:
    image, table = stored(tmp_path, stack)
    features = written(image, table, tmp_path / "a.geojson")
    uncertainties = [feature["properties"]["measurements"].get("uncertainty", -1.0) for feature in features]
    assert uncertainties == sorted(uncertainties, reverse=True)
    for rank, feature in enumerate(features, 1):
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        assert properties["isLocked"] is False
        assert len(properties["color"]) == 3
        color = {"cell": [0x4D, 0xAF, 0x4A], "dot": [255, 0, 0]}[properties["classification"]["name"]]
        assert properties["classification"]["color"] == color
        assert properties["measurements"]["rank"] == rank
        assert all(type(value) in (int, float) for value in properties["measurements"].values())
        assert "mean:dna" not in properties["measurements"]  # NaN is no measurement
    by_class = written(image, table, tmp_path / "b.geojson", painted=False)
    assert all("color" not in feature["properties"] for feature in by_class)


@pytest.mark.parametrize("block", [8, 37, 1000])
def test_blocks_and_groups_change_no_byte(
    block: int, stack: dict[str, NDArray[np.int32]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(*stored(tmp_path / "one", stack), tmp_path / "a.geojson")
    monkeypatch.setattr(module, "_BLOCK", block)
    written(*stored(tmp_path / "two", stack, group=block), tmp_path / "b.geojson")
    assert (tmp_path / "a.geojson").read_bytes() == (tmp_path / "b.geojson").read_bytes()


def test_an_image_without_objects_is_an_empty_collection(tmp_path: Path) -> None:
    image, _ = stored(tmp_path, {"cell": drawn(1, 40, 40, 3)[None, None]})
    assert written(image, ObjectTable(str(tmp_path / "objects.parquet"), 0, 0), tmp_path / "a.geojson") == []


@pytest.mark.parametrize("damage", ["labels", "array", "smaller"])
def test_labels_that_are_not_those_of_the_table_are_an_error_of_the_image(tmp_path: Path, damage: str) -> None:
    image, table = stored(tmp_path, {"cell": drawn(1, 60, 60, 9)[None, None]})
    (tmp_path / "a.geojson").write_text("as before")
    where = str(tmp_path / "labels" / "cell" / "s0")
    if damage == "labels":
        zarr.open_array(where)[0, 0, :30] = 0
    elif damage == "smaller":
        zarr.create_array(where, shape=(1, 1, 20, 20), dtype=np.uint32, overwrite=True)
    else:
        (tmp_path / "labels" / "cell" / "s0" / "zarr.json").unlink()
    with pytest.raises(ImageError, match="labels/cell"):
        written(image, table, tmp_path / "a.geojson")
    assert (tmp_path / "a.geojson").read_text() == "as before"
