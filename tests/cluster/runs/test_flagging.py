"""Flags are a part of a run: the same bytes as by `chorus flag`, whatever parts the tables are judged in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import forecast, predict
from chorus.cluster.results.run_results import RunResults
from chorus.cluster.runs import flagging
from chorus.cluster.runs.flagging import flag_run
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.state.scores import read_features, read_scores
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.reference.flags import flag_images
from chorus.pipeline.reference.reference import calibrate_from
from chorus.pipeline.reference.storage import read_reference, write_reference
from chorus.pipeline.reference.words import NO_REFERENCE
from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.simulated import simulated

IMAGES = 16


def request(folder: Path, images: str, out: str) -> PredictRequest:
    return PredictRequest(
        sources=[str(folder / images)],
        ensemble=str(folder / "ensemble"),
        out=str(folder / out),
        settings=ResultSettings(region=64, chunk=32, save=[]),
        run=RunSettings(executor="serial", thumbnails=False),
    )


def run(folder: Path, images: str = "images", out: str = "out") -> PredictOutcome:
    return predict(request(folder, images, out), Silent())


def calibrate(folder: Path) -> None:
    """Make a reference set of the images, of which the first have a poor Dice."""
    out = str(folder / "reference-run")
    predict(request(folder, "images", "reference-run"), Silent(), judge=False)
    scores = read_scores(out)
    evaluation = pd.DataFrame({"name": scores["name"], "dice": np.linspace(0.5, 0.95, len(scores))})
    known = calibrate_from(
        scores, evaluation, read_features(out), ensemble=read_ensemble(str(folder / "ensemble")).hash
    )
    write_reference(str(folder / "ensemble"), known)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, unlike ones, and an ensemble without a reference set, with its run."""
    folder = tmp_path_factory.mktemp("bare")
    for seed in range(IMAGES):
        write_image(folder / "images" / f"{seed:02d}.ome.zarr", pixels((48, 40), seed=seed))
    write_image(folder / "others" / "familiar.ome.zarr", pixels((48, 40), seed=99))
    write_image(folder / "others" / "unlike.ome.zarr", (60000 - 40 * pixels((48, 40), seed=98)).astype(np.uint16))
    write_light_ensemble(folder / "ensemble", members=2, augmentations=["identity"])
    run(folder)
    return folder


@pytest.fixture(scope="module")
def calibrated(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `bare`, with a reference set beside the ensemble, and a run over the other images."""
    folder = tmp_path_factory.mktemp("calibrated")
    for name in ("images", "others"):
        (folder / name).symlink_to(bare / name)
    write_light_ensemble(folder / "ensemble", members=2, augmentations=["identity"])
    calibrate(folder)
    run(folder, "others")
    return folder


def test_a_run_ends_with_flags_where_its_ensemble_has_a_reference_set(calibrated: Path) -> None:
    results = RunResults(str(calibrated / "out"))
    assert results.flags is not None
    assert results.unjudged is None
    by_name = results.flags.set_index("name")
    assert "ood" in by_name.loc["unlike.ome.zarr", "flags"]
    assert any("the reference set" in reason for reason in by_name.loc["unlike.ome.zarr", "reasons"])
    assert by_name.loc["unlike.ome.zarr", "dice_bound"] == 0
    assert 0.5 <= by_name.loc["familiar.ome.zarr", "expected_dice"] <= 0.95
    assert list(results.rank()["name"]) == list(results.flags["name"])
    assert results.summary.flags is not None
    assert results.summary.flags.reference_images == IMAGES
    assert results.summary.flags.images["ood"] >= 1
    document = json.loads((calibrated / "out" / "run.json").read_text())
    assert document["reference"] == {"images": IMAGES, "tau": 0.8, "alpha": 0.1}
    assert "unjudged" not in document


def test_the_same_run_again_leaves_the_same_bytes_and_so_does_judging_it_anew(calibrated: Path) -> None:
    table = calibrated / "out" / "flags.parquet"
    first = table.read_bytes()
    table.unlink()
    run(calibrated, "others")
    assert table.read_bytes() == first
    flag_run(str(calibrated / "out"), read_reference(str(calibrated / "ensemble")))
    assert table.read_bytes() == first


def test_a_calibration_is_not_judged_by_the_reference_set_that_it_replaces(calibrated: Path) -> None:
    assert not (calibrated / "reference-run" / "flags.parquet").exists()


def test_without_a_reference_set_a_run_says_so_before_and_after(bare: Path) -> None:
    assert forecast(request(bare, "images", "new"), Silent()).unjudged == NO_REFERENCE
    results = RunResults(str(bare / "out"))
    assert results.flags is None
    assert results.summary.flags is None
    assert results.unjudged == NO_REFERENCE
    assert NO_REFERENCE in repr(results)
    assert "reference" not in json.loads((bare / "out" / "run.json").read_text())


def test_a_damaged_reference_set_costs_the_flags_and_not_the_run(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(bare / "others")
    write_light_ensemble(tmp_path / "ensemble", members=2, augmentations=["identity"])
    tables = simulated(20, seed=0)
    write_reference(str(tmp_path / "ensemble"), calibrate_from(tables.scores, tables.evaluation, ensemble="another"))
    assert run(tmp_path).state == "complete"
    why = RunResults(str(tmp_path / "out")).unjudged
    assert why is not None
    assert why.startswith("scores stand alone, and no image is flagged (")
    assert "is of another ensemble" in why


@pytest.mark.parametrize("part", [1, 7, 1000])
def test_flags_do_not_depend_on_the_parts_that_tables_are_judged_in(
    part: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known, new = simulated(60, seed=0), simulated(25, seed=1, empty=3)
    new.scores.to_parquet(tmp_path / "scores.parquet")
    new.features.sample(frac=0.8, random_state=0).to_parquet(tmp_path / "features.parquet")
    reference = calibrate_from(known.scores, known.evaluation, known.features, ensemble="hash")
    expected = flag_images(new.scores, reference, read_features(str(tmp_path)))
    monkeypatch.setattr(flagging, "_PART", part)
    table = flag_run(str(tmp_path), reference, budget=0.2).table
    pd.testing.assert_frame_equal(table.drop(columns="review"), expected, check_exact=True)
    assert table["review"].sum() == 5


def test_a_run_of_other_settings_than_the_reference_set_says_that_flags_may_be_off(calibrated: Path) -> None:
    wanted = request(calibrated, "others", "flipped")
    settings = wanted.settings.model_copy(update={"augmentations": ["identity", "hflip"]})
    known = read_reference(str(calibrated / "ensemble"))
    settings_of_reference = {"augmentations": ["identity"], "tile": 32, "overlap": 0.5, "effort": "full"}
    kept = known.model_copy(update={"settings": settings_of_reference})
    assert kept.differs({"augmentations": ["identity"], "effort": "full"}) is None
    write_reference(str(calibrated / "ensemble"), kept)
    try:
        predict(wanted.model_copy(update={"settings": settings}), Silent())
    finally:
        write_reference(str(calibrated / "ensemble"), known)
    document = json.loads((calibrated / "flipped" / "run.json").read_text())
    assert "augmentations identity,hflip instead of identity" in document["reference"]["differs"]
    assert (calibrated / "flipped" / "flags.parquet").exists()
