"""Thumbnails are made while a run goes on, and not where none are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.report.thumbnails import thumbnails_present
from tests.support.making import pixels, write_image, write_light_ensemble


@pytest.mark.parametrize("wanted", [True, False])
def test_every_finished_image_has_a_thumbnail_if_they_are_wanted(wanted: bool, tmp_path: Path) -> None:
    for index in range(2):
        write_image(tmp_path / "in" / f"image{index}.zarr", pixels((70, 90)))
    (tmp_path / "in" / "broken.zarr").mkdir()
    (tmp_path / "in" / "broken.zarr" / "zarr.json").write_text("{")
    out = str(tmp_path / "out")
    request = PredictRequest(
        sources=[str(tmp_path / "in")],
        ensemble=str(write_light_ensemble(tmp_path / "ensemble", members=1)),
        out=out,
        settings=ResultSettings(region=64, chunk=32),
        run=RunSettings(executor="serial", thumbnails=wanted),
    )
    outcome = predict(request, Silent())
    done = {row.name for row in outcome.rows if row.status != "failed"}
    assert len(done) == 2
    assert thumbnails_present(out) == (done if wanted else set())
