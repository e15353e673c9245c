"""``chorus shift``: what it prints, what it leaves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.reference.storage import read_reference
from chorus.pipeline.shift.shift import Shift, find_shift
from tests.support.running import Chorus
from tests.support.simulated import simulated


def results(folder: Path, ensemble: Path, *, features: bool = True, difficulty: float = 0.0) -> Path:
    """A run of `ensemble` over 72 images of two plates of 3 x 4 wells."""
    folder.mkdir()
    tables = simulated(72, seed=1, difficulty=difficulty)
    names = [f"p{i // 36}.ome.zarr/{'ABC'[i // 12 % 3]}/{i // 3 % 4 + 1}/{i % 3}" for i in range(72)]
    tables.scores.assign(name=names).to_parquet(folder / "scores.parquet", index=False)
    if features:
        tables.features.assign(name=names).to_parquet(folder / "features.parquet", index=False)
    (folder / "run.json").write_text(json.dumps({"ensemble": {"hash": read_ensemble(str(ensemble)).hash}}))
    return folder


def test_shift_names_what_changed_and_keeps_all_of_it(chorus: Chorus, ensemble: Path, tmp_path: Path) -> None:
    out = results(tmp_path / "out", ensemble, difficulty=1)
    result = chorus("shift", out, "-e", ensemble.parent)
    assert result.code == 0, result.err
    assert result.out.startswith("shift in uncertainty: ")
    assert "the run is not like the reference images" in result.out
    assert "72 images, 60 of the reference" in result.out
    kept = Shift.model_validate_json((out / "shift.json").read_bytes())
    assert {test.name for test in kept.tests if test.shifted} >= {"uncertainty", "pairwise_dice"}
    assert {(one.plate, one.score) for one in kept.plates} >= {("p0", "uncertainty"), ("p1", "pairwise_dice")}


def test_shift_speaks_json_with_the_same_content(chorus: Chorus, ensemble: Path, tmp_path: Path) -> None:
    out = results(tmp_path / "out", ensemble)
    said = json.loads(chorus("shift", out, "-e", ensemble, "--json").out)
    assert said == json.loads((out / "shift.json").read_text())
    assert said["format"] == "chorus-shift/1"
    assert "features" in {test["name"] for test in said["tests"]}
    direct = find_shift(
        pd.read_parquet(out / "scores.parquet"),
        read_reference(str(ensemble)),
        pd.read_parquet(out / "features.parquet"),
    )
    assert said == json.loads(direct.model_dump_json())


def test_shift_does_without_features(chorus: Chorus, ensemble: Path, tmp_path: Path) -> None:
    out = results(tmp_path / "out", ensemble, features=False)
    said = json.loads(chorus("shift", out, "-e", ensemble, "--json").out)
    assert "features" not in {test["name"] for test in said["tests"]}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_shift_finds_what_a_table_of_plates_and_wells_explains(
    suffix: str, chorus: Chorus, ensemble: Path, tmp_path: Path
) -> None:
    out = results(tmp_path / "out", ensemble)
    scores = pd.read_parquet(out / "scores.parquet")
    wells = sorted({name.rpartition("/")[0] for name in scores["name"]})
    dose = {well: index % 5 for index, well in enumerate(wells)}
    noise = np.random.default_rng(0).normal(0, 1e-3, len(scores))
    doses = [dose[name.rpartition("/")[0]] for name in scores["name"]]
    scores.assign(uncertainty=0.02 + 0.01 * np.array(doses) + noise).to_parquet(out / "scores.parquet")
    table = pd.DataFrame({"name": [well.replace(".ome.zarr", "") for well in wells], "dose": [dose[w] for w in wells]})
    path = tmp_path / f"table.{suffix}"
    table.to_csv(path, index=False) if suffix == "csv" else table.to_parquet(path, index=False)
    result = chorus("shift", out, "-e", ensemble, "--metadata", path)
    assert result.code == 0, result.err
    assert "uncertainty U rises with dose (Spearman's rho" in result.out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("image,dose\na,1\n", "has no column `name`"),
        ("name,dose\na,1\na.ome.zarr,2\n", "is there twice"),
        ("name,dose\nelsewhere,1\n", "fits none of the 72 images"),
        ("", "is no table"),
        (None, "not found"),
    ],
)
def test_shift_refuses_a_table_in_one_sentence(
    content: str | None, said: str, chorus: Chorus, ensemble: Path, tmp_path: Path
) -> None:
    out = results(tmp_path / "out", ensemble)
    if content is not None:
        (tmp_path / "table.csv").write_text(content)
    result = chorus("shift", out, "-e", ensemble, "--metadata", tmp_path / "table.csv")
    assert result.code == 2
    assert said in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_shift_refuses_other_files_levels_and_runs(chorus: Chorus, ensemble: Path, tmp_path: Path) -> None:
    out = results(tmp_path / "out", ensemble)
    assert "ends with .csv or .parquet" in chorus("shift", out, "-e", ensemble, "--metadata", "a.xlsx").err
    assert "--alpha 5: give a number" in chorus("shift", out, "-e", ensemble, "--alpha", 5).err
    assert "no results of Chorus" in chorus("shift", tmp_path / "nowhere", "-e", ensemble).err
    (out / "run.json").write_text(json.dumps({"ensemble": {"hash": "other"}}))
    result = chorus("shift", out, "-e", ensemble)
    assert result.code == 2
    assert "was made with another ensemble" in result.err
