"""A reference set: what is refused, what is said of it, and that it is the same after it was kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.reference.flags import flag_images
from chorus.pipeline.reference.reference import Reference, calibrate_from
from chorus.pipeline.reference.storage import read_reference, write_reference
from tests.support.making import write_light_ensemble
from tests.support.simulated import Tables, simulated


def calibrated(tables: Tables, **settings: float) -> Reference:
    return calibrate_from(tables.scores, tables.evaluation, tables.features, ensemble="hash", **settings)


@pytest.mark.parametrize(("images", "empty", "said"), [(9, 0, "has 9 images"), (15, 8, "8 in which nothing was found")])
def test_fewer_than_ten_images_with_foreground_are_refused(images: int, empty: int, said: str) -> None:
    with pytest.raises(RefusedError, match=f"{said}.*at least 10"):
        calibrated(simulated(images, seed=0, empty=empty))


def test_ten_images_are_enough_and_what_they_are_too_few_for_is_said() -> None:
    reference = calibrated(simulated(10, seed=0))
    assert reference.bound.quantile is None
    assert any("too few for a bound at alpha 0.1" in note for note in reference.notes)
    assert (reference.bound.lower(simulated(20, seed=1).scores) == 0).all()
    assert calibrated(simulated(14, seed=0)).bound.quantile is not None


def test_images_without_truth_or_scores_are_left_out_and_named() -> None:
    tables = simulated(20, seed=0)
    evaluation = tables.evaluation.copy()
    evaluation.loc[0, "dice"] = None
    tables.scores.loc[1, "status"] = "failed"
    reference = calibrate_from(tables.scores, evaluation.drop(index=2), ensemble="hash")
    assert reference.images == 17
    assert "2 images have no truth and are left out: image-0000, image-0002" in reference.notes
    assert "1 images failed or have no scores and are left out: image-0001" in reference.notes


def test_no_image_below_tau_is_defined_and_said() -> None:
    reference = calibrated(simulated(30, seed=0), tau=0.1)
    assert reference.thresholds["uncertainty"].minimum is None
    assert any(note.startswith("no reference image has a Dice below 0.1") for note in reference.notes)
    below = calibrated(simulated(30, seed=0), tau=0.9)
    assert below.thresholds["uncertainty"].minimum is not None
    assert not any("no reference image" in note for note in below.notes)


def test_what_is_missing_or_constant_is_said() -> None:
    tables = simulated(20, seed=0)
    constant = tables.scores.assign(epistemic=0.01)
    reference = calibrate_from(constant, tables.evaluation, ensemble="hash")
    assert any(note.startswith("there are no encoder features") for note in reference.notes)
    assert any("epistemic" in note and note.startswith("not used") for note in reference.notes)
    assert "epistemic" not in reference.quality.scores


def test_an_image_twice_and_settings_out_of_range_are_refused() -> None:
    tables = simulated(20, seed=0)
    twice = Tables(pd.concat([tables.scores, tables.scores[:1]]), tables.evaluation, tables.features)
    with pytest.raises(RefusedError, match="scores: image image-0000 is there twice"):
        calibrated(twice)
    for name in ("tau", "alpha", "false_positive_rate"):
        with pytest.raises(RefusedError, match=f"{name} 1.5: give a number between 0 and 1"):
            calibrated(tables, **{name: 1.5})


def test_the_order_of_the_rows_changes_nothing() -> None:
    tables = simulated(40, seed=0, empty=3)
    order = np.random.default_rng(0).permutation(40)
    shuffled = Tables(tables.scores.iloc[order], tables.evaluation.iloc[order[::-1]], tables.features.iloc[order])
    first, second = calibrated(tables), calibrated(shuffled)
    assert first.model_dump() == second.model_dump()
    np.testing.assert_array_equal(first.detectors.sigmas, second.detectors.sigmas)


def test_empty_images_have_a_place_and_no_expected_dice() -> None:
    reference = calibrated(simulated(30, seed=0, empty=4))
    frame = reference.frame()
    assert frame["status"].value_counts().to_dict() == {"done": 26, "empty": 4}
    assert frame.loc[frame["status"] == "empty", "expected_dice"].isna().all()
    assert frame.loc[frame["status"] == "done", "expected_dice"].notna().all()
    risk = reference.risk(np.array([np.nan]), np.array([True]), 0.8)
    assert risk.tolist() == [pytest.approx(1 / 5)]  # none of four failed, and one more that does


@pytest.mark.parametrize("features", [True, False])
def test_what_is_kept_and_read_again_judges_alike(features: bool, tmp_path: Path) -> None:
    url = str(write_light_ensemble(tmp_path / "e", members=1))
    tables, new = simulated(40, seed=0, empty=2), simulated(30, seed=1, empty=2)
    given = tables.features if features else None
    reference = calibrate_from(tables.scores, tables.evaluation, given, ensemble=read_ensemble(url).hash)
    assert write_reference(url, reference).endswith("/e/reference.json")
    again = read_reference(url)
    assert again.model_dump() == reference.model_dump()
    asked = new.features if features else None
    pd.testing.assert_frame_equal(
        flag_images(new.scores, again, asked), flag_images(new.scores, reference, asked), check_exact=True
    )
    assert json.loads((tmp_path / "e" / "reference.json").read_text())["format"] == "chorus-reference/1"
    with np.load(tmp_path / "e" / "reference.npz", allow_pickle=False) as arrays:
        assert set(arrays) >= {"values", "sigmas", "empty"}


def test_a_reference_that_is_missing_damaged_or_of_another_ensemble_is_refused(tmp_path: Path) -> None:
    url = write_light_ensemble(tmp_path / "e", members=1)
    with pytest.raises(RefusedError, match=r"has no reference set.*`chorus calibrate`"):
        read_reference(str(url))
    tables = simulated(20, seed=0)
    hash_ = read_ensemble(str(url)).hash
    write_reference(str(url.parent), calibrate_from(tables.scores, tables.evaluation, ensemble=hash_))
    read_reference(str(url.parent))
    arrays, document = (tmp_path / "e" / f"reference.{kind}" for kind in ("npz", "json"))
    whole, text = arrays.read_bytes(), document.read_text()
    for damaged in (whole[:-10], b""):
        arrays.write_bytes(damaged)
        with pytest.raises(RefusedError, match=r"does not go with reference\.npz"):
            read_reference(str(url))
    arrays.write_bytes(whole)
    for content, said in (
        (text[:-40], "is damaged"),
        (text.replace("chorus-reference/1", "chorus-reference/9"), "has format chorus-reference/9"),
        (text.replace('"tau": 0.8,', '"tau": "high",', 1), "field tau"),
        (text.replace(hash_, "0" * 64), "is of another ensemble"),
    ):
        document.write_text(content)
        with pytest.raises(RefusedError, match=said):
            read_reference(str(url))
