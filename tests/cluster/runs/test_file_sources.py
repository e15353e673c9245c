"""A run on files of microscopes gives the bytes of a run on their conversion to OME-Zarr."""

from __future__ import annotations

from pathlib import Path

import pytest

from chorus.pipeline.io.files.conversion import ConvertSettings, convert_file
from tests.support.format_files import LifImage, write_czi, write_lif
from tests.support.making import pixels, write_light_ensemble
from tests.support.runs import arrays, run, start


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    return Path(write_light_ensemble(tmp_path / "e", members=2, width=4))


def test_results_of_a_file_are_those_of_its_conversion(ensemble: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    write_czi(source / "a.czi", [pixels((2, 150, 210)), pixels((2, 90, 100), seed=1)], names=["DNA", "actin"])
    write_lif(source / "b.lif", [LifImage("one", pixels((1, 1, 2, 100, 130, 2)), colors=("DNA", "actin"))])
    for name in ("a.czi", "b.lif"):
        target = str(tmp_path / "converted" / f"{name[0]}.ome.zarr")
        convert_file(str(source / name), target, ConvertSettings(region=128, chunk=64))
    run(source, ensemble, tmp_path / "direct", channel=["DNA"], strict=True)
    run(tmp_path / "converted", ensemble, tmp_path / "out", channel=["DNA"])
    found = arrays(tmp_path / "direct")
    assert {name.partition("/s")[0].partition("/labels")[0] for name in found} == {
        "a.ome.zarr/0",
        "a.ome.zarr/1",
        "b.ome.zarr",
    }
    assert found == arrays(tmp_path / "out")
    assert any(any(content) for _, _, content in found.values())


def test_labels_cannot_be_stored_in_a_file_of_another_format(ensemble: Path, tmp_path: Path) -> None:
    write_czi(tmp_path / "a.czi", [pixels((1, 80, 90))], names=["DNA"])
    outcome = start(tmp_path / "a.czi", ensemble, tmp_path / "out", in_place=True)
    (row,) = outcome.rows
    assert "leave out --in-place, or convert it first" in row.message
