"""``chorus bench engine``: measures, says so, and the next run takes the fastest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chorus.cluster.state.results import finished_run
from tests.support.making import pixels, write_ensemble, write_image
from tests.support.running import Chorus


def test_the_fastest_backend_is_what_the_next_run_takes(
    chorus: Chorus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("chorus.pipeline.backends.measuring.usable", lambda *_: ["eager", "onnxruntime", "openvino"])
    ensemble = write_ensemble(tmp_path / "ensemble", members=1)
    options = ("--augment", "none", "--device", "cpu")
    for batch in (1, 2):
        result = chorus("bench", "engine", ensemble, *options, "--batch", batch, "--seconds", "0.2", "--json")
        assert result.code == 0, result.err
        (measurement,) = json.loads(result.out)
        assert measurement["samples"] == measurement["auto"]["batch"] == batch
        assert len(measurement["networks"][0]["timings"]) == 3
    # Whichever was fastest here, be it another one.
    kept = list((tmp_path / "cache" / "timings").glob("*.json"))
    assert len(kept) == 2

    def say(fast: int) -> None:
        for path in kept:
            content = json.loads(path.read_text())
            for timing in content["networks"][0]["timings"]:
                timing["rate"] = 1e6 if (timing["backend"], content["samples"]) == ("openvino", fast) else 1.0
            path.write_text(json.dumps(content))

    image = write_image(tmp_path / "image.zarr", pixels((80, 90)))
    run = ("--executor", "serial", "--no-report", "--objects", "none")
    for fast in (2, 1):  # a run that was begun goes on as it was, whatever was measured since
        say(fast)
        result = chorus("predict", image, "-e", ensemble, "-o", tmp_path / "out", *options, *run)
        assert result.code == 0, result.err
        settings = finished_run(str(tmp_path / "out")).settings.content
        assert (settings["backend"], settings["batch"]) == ("openvino", 2)


def test_the_table_names_every_backend_and_what_auto_takes(
    chorus: Chorus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("chorus.pipeline.backends.measuring.usable", lambda *_: ["eager", "onnxruntime"])
    ensemble = write_ensemble(tmp_path / "ensemble", members=1)
    result = chorus("bench", "engine", ensemble, "--augment", "none", "--device", "cpu", "--seconds", "0.1")
    assert result.code == 0, result.err
    assert "Unet x 1" in result.out
    assert "onnxruntime" in result.out
    assert "fp32: `--backend auto` takes" in result.out
    assert "a call" in result.out


def test_an_unknown_precision_is_refused(chorus: Chorus, tmp_path: Path) -> None:
    ensemble = write_ensemble(tmp_path / "ensemble", members=1)
    result = chorus("bench", "engine", ensemble, "--precision", "fp32,tf32", "--device", "cpu")
    assert result.code == 2
    assert "--precision fp32,tf32: choose out of fp32, bf16 and fp16" in result.err
