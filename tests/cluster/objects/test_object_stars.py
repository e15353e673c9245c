"""Objects by stars of runs: the same bytes however a run was cut, by the thresholds asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
import zarr

import chorus
from chorus.cluster.objects import stream
from chorus.cluster.objects.request import ObjectsRequest
from chorus.cluster.objects.run import ObjectsOutcome, find_objects
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import RefusedError
from tests.support.runs import arrays, run
from tests.support.star_runs import write_star_ensemble, write_star_source


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_star_ensemble(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_star_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def whole(source: Path, ensemble: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results and objects of a run whose regions are larger than the images."""
    out = tmp_path_factory.mktemp("whole") / "out"
    predicted(source, ensemble, out, region=512)
    return out


def predicted(source: Path, ensemble: Path, out: Path, **settings: Any) -> None:
    request = PredictRequest(
        sources=[str(source)],
        ensemble=str(ensemble),
        out=str(out),
        objects="auto",
        settings=ResultSettings(**{"region": 64, "chunk": 32} | settings),
        run=RunSettings(executor="serial"),
    )
    assert predict(request, Silent()).state == "complete"


def objects(out: Path, **settings: Any) -> ObjectsOutcome:
    content = {"out": str(out), "executor": "serial"} | settings
    return find_objects(ObjectsRequest.model_validate(content), Silent())


def labels(out: Path, image: str, name: str) -> np.ndarray:
    group = out / "images" / f"{image}.ome.zarr" / "labels" / name
    return np.asarray(zarr.open_array(group / "s0", mode="r")[:])


def label_bytes(out: Path) -> dict[str, Any]:
    return {name: array for name, array in arrays(out).items() if "/labels/" in name}


def test_predict_makes_stars_of_ensembles_with_rays(whole: Path) -> None:
    record = json.loads((whole / "objects.json").read_text())
    assert (record["settings"]["method"], record["settings"]["prob_threshold"]) == ("stars", 0.55)
    table = pd.read_parquet(whole / "objects.parquet")
    assert set(table["class"]) == {"round", "flat"}
    assert table["flow_error"].isna().all()
    assert (table["score"] > 0.55).all()
    assert table["outline_variation"].between(1e-6, 1).all()
    for image, plane, name in (("a", 0, "round"), ("a", 0, "flat"), ("b", 1, "round")):
        found = labels(whole, image, name)
        rows = table[(table["image"] == f"{image}.ome.zarr") & (table["class"] == name) & (table["z"] == plane)]
        pixels = np.bincount((found[plane] if found.ndim == 3 else found).ravel())[1:]
        assert rows["area"].tolist() == pixels.tolist()
        assert len(rows)
    together = (labels(whole, "a", "round") > 0) & (labels(whole, "a", "flat") > 0)
    assert not together.any()


@pytest.mark.parametrize("small", [4, 0])
def test_objects_do_not_depend_on_the_regions_of_a_run(
    whole: Path, source: Path, ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(stream, "_AT_ONCE", small)  # with 0, every stage has its own tasks
    out = tmp_path / "out"
    predicted(source, ensemble, out, region=64 if small == 0 else 96)
    assert (out / "objects.parquet").read_bytes() == (whole / "objects.parquet").read_bytes()
    found, expected = label_bytes(out), label_bytes(whole)
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in expected)


def test_thresholds_may_be_given_and_are_recorded(whole: Path, source: Path, ensemble: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predicted(source, ensemble, out)
    before = pd.read_parquet(out / "objects.parquet")
    assert objects(out, prob_threshold=0.7).state == "complete"
    after = pd.read_parquet(out / "objects.parquet")
    assert 0 < len(after) < len(before)
    assert (after["score"] > 0.7).all()
    settings = json.loads((out / "objects.json").read_text())["settings"]
    assert (settings["prob_threshold"], settings["nms_threshold"]) == (0.7, 0.3)
    assert objects(out, nms_threshold=0.0).state == "complete"
    assert 0 < len(pd.read_parquet(out / "objects.parquet")) < len(before)


def test_thresholds_in_the_ensemble_do_not_change_its_hash(ensemble: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(ensemble.read_text())
    hashes = []
    for threshold, grid in ((0.5, [2, 1]), (0.6, [2, 1]), (0.5, [1, 1])):
        content["outputs"][1] |= {"objects": {"prob_threshold": threshold}, "grid": grid}
        (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(content))
        hashes.append(read_ensemble(str(tmp_path)).hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_grid_is_that_of_the_answers_unless_the_rays_have_their_own(ensemble: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(ensemble.read_text()) | {"answer": {"grid": [2, 2]}}
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(content))
    assert read_ensemble(str(tmp_path)).spec.ray_grid == (2, 1)
    del content["outputs"][1]["grid"]
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(content))
    assert read_ensemble(str(tmp_path)).spec.ray_grid == (2, 2)
    assert read_ensemble(str(ensemble)).spec.ray_grid == (2, 1)


def test_what_stars_cannot_be_made_of_is_refused(whole: Path, source: Path, ensemble: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="--prob-threshold, --nms-threshold: are of objects by stars"):
        objects(whole, method="watershed", prob_threshold=0.5)
    none = tmp_path / "none"
    run(source, ensemble, none, save=[])
    with pytest.raises(RefusedError, match=r"holds no probability and no rays.*--save probability,rays"):
        objects(none, method="stars")


def test_objects_of_an_array_are_those_of_a_run(whole: Path, source: Path, ensemble: Path) -> None:
    loaded = chorus.load(str(ensemble), device="cpu")
    pixels = np.asarray(zarr.open_array(source / "a.ome.zarr" / "s0", mode="r")[:])
    found = loaded.segment(pixels, progress=False, objects="stars").objects
    assert found is not None
    for name in ("round", "flat"):
        np.testing.assert_array_equal(found[name], labels(whole, "a", name))
    table = pd.read_parquet(whole / "objects.parquet")
    expected = table[table["image"] == "a.ome.zarr"].reset_index(drop=True)
    for column in ("area", "score", "outline_variation", "ray_variation"):
        np.testing.assert_array_equal(found.table[column], expected[column])
