"""``chorus objects`` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr

from tests.support.making import pixels, write_ensemble, write_image
from tests.support.object_runs import drawn, write_results, write_source
from tests.support.object_runs import write_ensemble as write_drawn_ensemble
from tests.support.running import Chorus
from tests.support.second_ensembles import write_second


@pytest.fixture
def results(tmp_path: Path) -> Path:
    planes = {"a": drawn(1, 90, 100, 12), "b": drawn(2, 90, 100, 12)}
    ensemble = write_drawn_ensemble(tmp_path / "e")
    source = write_source(tmp_path / "in", planes)
    return write_results(tmp_path / "out", source, ensemble, planes, region=128, unfinished=("b",))


def test_counts_are_printed_and_open_images_are_named(chorus: Chorus, results: Path) -> None:
    code, out, err = chorus("objects", results, "--diameter", 10, "--executor", "serial")
    table = pd.read_parquet(results / "objects.parquet")
    assert code == 1
    assert "a.ome.zarr" in out
    assert str(len(table)) in out
    assert "failed: b.ome.zarr: is not finished" in err
    assert f"objects  {results}/objects.parquet" in err


def test_for_machines_there_is_one_document(chorus: Chorus, results: Path) -> None:
    code, out, _ = chorus("objects", results, "--diameter", 10, "--minimum-size", 50, "--executor", "serial", "--json")
    content = json.loads(out)
    assert (code, content["state"]) == (1, "failures")
    table = pd.read_parquet(results / "objects.parquet")
    assert content["summary"]["objects"] == {"kind 1": len(table)}
    assert table["area"].min() >= 50
    assert json.loads((results / "objects.json").read_text())["settings"]["minimum_size"] == 50


def test_options_are_chosen_by_a_truth(chorus: Chorus, results: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    large = drawn(1, 90, 100, 12)
    large[np.bincount(large.ravel())[large] < 100] = 0
    tifffile.imwrite(tmp_path / "masks" / "a.tif", large.astype(np.uint16))
    arguments = ["objects", results, "--method", "components", "--foreground-threshold", 0.5, "--executor", "serial"]
    code, out, _ = chorus(*arguments, "--tune", tmp_path / "masks")
    assert code == 1  # b.ome.zarr is not finished
    assert "sets of options tried on 1 images" in " ".join(out.split())
    size = json.loads((results / "objects.json").read_text())["settings"]["minimum_size"]
    assert size > 15
    assert f"chosen   --minimum-size {size}: mAP" in out
    code, out, _ = chorus(*arguments, "--tune", tmp_path / "masks", "--json")
    assert json.loads(out)["tuning"]["chosen"] == {"minimum_size": size}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--diameter", "0"], "--diameter: Input should be"),
        (["--minimum-size", "0"], "--minimum-size: Input should be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    chorus: Chorus, results: Path, arguments: list[str], sentence: str
) -> None:
    code, _, err = chorus("objects", results, *arguments)
    assert code == 2
    assert sentence in err
    assert not (results / "objects.json").exists()


def test_flows_of_networks_become_the_same_objects_whatever_the_region(chorus: Chorus, tmp_path: Path) -> None:
    ensemble = write_ensemble(tmp_path / "e", members=2, flows=True, augmentations=["identity", "hflip"])
    source = write_image(tmp_path / "a.ome.zarr", pixels((150, 170)))
    found = []
    for region in (64, 256):
        out = tmp_path / f"out-{region}"
        given = ["--region", region, "--chunk", 32, "--save", "uncertainty,flows", "--executor", "serial"]
        assert chorus("predict", source, "-e", ensemble, "-o", out, "--no-report", *given).code == 0
        assert chorus("objects", out, "--diameter", 10, "--minimum-size", 5, "--executor", "serial").code == 0
        labels = zarr.open_array(out / "images" / "a.ome.zarr" / "labels" / "class-1" / "s0", mode="r")
        found.append(((out / "objects.parquet").read_bytes(), np.asarray(labels[:]).tobytes()))
    assert found[0] == found[1]
    assert len(pd.read_parquet(out / "objects.parquet")) > 0


def test_flows_may_come_from_a_second_ensemble(chorus: Chorus, tmp_path: Path) -> None:
    planes = {"a": drawn(1, 90, 100, 12)}
    first, second = write_drawn_ensemble(tmp_path / "e", flows=False), write_second(tmp_path / "second")
    source = write_source(tmp_path / "in", planes)
    out = write_results(tmp_path / "out", source, first, planes, region=128, save=["probability"])
    code, printed, err = chorus("objects", out, "--flows-from", second, "--executor", "serial")
    assert code == 0
    assert "objects of 1 images, by flows of uphill" in " ".join(printed.split())
    assert "predicting flows (of probabilities, by uphill)" in err
    code, _, err = chorus("objects", out, "--flows-from", "no-such-ensemble", "--executor", "serial")
    assert code == 2
    assert "neither a folder here nor an ensemble that Chorus brings" in err
