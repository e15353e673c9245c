"""Components of volumes of a run whose members take volumes: those of the whole volume, the same bytes for any cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from numpy.typing import NDArray
from scipy import ndimage

from chorus.cluster.objects import stream
from tests.support.interruptions import interrupted_at
from tests.support.making import pixels, write_image, write_volume_ensemble
from tests.support.object_runs import run as make_objects
from tests.support.runs import run

SHAPE = (2, 13, 70, 90)
CUTS: list[dict[str, Any]] = [
    {"region": 128, "region_depth": 64},
    {"region": 64, "chunk": 32, "region_depth": 4, "chunk_depth": 2},
    {"region": 64, "chunk": 64, "region_depth": 5, "chunk_depth": 5},
]


@pytest.fixture(scope="module")
def outs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One run of two time points, cut in three ways, without objects."""
    folder = tmp_path_factory.mktemp("runs")
    ensemble = write_volume_ensemble(folder / "ensemble", augmentations=["identity"])
    source = write_image(folder / "v.ome.zarr", np.stack([pixels(SHAPE[1:], seed=seed) for seed in (0, 1)]), "tzyx")
    for number, cut in enumerate(CUTS):
        run(source, ensemble, folder / f"out-{number}", **cut)
    return [folder / f"out-{number}" for number in range(len(CUTS))]


def labels(out: Path, name: str) -> NDArray[Any]:
    return np.asarray(zarr.open_array(out / "images" / "v.ome.zarr" / "labels" / name / "s0", mode="r")[:])


def test_components_are_those_of_the_whole_volume_for_any_cut(outs: list[Path]) -> None:
    for out in outs:
        assert make_objects(out, method="components", minimum_size=3).state == "complete"
        assert not (out / "work").exists()
    semantic, found = labels(outs[0], "semantic"), labels(outs[0], "nucleus")
    table = pd.read_parquet(outs[0] / "objects.parquet")
    for t in range(SHAPE[0]):
        expected, _ = ndimage.label(semantic[t] == 1, structure=np.ones((3, 3, 3)))
        expected[(np.bincount(expected.ravel()) < 3)[expected]] = 0
        np.testing.assert_array_equal(found[t], np.unique(expected, return_inverse=True)[1].reshape(found[t].shape))
        rows = table[table["t"] == t]
        assert len(rows) == found[t].max() > 5
        assert rows["volume"].tolist() == np.bincount(found[t].ravel())[1:].tolist()
        assert rows["z1"].tolist() == [box[0].stop for box in ndimage.find_objects(found[t])]
    assert table["surface_area"].gt(0).all()
    for other in outs[1:]:
        assert (other / "objects.parquet").read_bytes() == (outs[0] / "objects.parquet").read_bytes()
        np.testing.assert_array_equal(labels(other, "nucleus"), found)


def test_objects_that_were_cut_short_go_on_to_the_same_bytes(outs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("find_pieces_of_block", "label_pixels"):
        with interrupted_at(stream, method, 3):
            assert make_objects(outs[2], method="components", minimum_size=4).exit_code == 3
    assert make_objects(outs[2], method="components", minimum_size=4).state == "complete"
    assert make_objects(outs[0], method="components", minimum_size=4).state == "complete"
    assert (outs[2] / "objects.parquet").read_bytes() == (outs[0] / "objects.parquet").read_bytes()
    np.testing.assert_array_equal(labels(outs[2], "nucleus"), labels(outs[0], "nucleus"))
