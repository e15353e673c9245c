from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import ome_zarr_models
import pytest
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models.v05.bioformats2raw import BioFormats2Raw
from ome_zarr_models.v05.plate import Plate
from ome_zarr_models.v05.well_types import WellMeta as Well

from chorus.pipeline.core.geometry import RegionGrid
from chorus.pipeline.io.models import ClassInfo, ImageLayout
from chorus.pipeline.io.outputs.groups import prepare_collection, prepare_plate
from chorus.pipeline.io.outputs.writer import prepare_image, write_region
from tests.support.displays import displays_of

WELLS = ("A/01", "A/02", "B/01")


def plate() -> Plate:
    wells = [{"path": path, "rowIndex": "AB".index(path[0]), "columnIndex": int(path[2:]) - 1} for path in WELLS]
    named = {"columns": [{"name": "01"}, {"name": "02"}], "rows": [{"name": "A"}, {"name": "B"}]}
    return Plate.model_validate(named | {"wells": wells, "name": "plate", "version": "0.5", "field_count": 1})


def well() -> Well:
    return Well.model_validate({"images": [{"path": "0"}], "version": "0.5"})


def fill(url: str, channels: tuple[str, ...]) -> None:
    layout = ImageLayout(
        url=url,
        labels_url=url,
        labels_ngff="0.5",
        source_url="source.zarr",
        axes="yx",
        shape=(60, 70),
        scale=(1.0, 1.0),
        translation=(0.0, 0.0),
        units=(None, None),
        channels=channels,
        dtype="float32",
        classes=(ClassInfo("background", "#000000"), ClassInfo("nucleus", "#4daf4a")),
        displays=displays_of(channels),
        chunk=32,
        region=128,
    )
    prepare_image(layout)
    posterior = np.full((len(channels), 60, 70), 0.5, np.float32) if channels else None
    write_region(layout, 0, 0, RegionGrid.make((60, 70), 128).window(0), posterior, np.ones((60, 70), np.int64))


@pytest.mark.parametrize("channels", [("uncertainty",), ()])
def test_a_plate_of_results_opens_as_a_plate(tmp_path: Path, channels: tuple[str, ...]) -> None:
    url = str(tmp_path / "plate.ome.zarr")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: prepare_plate(url, plate(), dict.fromkeys(WELLS, well())), range(8)))
    for path in WELLS:
        fill(f"{url}/{path}/0", channels)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    prepare_plate(url, plate(), dict.fromkeys(WELLS, well()))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    opened = ome_zarr_models.open_ome_zarr(url)
    assert [type(group).__name__ for group in opened.well_groups] == ["Well"] * 3
    assert opened.ome_attributes.plate == plate()
    assert type(ome_zarr_models.open_ome_zarr(f"{url}/A/01")).__name__ == "Well"
    assert isinstance(zarr.open_group(url, mode="r")["B"], zarr.Group)
    nodes = list(Reader(parse_url(url))())
    assert nodes[0].data[0].shape[-2:] == (120, 140)
    field = list(Reader(parse_url(f"{url}/B/01/0"))())
    assert np.array_equal(field[-1].data[0].compute(), np.ones((60, 70)))


def test_a_plate_with_wells_still_to_come_opens() -> None:
    url = "memory://plates/plate.ome.zarr"
    prepare_plate(url, plate(), {"A/02": well()})
    prepare_plate(url, plate(), {"B/01": well()})
    group = zarr.open_group(url, mode="r")
    assert sorted(group.group_keys()) == ["A", "B"]
    assert ome_zarr_models.open_ome_zarr(group).n_wells == 3


def test_a_collection_of_results_opens_as_one(tmp_path: Path) -> None:
    url = str(tmp_path / "series.ome.zarr")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: prepare_collection(url, ["0", "1"]), range(8)))
    for path in "01":
        fill(f"{url}/{path}", ("uncertainty",))
    collection = BioFormats2Raw.from_zarr(zarr.open_group(url, mode="r"))
    assert collection.image_paths == ["0", "1"]
    assert zarr.open_group(f"{url}/OME", mode="r").attrs["ome"]["series"] == ["0", "1"]
    assert [type(node.data[0]).__name__ for node in Reader(parse_url(f"{url}/1"))() if node.data] == ["Array"] * 2
