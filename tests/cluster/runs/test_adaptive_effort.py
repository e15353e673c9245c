"""Runs with adaptive effort: measured, recorded, the same in every cut, refused where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from typer.testing import CliRunner

from chorus.cli import app
from chorus.cluster.commands.effort import add_effort
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.state.results import finished_run
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.ensembles.builtin import builtin_ensembles
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import RefusedError
from tests.support.efforts import half_of_the_tiles
from tests.support.making import pixels, write_ensemble, write_image, write_light_ensemble

runner = CliRunner()
FREE = ["--changed", "0.9", "--shift", "0.2", "--risk", "0.2"]


def run(source: Path, ensemble: Path, out: Path, run: dict[str, Any] | None = None, **settings: Any) -> PredictOutcome:
    chosen = {"effort": "adaptive", "region": 64, "chunk": 32, "dtype": "float32"} | settings
    return predict(
        PredictRequest(
            sources=[str(source)],
            ensemble=str(ensemble),
            out=str(out),
            settings=ResultSettings.model_validate(chosen),
            run=RunSettings.model_validate({"executor": "serial", "thumbnails": False} | (run or {})),
        ),
        Silent(),
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """An ensemble with a bound, the image that it was measured on, and what the command said."""
    folder = tmp_path_factory.mktemp("adaptive")
    ensemble = write_light_ensemble(folder / "e", members=3, tile=32)
    image = write_image(folder / "reference.ome.zarr", pixels((90, 80)))
    before = read_ensemble(str(ensemble)).hash
    done = runner.invoke(
        app, ["ensemble", "effort", str(ensemble), str(image), *FREE, "--reference", "noise", "--json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["hash"] == before == read_ensemble(str(ensemble)).hash
    content = yaml.safe_load(ensemble.read_text())
    # Where everything may change all tiles are done early; these tests want some of both kinds.
    content["effort"]["factors"] = half_of_the_tiles(ensemble, image, content["effort"]["changed"])
    ensemble.write_text(yaml.safe_dump(content))
    return ensemble, image, found


def test_a_bound_says_what_it_was_measured_on(measured: tuple[Path, Path, dict[str, Any]]) -> None:
    ensemble, _, found = measured
    tiles = 5 * 4  # of 32 pixels, half of each shared
    assert (found["images"], found["tiles"], found["stopped"]) == (1, tiles, [tiles, 0])
    assert (found["tile"], found["overlap"], found["reference"]) == (32, 0.5, "noise")
    assert found["changed"] == 0.9
    shown = runner.invoke(app, ["ensemble", "show", str(ensemble)], env={"COLUMNS": "300"})
    said = " ".join(shown.output.split())  # however the terminal folds it
    assert "that at most 90.00% of a tile's labels change (measured on 1 images, noise)" in said


def test_adaptive_runs_are_the_same_in_every_cut_and_say_what_tiles_got(
    measured: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    ensemble, image, _ = measured
    outcomes = [run(image, ensemble, tmp_path / str(size), region=size) for size in (256, 64)]
    arrays, rows = [], []
    for size in (256, 64):
        group = zarr.open_group(tmp_path / str(size) / "images/reference.ome.zarr", mode="r")
        names = [c["label"] for c in group.attrs["ome"]["omero"]["channels"]]  # type: ignore[index, call-overload]
        assert names[-1] == "samples"
        arrays.append((np.asarray(group["s0"]), np.asarray(group["labels/semantic/s0"])))
        rows.append(read_scores(str(tmp_path / str(size))).drop(columns=["seconds", "tiles", "regions"]))
    assert all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))
    assert rows[0].equals(rows[1])
    samples = arrays[0][0][-1]
    assert samples.min() == pytest.approx(3)
    assert samples.max() == pytest.approx(12)
    assert 3 < rows[0]["samples"][0] < 12
    saved = outcomes[0].summary.passes_saved
    assert saved == pytest.approx(1 - rows[0]["samples"][0] / 12, abs=1e-4)  # one region: no tile twice
    assert finished_run(str(tmp_path / "64")).settings.content["bound"]["changed"] == 0.9


def test_a_run_goes_on_with_its_own_bound_alone(measured: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    ensemble, image, _ = measured
    run(image, ensemble, tmp_path / "out", save=["probability"])
    other = tmp_path / "e/ensemble.yaml"
    other.parent.mkdir()
    for file in ensemble.parent.iterdir():
        (other.parent / file.name).write_bytes(file.read_bytes())
    content = yaml.safe_load(other.read_text())
    content["effort"]["changed"] = 0.5
    other.write_text(yaml.safe_dump(content))
    with pytest.raises(RefusedError, match=r"holds results of another run .*bound was"):
        run(image, other, tmp_path / "out", save=["probability"])
    full = run(image, ensemble, tmp_path / "full", save=["probability"], effort="full")
    assert full.rows[0].samples is None
    assert "passes_saved" not in full.summary.model_dump()


@pytest.mark.parametrize(
    ("settings", "how", "why"),
    [
        ({"tile": 64}, {}, "was measured with tile 32, not 64"),
        ({"augmentations": ["identity", "hflip"]}, {}, "was measured with augmentations"),
        ({}, {"placement": "staged"}, "needs all members in one actor"),
        ({"effort": "full", "save": ["samples"]}, {}, "is the same everywhere with full effort"),
    ],
)
def test_what_a_bound_does_not_hold_for_is_refused(
    measured: tuple[Path, Path, dict[str, Any]], settings: dict[str, Any], how: dict[str, Any], why: str, tmp_path: Path
) -> None:
    ensemble, image, _ = measured
    with pytest.raises(RefusedError, match=why):
        run(image, ensemble, tmp_path / "out", how, **settings)


def test_an_ensemble_without_a_bound_or_with_another_one_s_is_refused(
    measured: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    plain = write_light_ensemble(tmp_path / "plain", members=2, tile=32)
    with pytest.raises(RefusedError, match="make one with `chorus ensemble effort`"):
        resolve(ResultSettings(effort="adaptive"), read_ensemble(str(plain)))
    content = yaml.safe_load(plain.read_text()) | {"effort": yaml.safe_load(measured[0].read_text())["effort"]}
    plain.write_text(yaml.safe_dump(content))
    with pytest.raises(RefusedError, match="measured before the ensemble changed"):
        resolve(ResultSettings(effort="adaptive"), read_ensemble(str(plain)))


def test_an_ensemble_that_has_nothing_to_leave_out_cannot_be_measured(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.ome.zarr", pixels((40, 40)))
    single = write_light_ensemble(tmp_path / "single", members=1, tile=32)
    with pytest.raises(RefusedError, match="needs two of both"):
        add_effort(str(single), [str(image)])
    few = write_light_ensemble(tmp_path / "few", members=2, tile=32)
    with pytest.raises(RefusedError, match="give images of 86 tiles"):
        add_effort(str(few), [str(image)])


def test_adaptive_effort_with_resampling_and_flows_is_the_same_in_every_cut(tmp_path: Path) -> None:
    entry = {
        "channels": ["dna"],
        "pixel_size_um": 1.0,
        "normalisation": {"kind": "mean_std", "mean": [500.0], "std": [300.0]},
    }
    ensemble = write_ensemble(tmp_path / "e", members=2, flows=True, input=entry, augmentations=["identity", "hflip"])
    read = read_ensemble(str(ensemble))
    image = write_image(tmp_path / "image.ome.zarr", pixels((150, 113)), pixel_size=0.8)
    content = yaml.safe_load(ensemble.read_text())
    known = {"augmentations": ["identity", "hflip"], "images": 1, "tiles": 1, "stopped": [0]}
    factors = half_of_the_tiles(ensemble, image, 0.01)
    content["effort"] = known | {"factors": factors, "ensemble": read.hash, "tile": 64, "overlap": 0.5}
    ensemble.write_text(yaml.safe_dump(content))
    save = ["probability", "flow_variance", "flows"]
    found = []
    for size in (256, 64):
        run(image, ensemble, tmp_path / str(size), region=size, save=save)
        found.append(np.asarray(zarr.open_group(tmp_path / str(size) / "images/image.ome.zarr", mode="r")["s0"]))
    assert np.array_equal(*found)
    assert (found[0][-1].min(), found[0][-1].max()) == (2, 4)


def test_the_built_in_ensemble_has_a_bound_for_its_own_settings() -> None:
    read = read_ensemble(builtin_ensembles()["nuclei-fluo"])
    resolved = resolve(ResultSettings(effort="adaptive"), read)
    assert resolved.bound == read.spec.effort
    assert resolved.save[-1] == "samples"
    assert resolved.bound is not None
    assert all(0 < share < 0.05 for share in resolved.bound.doubtful)
