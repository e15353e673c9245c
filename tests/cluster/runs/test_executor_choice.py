"""What carries a run out where nobody chose: this process for little, Ray for more and where it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chorus.cluster.planning.devices.device_probe import DeviceProbe
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import plan_job, predict
from chorus.cluster.runs import setup
from chorus.cluster.runtime.break_even import IMAGE_SECONDS, SERIAL_SECONDS, TRIED_TILES
from chorus.cluster.runtime.reporting import Silent
from tests.support.making import pixels, write_image, write_light_ensemble

IMAGES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made")
    write_light_ensemble(made / "ensemble", members=2, width=4, tile=32, augmentations=["identity"])
    for index in range(IMAGES):
        write_image(made / "images" / f"{index}.ome.zarr", pixels((60, 50), seed=index))
    return made


def request(folder: Path, out: Path, **run: Any) -> PredictRequest:
    return PredictRequest(
        sources=[str(folder / "images")],
        ensemble=str(folder / "ensemble"),
        out=str(out),
        settings=ResultSettings(region=64, chunk=32),
        run=RunSettings(**run),
    )


def small(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, **run: Any) -> bool | None:
    """Whether a run whose tiles take so long together stays here; None where that was clear without a trial."""
    job = plan_job(request(folder, tmp_path / "out", **run), Silent())
    tiles = setup.cost(job.table, job.ensemble, job.settings).tiles
    tried = []

    def calibrate(*_: object, once: bool) -> DeviceProbe:
        tried.append(True)
        return DeviceProbe(1, 1, 1, 1 << 40, seconds / tiles, "made up")

    monkeypatch.setattr(setup, "probe_device", calibrate)
    found = setup._small(job, Silent()) is not None
    assert tried or not found
    return found if tried else None


def test_the_forecast_decides(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = SERIAL_SECONDS - IMAGES * IMAGE_SECONDS
    assert small(folder, tmp_path, monkeypatch, 0.99 * most)
    assert small(folder, tmp_path, monkeypatch, 1.01 * most) is False


@pytest.mark.parametrize("run", [{"address": "auto"}, {"actors": 2}, {"placement": "staged"}], ids=str)
def test_who_asks_for_a_cluster_gets_it_without_a_trial_here(
    run: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert small(folder, tmp_path, monkeypatch, 0.1, **run) is None


def test_one_actor_may_be_this_process(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert small(folder, tmp_path, monkeypatch, 0.1, actors=1)


def test_a_ray_that_runs_already_is_used(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "ray_is_up", lambda: True)
    assert small(folder, tmp_path, monkeypatch, 0.1) is None


def test_many_tiles_or_images_are_not_tried_here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "TRIED_TILES", 1)
    assert small(folder, tmp_path, monkeypatch, 0.1) is None
    monkeypatch.setattr(setup, "TRIED_TILES", TRIED_TILES)
    monkeypatch.setattr(setup, "IMAGE_SECONDS", SERIAL_SECONDS)
    assert small(folder, tmp_path, monkeypatch, 0.1) is None


def test_a_small_run_is_done_here_with_the_same_bytes_and_says_so(folder: Path, tmp_path: Path) -> None:
    for executor in ("auto", "serial"):
        assert predict(request(folder, tmp_path / executor, executor=executor), Silent()).state == "complete"
    content = json.loads((tmp_path / "auto" / "run.json").read_text())
    assert content["run"]["executor"] == "serial"
    files = {
        executor: {
            str(path.relative_to(tmp_path / executor)): path.read_bytes()
            for path in sorted((tmp_path / executor / "images").rglob("*"))
            if path.is_file()
        }
        for executor in ("auto", "serial")
    }
    assert len(files["auto"]) > 10
    assert files["auto"] == files["serial"]
