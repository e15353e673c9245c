"""Sentinels: a run goes on where the ensemble gives what it gave, and stops loudly where it does not."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr

from chorus.cluster.commands.sentinels import add_sentinel, compare_sentinels
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.telemetry.metrics import REGISTRY
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import RefusedError
from tests.support.making import pixels, write_image, write_light_ensemble

SMALL: dict[str, Any] = {"region": 64, "chunk": 32, "save": []}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one with labels that are nearly what the ensemble says, and the ensemble with that as a sentinel."""
    for seed, name in enumerate(("first", "second", "known")):
        write_image(tmp_path / f"{name}.ome.zarr", pixels((70, 60), seed=seed))
    write_light_ensemble(tmp_path / "ensemble", members=2, augmentations=["identity", "hflip"])
    out = run(tmp_path, sources=["known"], out="before").out
    found = np.array(zarr.open_array(f"{out}/images/known.ome.zarr/labels/semantic/s0", mode="r")[:])
    found[:5] = 1 - found[:5]
    write_image(tmp_path / "known.ome.zarr" / "labels" / "nuclei", found.astype(np.uint8))
    add_sentinel(str(tmp_path / "ensemble"), str(tmp_path / "known.ome.zarr"), "nuclei")
    return tmp_path


def run(
    folder: Path, *, sources: list[str] | None = None, out: str = "out", mode: str = "check", **settings: Any
) -> PredictOutcome:
    executor = settings.pop("executor", "serial")
    return predict(
        PredictRequest(
            sources=[str(folder / f"{name}.ome.zarr") for name in sources or ("first", "second")],
            ensemble=str(folder / "ensemble"),
            out=str(folder / out),
            settings=ResultSettings.model_validate(SMALL | settings),
            run=RunSettings.model_validate({"executor": executor, "sentinels": mode}),
        ),
        Silent(),
    )


def spec(folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((folder / "ensemble" / "ensemble.yaml").read_text()))


def edit(folder: Path, **changes: Any) -> None:
    (folder / "ensemble" / "ensemble.yaml").write_text(yaml.safe_dump(spec(folder) | changes))


def rows(folder: Path, out: str = "out") -> list[dict[str, Any]]:
    return list(json.loads((folder / out / "sentinels.json").read_text()))


def test_an_unchanged_ensemble_passes_and_gives_the_stored_dice(folder: Path) -> None:
    outcome = run(folder)
    assert outcome.state == "complete"
    assert [row.name for row in outcome.rows] == ["first.ome.zarr", "second.ome.zarr"]
    (row,) = rows(folder)
    assert 0.5 < row["stored"] < 1
    assert row["found"] == pytest.approx(row["stored"], abs=1e-6)
    assert (row["name"], row["class"], row["tolerance"], row["moved"]) == ("known", "nucleus", 0.01, False)
    content = json.loads((folder / "out" / "run.json").read_text())
    assert content["run"]["sentinels"] == "check"
    assert content["inputs"]["images"] == 2


def test_dice_is_that_of_the_pixels(folder: Path) -> None:
    predicted = zarr.open_array(folder / "before/images/known.ome.zarr/labels/semantic/s0", mode="r")[:] == 1
    truth = zarr.open_array(folder / "known.ome.zarr/labels/nuclei/s0", mode="r")[:] == 1
    expected = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
    assert spec(folder)["sentinels"][0]["dice"] == {"nucleus": pytest.approx(float(expected), abs=1e-6)}


def test_sentinels_change_neither_the_hash_nor_a_byte_of_the_results(folder: Path) -> None:
    before = read_ensemble(str(folder / "ensemble")).hash
    run(folder)
    edit(folder, sentinels=[])
    assert read_ensemble(str(folder / "ensemble")).hash == before
    run(folder, out="without")
    assert not (folder / "without" / "sentinels").exists()
    assert not (folder / "without" / "sentinels.json").exists()
    files = {path.relative_to(folder / "out") for path in (folder / "out" / "images").rglob("*") if path.is_file()}
    assert files
    assert all((folder / "out" / path).read_bytes() == (folder / "without" / path).read_bytes() for path in files)


def test_a_wrong_normalisation_stops_the_run_until_it_is_mended(folder: Path) -> None:
    right = spec(folder)["input"]
    wrong = right | {"normalisation": {"kind": "mean_std", "mean": [100.0], "std": [300.0]}}
    edit(folder, input=wrong)
    with pytest.raises(RefusedError, match=r"sentinel known: Dice of nucleus is 0\.\d+ and was 0\.\d+, tolerance 0.01"):
        run(folder)
    assert rows(folder)[0]["moved"]
    assert not (folder / "out" / "images").exists()
    with pytest.raises(RefusedError, match="look at its weights, its normalisation, the driver"):
        compare_sentinels(read_ensemble(str(folder / "ensemble")))
    edit(folder, input=right)
    assert compare_sentinels(read_ensemble(str(folder / "ensemble")))["known"]["nucleus"] > 0.5
    assert run(folder, out="again").state == "complete"


def test_a_wrong_weight_file_stops_the_run(folder: Path) -> None:
    """Its hash was taken from the file, so that nothing else shows that it is another network."""
    weights, right = folder / "ensemble" / "member-0.pt", spec(folder)["members"]
    other = write_light_ensemble(folder / "other", members=5, width=8).parent / "member-4.pt"
    weights.write_bytes(other.read_bytes())
    edit(folder, members=[right[0] | {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}, right[1]])
    with pytest.raises(RefusedError, match="sentinel known: Dice of nucleus"):
        run(folder)


def test_once_the_fault_is_mended_the_same_command_measures_anew_and_goes_on(folder: Path) -> None:
    """A fault of the machine leaves the ensemble as it is; here the sentinel's pixels stand for it."""
    array = zarr.open_array(folder / "ensemble/sentinels/known.ome.zarr/s0", mode="r+")
    content = array[:]
    array[:] = content // 4
    for _ in range(2):
        with pytest.raises(RefusedError, match="sentinel known: Dice of nucleus"):
            run(folder)
    array[:] = content
    assert run(folder).state == "complete"
    assert not rows(folder)[0]["moved"]


def test_resuming_does_not_repeat_what_is_done(folder: Path) -> None:
    run(folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "out" / "sentinels").rglob("*")}
    table = (folder / "out" / "sentinels.json").stat().st_mtime_ns
    assert run(folder).state == "complete"
    assert {path: path.stat().st_mtime_ns for path in (folder / "out" / "sentinels").rglob("*")} == before
    assert (folder / "out" / "sentinels.json").stat().st_mtime_ns == table
    add_sentinel(str(folder / "ensemble"), str(folder / "known.ome.zarr"), "nuclei", name="another")
    run(folder)
    assert [row["name"] for row in rows(folder)] == ["known", "another"]


def test_who_asks_for_it_is_only_warned_or_not_told_at_all(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(folder, sentinels=[spec(folder)["sentinels"][0] | {"dice": {"nucleus": 0.1}}])
    with caplog.at_level(logging.WARNING, logger="chorus"):
        assert run(folder, mode="warn").state == "complete"
    assert "sentinel known: Dice of nucleus is" in caplog.text
    assert rows(folder)[0]["moved"]
    home = {"run": str(folder / "out"), "ensemble": "light"}
    named = home | {"sentinel": "known", "class": "nucleus"}
    dice = {s: REGISTRY.get_sample_value("chorus_sentinel_dice", named | {"source": s}) for s in ("stored", "found")}
    assert dice == {"stored": 0.1, "found": rows(folder)[0]["found"]}
    assert REGISTRY.get_sample_value("chorus_sentinels_moved", home) == 1
    assert run(folder, out="skipped", mode="skip").state == "complete"
    assert not (folder / "skipped" / "sentinels.json").exists()
    with pytest.raises(RefusedError, match="sentinel known"):
        run(folder)


def test_a_dice_of_other_tiles_only_warns(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = spec(folder)["sentinels"][0]
    known["measured"]["tile"] *= 2
    edit(folder, sentinels=[known | {"dice": {"nucleus": 0.1}}])
    with caplog.at_level(logging.WARNING, logger="chorus"):
        assert run(folder).state == "complete"
    assert "measured with other tiles or augmentations: no proof of a fault" in caplog.text


def test_other_augmentations_than_measured_only_warn(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(folder, sentinels=[spec(folder)["sentinels"][0] | {"dice": {"nucleus": 0.1}}])
    with caplog.at_level(logging.WARNING, logger="chorus"):
        assert run(folder, augmentations=["identity"]).state == "complete"
    assert "measured with other tiles or augmentations: no proof of a fault" in caplog.text
    with pytest.raises(RefusedError, match="sentinel known"):
        run(folder, out="same", augmentations=["hflip", "identity"])


def test_a_sentinel_that_is_gone_stops_the_run(folder: Path) -> None:
    entry = spec(folder)["sentinels"][0]
    edit(folder, sentinels=[entry | {"label": "cells"}])
    with pytest.raises(RefusedError, match=r"sentinel known could not be processed \(.*labels/cells"):
        run(folder)
    edit(folder, sentinels=[entry | {"dice": {"cell": 0.9}}])
    with pytest.raises(RefusedError, match="known has a Dice of cell, which is no foreground class"):
        run(folder)


@pytest.mark.parametrize(
    ("image", "label", "tolerance", "said"),
    [
        ("known", "cells", 0.01, "labels/cells"),
        ("nowhere", "nuclei", 0.01, "not found"),
        (".", "nuclei", 0.01, "give one, such as"),
        ("known", "nuclei", 2.0, "--tolerance 2: give a difference"),
    ],
)
def test_what_cannot_be_a_sentinel_is_refused_and_nothing_written(
    folder: Path, image: str, label: str, tolerance: float, said: str
) -> None:
    before = sorted(folder.rglob("ensemble/**/*"))
    url = folder if image == "." else folder / f"{image}.ome.zarr"
    content = spec(folder)
    with pytest.raises(RefusedError, match=said):
        add_sentinel(str(folder / "ensemble"), str(url), label, name="more", tolerance=tolerance)
    assert spec(folder) == content
    assert sorted(folder.rglob("ensemble/**/*")) == before


@pytest.mark.ray
@pytest.mark.long
def test_on_ray_the_sentinels_are_tried_in_the_session_of_the_run(folder: Path) -> None:
    assert run(folder, executor="ray").state == "complete"
    assert not rows(folder)[0]["moved"]
