"""`chorus calibrate`: from images with a truth to a reference beside the ensemble that `chorus flag` reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr

from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.running import Chorus

FIXED = ["--executor", "serial", "--region", "64", "--chunk", "32", "--save", "probability"]


@pytest.fixture
def folder(tmp_path: Path, chorus: Chorus) -> Path:
    """Twelve images, an ensemble, its results, and a truth that is further from them with every image."""
    names = [f"{index:02d}" for index in range(12)]
    for seed, name in enumerate(names):
        write_image(tmp_path / "images" / f"{name}.ome.zarr", pixels((48, 40), seed=seed))
    write_light_ensemble(tmp_path / "ensemble", members=2, augmentations=["identity"])
    result = chorus(
        "predict", tmp_path / "images", "-e", tmp_path / "ensemble", "-o", tmp_path / "out", "--no-report", *FIXED
    )
    assert result.code == 0, result.err
    (tmp_path / "truth").mkdir()
    for index, name in enumerate(names):
        stored = zarr.open_array(tmp_path / "out" / "images" / f"{name}.ome.zarr" / "labels/semantic/s0", mode="r")
        truth = np.array(stored[:])
        truth[: 2 * index] = 1 - truth[: 2 * index]
        tifffile.imwrite(tmp_path / "truth" / f"{name}.tif", truth)
    return tmp_path


def calibrate(chorus: Chorus, folder: Path, *more: object, truth: str = "truth") -> tuple[int, str, str]:
    where = [folder / "images", "-e", folder / "ensemble", "-o", folder / "out", "--truth", folder / truth]
    result = chorus("calibrate", *where, *FIXED, *more)
    return result.code, result.out, result.err


def test_a_reference_is_kept_with_the_ensemble_and_flags_are_read_from_it(chorus: Chorus, folder: Path) -> None:
    code, _, said = calibrate(chorus, folder, "--tau", 0.7)
    assert code == 0, said
    assert "known    from 12 reference images" in said
    content = json.loads((folder / "ensemble" / "reference.json").read_text())
    evaluation = pd.read_parquet(folder / "out" / "evaluation.parquet")
    assert dict(zip(content["names"], content["dice"], strict=True)) == dict(
        zip(evaluation["name"], evaluation["dice"], strict=True)
    )
    assert content["tau"] == 0.7
    summary = json.loads((folder / "out" / "evaluation.json").read_text())
    assert content["pixels"] == summary["pixels"]
    assert content["pixels"]["pixels"] == 12 * 48 * 40
    result = chorus("flag", folder / "out", "-e", folder / "ensemble")
    assert result.code == 0, result.err
    assert len(pd.read_parquet(folder / "out" / "flags.parquet")) == 12


def test_results_that_are_there_are_not_computed_again(chorus: Chorus, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "out" / "ledger").rglob("*.json")}
    code, out, _ = calibrate(chorus, folder, "--json")
    assert code == 0
    assert json.loads(out)["images"] == 12
    assert {path: path.stat().st_mtime_ns for path in (folder / "out" / "ledger").rglob("*.json")} == before


def test_too_few_images_with_a_truth_are_refused(chorus: Chorus, folder: Path) -> None:
    for index in range(4):
        (folder / "truth" / f"{index:02d}.tif").unlink()
    code, _, said = calibrate(chorus, folder)
    assert code == 2
    assert "10" in said
    assert not (folder / "ensemble" / "reference.json").exists()
