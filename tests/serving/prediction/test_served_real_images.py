"""Real images by real clients: what they get is what a run gives, flags of a calibrated ensemble included."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr

from chorus import Client
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.ensembles.builtin import named_ensemble
from chorus.pipeline.io.files.conversion import ConvertSettings, convert_file
from chorus.serving.contract.metrics import ApplicationMetrics
from chorus.serving.contract.schemas import Prediction
from chorus.serving.contract.settings import parse_settings
from chorus.serving.web.api import create_app
from tests.support.browsing import Served
from tests.support.local_predictors import LocalPredictors
from tests.support.making import pixels, write_ensemble, write_image
from tests.support.running import Chorus

JUDGED = ("expected_dice", "dice_bound", "risk", "p_value")
LEFT_OUT = {"image", "source", "name", "status", "message", "regions", "seconds"}


@contextmanager
def listening(ensemble: str) -> Iterator[str]:
    """The URL of a server of this process."""
    settings = parse_settings({"ensemble": ensemble})
    predictors = LocalPredictors(settings)
    served = Served(create_app(settings, predictors, ApplicationMetrics()))
    try:
        yield served.url
    finally:
        served.stop()
        predictors.close()


def run(folder: Path, ensemble: str, out: Path, **settings: object) -> pd.DataFrame:
    """Scores of a run of this process, by image."""
    chosen, here = ResultSettings(**settings), RunSettings(executor="serial", thumbnails=False)  # type: ignore[arg-type]
    request = PredictRequest(
        sources=[str(folder)], ensemble=ensemble, out=str(out), settings=chosen, run=here, objects="auto"
    )
    assert predict(request, Silent()).state == "complete"
    return pd.read_parquet(out / "scores.parquet").set_index("name")


def assert_scores(found: dict[str, float | None], row: pd.Series) -> None:
    assert found == {name: None if pd.isna(value) else value for name, value in row.items() if name not in LEFT_OUT}


def test_three_clients_at_once_get_of_real_images_what_a_run_gives(shared_data: Path, tmp_path: Path) -> None:
    files = sorted((shared_data / "dsb2018" / "test" / "images").iterdir())[:3]
    for file in files:
        convert_file(str(file), str(tmp_path / "in" / f"{file.stem}.ome.zarr"), ConvertSettings())
    ensemble = named_ensemble("nuclei-fluo")
    rows = run(tmp_path / "in", ensemble, tmp_path / "out", augmentations=["identity"])
    with listening(ensemble) as url:

        def ask(file: Path) -> tuple[Prediction, dict[str, np.ndarray]]:
            with Client(url) as client:
                found = client.segment(file, ["labels", "objects", "uncertainty"], augmentations=["identity"])
            return found.prediction, found.arrays

        with ThreadPoolExecutor(len(files)) as pool:
            answers = list(pool.map(ask, files))
    for file, (prediction, arrays) in zip(files, answers, strict=True):
        name = f"{file.stem}.ome.zarr"
        assert (prediction.unjudged is None) == (prediction.risk is not None)
        assert_scores(prediction.scores, rows.loc[name])
        group = tmp_path / "out" / "images" / name
        posterior = zarr.open_group(group, mode="r")
        channels = [channel["label"] for channel in dict(posterior.attrs["ome"])["omero"]["channels"]]  # type: ignore[arg-type]
        stored = np.asarray(posterior["s0"])[channels.index("uncertainty")]
        assert arrays["uncertainty"].tobytes() == stored.tobytes()
        for kind, key in (("semantic", "labels"), ("nucleus", "objects-nucleus")):
            labels = np.asarray(zarr.open_array(group / "labels" / kind / "s0", mode="r"))
            assert np.array_equal(arrays[key], labels), (name, kind)
        assert prediction.objects == {"nucleus": int(arrays["objects-nucleus"].max())}
        assert prediction.objects["nucleus"] > 3


@pytest.mark.long
def test_flags_reasons_and_what_dice_to_expect_are_those_of_chorus_flag(chorus: Chorus, tmp_path: Path) -> None:
    """Of images one by one, by a server; and of all together, by the command on a run."""
    fixed = ["-e", tmp_path / "e", "--executor", "serial", "--region", 64, "--chunk", 32]
    write_ensemble(tmp_path / "e", members=2, augmentations=["identity"])
    (tmp_path / "truth").mkdir()
    for seed in range(12):
        write_image(tmp_path / "known" / f"{seed:02d}.ome.zarr", pixels((48, 40), seed=seed))
    done = chorus("predict", tmp_path / "known", "-o", tmp_path / "first", "--no-report", *fixed)
    assert done.code == 0, done.err
    for seed in range(12):  # a truth that is further from the labels with every image
        stored = zarr.open_array(tmp_path / f"first/images/{seed:02d}.ome.zarr/labels/semantic/s0", mode="r")
        truth = np.array(stored[:])
        truth[: 2 * seed] = 1 - truth[: 2 * seed]
        tifffile.imwrite(tmp_path / f"truth/{seed:02d}.tif", truth)
    made = chorus("calibrate", tmp_path / "known", "-o", tmp_path / "first", "--truth", tmp_path / "truth", *fixed)
    assert made.code == 0, made.err

    images = {f"{seed}.ome.zarr": pixels((50, 45), seed=100 + seed) for seed in range(3)}
    images["bright.ome.zarr"] = images["0.ome.zarr"] * 20
    images["dark.ome.zarr"] = images["0.ome.zarr"] * 0
    for name, image in images.items():
        write_image(tmp_path / "new" / name, image)
    rows = run(tmp_path / "new", str(tmp_path / "e"), tmp_path / "out")
    judged = pd.read_parquet(tmp_path / "out" / "flags.parquet").set_index("name")
    with listening(str(tmp_path / "e")) as url, Client(url) as client:
        assert client.ensembles()[0].calibrated
        for name, image in images.items():
            found, row = client.predict(image), judged.loc[name]
            assert found.unjudged is None
            assert_scores(found.scores, rows.loc[name])
            assert (found.flags, found.reasons) == (list(row["flags"]), list(row["reasons"])), name
            for key in JUDGED:
                assert getattr(found, key) == (None if pd.isna(row[key]) else float(row[key])), (name, key)
    assert "ood" in judged.loc["bright.ome.zarr", "flags"]
    assert len({tuple(flags) for flags in judged["flags"]}) > 1
