"""Runs of ``chorus truth``: what they leave, what they skip, what they refuse, and what they say of real drawings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from chorus.cluster.commands.truth import TruthRequest, TruthRow, TruthSummary, estimate
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.outcome import Outcome
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.training.data.pairs import find_pairs


def run(
    experts: Path | str, out: Path | str, executor: str = "serial", **request: Any
) -> Outcome[TruthRow, TruthSummary]:
    content = {"experts": str(experts), "out": str(out), "executor": executor}
    return estimate(TruthRequest.model_validate(content | request), Silent())


def blob(y: int, x: int, edge: int = 20) -> np.ndarray:
    mask = np.zeros((60, 60), np.uint8)
    mask[y : y + edge, x : x + edge] = 255
    return mask


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    """Four experts and three images; on b the first drew another image, c was not drawn by the last two."""
    drawings = {
        "a": [blob(5, 5), blob(6, 5), blob(5, 6), blob(6, 6)],
        "b": [blob(38, 38), blob(5, 5), blob(6, 5), blob(5, 6)],
        "c": [blob(20, 20), blob(20, 20)],
    }
    for name, masks in drawings.items():
        for index, mask in enumerate(masks):
            (tmp_path / "in" / f"e{index}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(tmp_path / "in" / f"e{index}" / f"{name}.png")
    return tmp_path / "in"


def contents(folder: Path) -> dict[str, bytes]:
    """Every result, but for times."""
    kept = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in (".tif", ".csv", ".svg")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_labels_tables_and_picture_are_left_and_what_is_unusual_is_said(experts: Path, tmp_path: Path) -> None:
    outcome = run(experts, tmp_path / "out")
    assert (outcome.state, outcome.exit_code) == ("complete", 0)
    assert [(row.name, row.status, row.missing) for row in outcome.rows] == [
        ("a", "done", []),
        ("b", "done", []),
        ("c", "done", ["e2", "e3"]),
    ]
    assert "all experts drew the same" in outcome.rows[2].message
    assert len(outcome.summary.warnings) == 1
    assert "b: the drawing of e0 agrees with nobody (Dice 0.00" in outcome.summary.warnings[0]
    assert np.array_equal(tifffile.imread(tmp_path / "out" / "c.tif"), blob(20, 20) // 255)
    table = pd.read_csv(tmp_path / "out" / "agreement.csv")
    assert len(table) == 12
    assert table[table["status"] == "alone"][["image", "expert"]].to_numpy().tolist() == [["b", "e0"]]
    assert table[table["status"] == "missing"]["expert"].tolist() == ["e2", "e3"]
    pd.testing.assert_frame_equal(table, pd.read_parquet(tmp_path / "out" / "agreement.parquet"), check_dtype=False)
    assert b"e0: agrees with nobody" in (tmp_path / "out" / "agreement.svg").read_bytes()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["command"], record["outcome"], record["settings"]["method"]) == ("truth", "complete", "staple")
    assert record["summary"]["warnings"] == outcome.summary.warnings
    assert set(record["notes"]) == {"c"}


def test_the_result_is_what_training_takes(experts: Path, tmp_path: Path) -> None:
    run(experts, tmp_path / "out")
    pairs = find_pairs(str(experts / "e0"), str(tmp_path / "out"), ["0"])
    assert [pair.name for pair in pairs.pairs] == ["a", "b", "c"]
    assert (pairs.without_image, pairs.failed) == ((), ())


def test_a_rerun_skips_what_is_recorded_and_does_what_is_not(experts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(experts, out)
    before = contents(out)
    kept = (out / "a.tif").stat().st_mtime_ns
    (out / "ledger" / "b.json").unlink()
    (out / "b.tif").write_bytes(b"torn")
    assert run(experts, out).state == "complete"
    assert (out / "a.tif").stat().st_mtime_ns == kept
    assert contents(out) == before


def test_a_bad_drawing_fails_its_image_and_a_mended_one_is_done_by_the_same_call(experts: Path, tmp_path: Path) -> None:
    good = (experts / "e1" / "a.png").read_bytes()
    (experts / "e1" / "a.png").write_bytes(good[:60])
    outcome = run(experts, tmp_path / "out")
    assert (outcome.exit_code, outcome.summary.done, outcome.summary.failed) == (1, 2, 1)
    assert "e1/a.png: cannot be read" in outcome.rows[0].message
    (experts / "e1" / "a.png").write_bytes(good)
    assert run(experts, tmp_path / "out").exit_code == 0
    assert len(pd.read_csv(tmp_path / "out" / "agreement.csv")) == 12


def test_other_settings_or_drawings_are_refused_until_overwrite(experts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(experts, out)
    with pytest.raises(RefusedError, match="method was staple, now vote"):
        run(experts, out, settings={"method": "vote"})
    with pytest.raises(RefusedError, match=r"experts were .*, now .* --expert e"):
        run(experts, out, expert=["e[01]"])
    Image.fromarray(blob(21, 21)).save(experts / "e2" / "c.png")
    with pytest.raises(RefusedError, match="the drawings of c changed since its truth was estimated"):
        run(experts, out)
    for folder in experts.iterdir():
        (folder / "a.png").unlink()
    (out / "mine.txt").write_text("not Chorus's")
    assert run(experts, out, overwrite=True).state == "complete"
    assert not (out / "a.tif").exists()
    assert (out / "mine.txt").exists()


def test_a_folder_that_is_not_ours_and_nothing_to_read_are_refused(experts: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="holds no run of Chorus"):
        run(experts, experts, overwrite=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RefusedError, match="holds no folders"):
        run(tmp_path / "empty", tmp_path / "out")


def test_instances_and_classes_are_asked_for_by_the_settings(experts: Path, tmp_path: Path) -> None:
    run(experts, tmp_path / "objects", settings={"instances": True})
    table = pd.read_csv(tmp_path / "objects" / "agreement.csv")
    assert {"ap50", "map"} <= set(table.columns)
    outcome = run(experts, tmp_path / "classes", settings={"classes": 3})
    assert outcome.summary.failed == 3
    assert not (tmp_path / "classes" / "agreement.csv").exists()


@pytest.mark.ray
@pytest.mark.long
def test_ray_leaves_the_same_bytes_as_one_process(experts: Path, tmp_path: Path) -> None:
    run(experts, tmp_path / "serial")
    assert run(experts, tmp_path / "ray", executor="ray").state == "complete"
    assert contents(tmp_path / "serial") == contents(tmp_path / "ray")


def test_real_drawings_give_the_authors_truth_and_the_one_of_another_image_is_reported(
    shared_data: Path, tmp_path: Path
) -> None:
    said = []
    for lab in ("lab-inns1", "lab-inns2", "lab-mue", "lab-wue2"):
        source = shared_data / "multi_expert" / lab
        outcome = run(source, tmp_path / lab, expert=["expert_*"])
        assert outcome.state == "complete"
        said += [text for text in outcome.summary.warnings if "agrees with nobody" in text]
        dices = []
        for row in outcome.rows:
            ours = tifffile.imread(tmp_path / lab / row.file) > 0
            theirs = np.asarray(Image.open(source / "est_GT" / f"{row.name}.png")) > 0
            dices.append(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
        assert np.mean(dices) > 0.95, lab
    (only,) = said
    assert only.startswith("1051: the drawing of expert_1 agrees with nobody")
