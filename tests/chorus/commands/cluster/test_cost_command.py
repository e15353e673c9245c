"""`chorus plan --cluster` and `predict --cluster`: prices in, cost out, and one run calibrates the next."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.paths import ROOT
from tests.support.running import Chorus

EXAMPLE = ROOT / "infra" / "cost" / "cluster.yaml"


def test_a_run_says_what_it_cost_and_calibrates_a_plan_without_a_gpu(chorus: Chorus, tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.zarr", pixels((128, 128)))
    ensemble = write_light_ensemble(tmp_path / "e", width=1)
    common = [str(image), "-e", str(ensemble), "--region", "64", "--chunk", "64", "--augment", "none"]
    prices = ["--cluster", str(EXAMPLE)]
    ran = chorus("predict", *common, "-o", tmp_path / "out", "--executor", "serial", "--no-report", *prices, "--json")
    assert ran.code == 0, ran.err
    summary = json.loads(ran.out)["summary"]
    assert summary["cost"]["currency"] == "USD"
    assert summary["measured_over_predicted"] > 0
    assert "cost of this session" in ran.err
    assert json.loads((tmp_path / "out" / "run.json").read_text())["summary"] == summary
    planned = chorus("plan", *common, "-o", tmp_path / "p", *prices, "--calibration", tmp_path / "out", "--json")
    assert planned.code == 0, planned.err
    found = json.loads(planned.out)
    assert found["calibration"]["seconds_per_tile"] == summary["seconds_per_tile"]
    assert found["alone"][0]["title"] == "2 x small-gpu-spot"
    shown = chorus("plan", *common, "-o", tmp_path / "p", *prices, "--calibration", tmp_path / "out")
    assert "All together, by node type" in shown.out
    alone = chorus("plan", *common, "-o", tmp_path / "p", "--calibration", tmp_path / "out")
    assert alone.code == 2
    assert "--calibration is for --cluster" in alone.err
