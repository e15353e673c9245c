"""``chorus flag``: what it prints, what it leaves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.reference.reference import calibrate_from
from chorus.pipeline.reference.storage import read_reference, write_reference
from chorus.pipeline.reference.words import NO_REFERENCE
from tests.support.making import write_light_ensemble
from tests.support.running import Chorus
from tests.support.simulated import simulated


def results(folder: Path, ensemble: Path, *, features: bool = True, images: int = 30) -> Path:
    """A run of `ensemble` of which the last ten images are unfamiliar and hard."""
    folder.mkdir()
    familiar = simulated(images - 10, seed=1)
    unfamiliar = simulated(10, seed=2, difficulty=8, feature_shift=3, prefix="strange")
    pd.concat([familiar.scores, unfamiliar.scores]).to_parquet(folder / "scores.parquet", index=False)
    if features:
        pd.concat([familiar.features, unfamiliar.features]).to_parquet(folder / "features.parquet", index=False)
    made_by = {"name": "light", "hash": read_ensemble(str(ensemble)).hash}
    (folder / "run.json").write_text(json.dumps({"ensemble": made_by}))
    return folder


@pytest.mark.parametrize("features", [True, False])
def test_flag_prints_reasons_and_keeps_a_table(features: bool, chorus: Chorus, ensemble: Path, tmp_path: Path) -> None:
    out = results(tmp_path / "out", ensemble, features=features)
    result = chorus("flag", out, "-e", ensemble.parent, "--budget", 0.34)
    assert result.code == 0, result.err
    table = pd.read_parquet(out / "flags.parquet")
    assert set(table["name"].iloc[:10]) == {f"strange-{index:04d}" for index in range(10)}
    assert table["review"].sum() == 11
    assert "look at  11 of 30 images" in result.out
    assert "expected Dice" in result.out
    assert "60 reference images" in result.out
    assert ("features " in result.out) == features


def test_flag_speaks_json_with_the_same_content(chorus: Chorus, ensemble: Path, tmp_path: Path) -> None:
    out = results(tmp_path / "out", ensemble)
    content = json.loads(chorus("flag", out, "-e", ensemble, "--below", 0.7, "--json").out)
    table = pd.read_parquet(out / "flags.parquet")
    assert [row["name"] for row in content["images"]] == table["name"].tolist()
    assert [row["flags"] for row in content["images"]] == [list(flags) for flags in table["flags"]]
    assert len(content["review"]["look_at"]) == 2
    assert content["reference"]["images"] == 60
    assert content["images"][0]["rank"] == 1


def test_another_alpha_is_the_bound_that_a_calibration_with_it_gives(
    chorus: Chorus, ensemble: Path, tmp_path: Path
) -> None:
    out = results(tmp_path / "out", ensemble)
    tables, known = simulated(60, seed=0), read_reference(str(ensemble))
    for alpha in (0.1, 0.3):
        again = calibrate_from(tables.scores, tables.evaluation, tables.features, ensemble=known.ensemble, alpha=alpha)
        assert known.at_alpha(alpha).bound == again.bound
    assert json.loads(chorus("flag", out, "-e", ensemble, "--alpha", 0.3, "--json").out)["reference"]["alpha"] == 0.3
    wide = pd.read_parquet(out / "flags.parquet").set_index("name")["dice_bound"]
    assert chorus("flag", out, "-e", ensemble).code == 0
    narrow = pd.read_parquet(out / "flags.parquet").set_index("name")["dice_bound"]
    assert (narrow <= wide).all()
    assert (narrow < wide).any()


def test_a_run_is_judged_by_the_reference_set_beside_its_ensemble_or_by_another(
    chorus: Chorus, ensemble: Path, tmp_path: Path
) -> None:
    out = results(tmp_path / "out", ensemble)
    digest = read_ensemble(str(ensemble)).hash
    refused = chorus("flag", out)
    assert (refused.code, "name it by --ensemble" in refused.err) == (2, True)
    (out / "run.json").write_text(json.dumps({"ensemble": {"name": "light", "hash": digest, "url": str(ensemble)}}))
    assert json.loads(chorus("flag", out, "--json").out)["reference"]["images"] == 60
    tables = simulated(24, seed=5)
    other = tmp_path / "other"
    other.mkdir()
    write_reference(str(other), calibrate_from(tables.scores, tables.evaluation, tables.features, ensemble=digest))
    assert json.loads(chorus("flag", out, "--reference", other, "--json").out)["reference"]["images"] == 24


def test_flag_prints_as_many_rows_as_asked(chorus: Chorus, ensemble: Path, tmp_path: Path) -> None:
    out = results(tmp_path / "out", ensemble)
    three, all_images = (chorus("flag", out, "-e", ensemble, "--top", count).out.splitlines() for count in (3, 0))
    assert sum(line.startswith("│") and "strange-" in line for line in three) == 3
    assert sum(not line.startswith("│") and "strange-" in line for line in three) == 3  # the reasons
    assert sum(line.startswith("│") and "image-" in line for line in all_images) == 20


def test_flag_leaves_its_counts_for_prometheus(chorus: Chorus, ensemble: Path, tmp_path: Path) -> None:
    out, kept = results(tmp_path / "out", ensemble), tmp_path / "chorus.prom"
    assert chorus("flag", out, "-e", ensemble, "--metrics-file", kept).code == 0
    counts = pd.read_parquet(out / "flags.parquet")["flags"].explode().value_counts()
    lines = [line for line in kept.read_text().splitlines() if f'run="{out}"' in line]
    assert lines == [
        f'chorus_images_flagged{{ensemble="light",flag="{flag}",run="{out}"}} {float(counts.get(flag, 0))}'
        for flag in ("failed", "empty", "poor", "uncertain", "ood")
    ]
    refused = chorus("flag", out, "-e", ensemble, "--metrics-file", tmp_path / "nowhere" / "chorus.prom")
    assert (refused.code, "choose another place" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "5"], "--budget 5: give a share"),
        (["--below", "80"], "--below 80: give a Dice"),
        (["--alpha", "1"], "--alpha 1: give a share"),
    ],
)
def test_flag_refuses_in_one_sentence(
    arguments: list[str], said: str, chorus: Chorus, ensemble: Path, tmp_path: Path
) -> None:
    result = chorus("flag", results(tmp_path / "out", ensemble), "-e", ensemble, *arguments)
    assert result.code == 2
    assert said in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_flag_needs_a_calibrated_ensemble_and_its_own_run(chorus: Chorus, ensemble: Path, tmp_path: Path) -> None:
    out = results(tmp_path / "out", ensemble)
    other = write_light_ensemble(tmp_path / "other", members=2)
    result = chorus("flag", out, "-e", other)
    assert result.code == 2
    assert f"{other}: {NO_REFERENCE} (" in result.err
    tables = simulated(20, seed=0)
    write_reference(
        str(other), calibrate_from(tables.scores, tables.evaluation, ensemble=read_ensemble(str(other)).hash)
    )
    result = chorus("flag", out, "-e", other)
    assert result.code == 2
    assert "was made with another ensemble" in result.err
    result = chorus("flag", tmp_path / "nowhere", "-e", ensemble)
    assert result.code == 2
    assert "no results of Chorus" in result.err


@pytest.mark.parametrize("name", ["scores.parquet", "features.parquet", "run.json"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_flag_of_results_that_are_cut_is_one_sentence(
    name: str, share: float, chorus: Chorus, ensemble: Path, tmp_path: Path
) -> None:
    out = results(tmp_path / "out", ensemble)
    data = (out / name).read_bytes()
    (out / name).write_bytes(data[: int(share * len(data))])
    refused = chorus("flag", out, "-e", ensemble)
    assert refused.code == 2
    assert refused.err.startswith(f"chorus: {out / name}: is damaged (")
    assert refused.err.count("\n") == 1
    assert not (out / "flags.parquet").exists()
