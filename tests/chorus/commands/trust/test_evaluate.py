"""`chorus evaluate` and `chorus compare` on the command line: tables, sentences, JSON and exit codes."""

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


@pytest.fixture
def folder(tmp_path: Path, chorus: Chorus) -> Path:
    """A run in `out`, and a `truth` that is what was predicted but for one row."""
    for seed, name in enumerate("ab"):
        write_image(tmp_path / "images" / f"{name}.ome.zarr", pixels((48, 40), seed=seed))
    ensemble = write_light_ensemble(tmp_path / "ensemble", members=1, augmentations=["identity"])
    fixed = ["--executor", "serial", "--region", "64", "--chunk", "32", "--no-report", "--save", "none"]
    result = chorus("predict", tmp_path / "images", "-e", ensemble, "-o", tmp_path / "out", *fixed)
    assert result.code == 0, result.err
    (tmp_path / "truth").mkdir()
    for name in "ab":
        stored = zarr.open_array(tmp_path / "out" / "images" / f"{name}.ome.zarr" / "labels/semantic/s0", mode="r")
        truth = np.array(stored[:])
        truth[0] = 1 - truth[0]
        tifffile.imwrite(tmp_path / "truth" / f"{name}.tif", truth)
    return tmp_path


def test_evaluate_prints_means_and_says_what_it_left_out(chorus: Chorus, folder: Path) -> None:
    tifffile.imwrite(folder / "truth" / "alone.tif", np.zeros((4, 4), np.uint8))
    result = chorus("evaluate", folder / "out", "--truth", folder / "truth", "--executor", "serial")
    assert result.code == 0, result.err
    assert "Dice, nucleus" in result.out
    assert "Otsu's threshold: Dice" in result.out
    assert "2 images: 2 done, 0 without prediction, 0 failed, 0 without truth" in result.err
    assert "1 truths have no image in the run: alone" in result.err
    assert "no significant difference in dice between the ensemble and Otsu's threshold" in result.err
    found = pd.read_parquet(folder / "out" / "evaluation.parquet")
    assert {"name", "status", "message", "dice", "ap50"} <= set(found.columns)
    assert (found["dice"] > 0.8).all()


def test_evaluate_speaks_json_and_counts_failures_in_its_exit_code(chorus: Chorus, folder: Path) -> None:
    tifffile.imwrite(folder / "truth" / "b.tif", np.zeros((4, 4), np.uint8))
    more = ["--objects", "components", "--minimum-size", 3, "--no-baseline", "--json"]
    result = chorus("evaluate", folder / "out", "--truth", folder / "truth", "--executor", "serial", *more)
    assert result.code == 1
    content = json.loads(result.out)
    assert content["summary"]["settings"] == {"objects": "components", "minimum_size": 3, "baseline": False}
    assert content["summary"]["images"] == {"all": 2, "done": 1, "empty": 0, "failed": 1, "no truth": 0}
    assert [row["status"] for row in content["rows"]] == ["done", "failed"]
    assert content["rows"][0]["ap50"] is not None
    assert "failed: b.ome.zarr" in result.err


def test_what_is_wrong_is_one_sentence(chorus: Chorus, folder: Path) -> None:
    missing = chorus("evaluate", folder / "out", "--executor", "serial")
    assert (missing.code, missing.out) == (2, "")
    assert "no truth is given; use --truth FOLDER, or --truth-label NAME" in missing.err
    negative = chorus("evaluate", folder / "out", "--truth", folder / "truth", "--minimum-size", -1)
    assert negative.code == 2
    assert "--minimum-size: Input should be greater than or equal to 0" in negative.err
    unready = chorus("compare", folder / "out", folder / "images")
    assert unready.code == 2
    assert "no evaluation yet" in unready.err
    assert "run `chorus evaluate" in unready.err


def test_compare_prints_ranks_pairs_and_the_verdict(chorus: Chorus, tmp_path: Path) -> None:
    dice = np.random.default_rng(0).uniform(0.6, 0.9, 20)
    for run, values in {"good": dice, "same": dice + np.tile([0.01, -0.01], 10), "bad": dice - 0.2}.items():
        (tmp_path / run).mkdir()
        frame = pd.DataFrame({"name": [f"{k}.ome.zarr" for k in range(20)], "status": "done", "dice": values})
        frame.to_parquet(tmp_path / run / "evaluation.parquet")
    outs = [tmp_path / run for run in ("good", "same", "bad")]
    result = chorus("compare", *outs)
    assert result.code == 0, result.err
    assert "critical difference of mean ranks" in result.out
    assert "good is better than bad in dice" in result.out
    assert "no significant difference between good and same" in result.out
    content = json.loads(chorus("compare", *outs[:2], "--json").out)
    assert content["verdict"][0].startswith("no significant difference in dice between good and same")
    assert content["critical_difference"] is None


def test_compare_evaluates_first_where_a_truth_is_given(chorus: Chorus, folder: Path) -> None:
    (folder / "second").symlink_to(folder / "out")
    result = chorus("compare", folder / "out", folder / "second", "--truth", folder / "truth", "--executor", "serial")
    assert result.code == 0, result.err
    assert "no significant difference in dice between out and second" in result.out
