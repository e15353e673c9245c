"""Logs for machines: one JSON object a line, which says what it is about."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chorus.cluster.telemetry.logs import about, about_run, log, structured
from chorus.pipeline.errors import RefusedError
from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.running import Chorus

NAMES = {"time", "level", "message", "run", "image", "region", "node", "process"}


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORUS_LOG", "json")


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("as_json")
def test_every_line_of_a_run_is_json_and_names_run_image_and_region(
    chorus: Chorus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "images" / "good.ome.zarr", pixels((64, 100)))
    broken = write_image(tmp_path / "images" / "broken.ome.zarr", pixels((40, 40)))
    for chunk in (path for path in (broken / "s0" / "c").rglob("*") if path.is_file()):
        chunk.write_bytes(b"not a chunk")
    ensemble, out = write_light_ensemble(tmp_path / "e", members=1, width=4), tmp_path / "out"
    settings = ["--executor", "serial", "--region", 64, "--chunk", 32, "--augment", "none", "--no-report"]
    result = chorus("predict", tmp_path / "images", "-e", ensemble, "-o", out, *settings)
    assert result.code == 1
    said = lines(result.err)
    assert all(set(line) >= NAMES and line["run"] == str(out) for line in said)
    regions = {(line["image"], line["region"]): line for line in said if line["region"] is not None}
    assert {(name, line["level"]) for name, line in regions.items()} == {
        (("good.ome.zarr", 0), "info"),
        (("good.ome.zarr", 1), "info"),
        (("broken.ome.zarr", 0), "warning"),
    }
    assert regions["good.ome.zarr", 0]["tiles"] > 0
    assert regions["broken.ome.zarr", 0]["message"].startswith("region failed: ")
    failed = [line for line in said if line["message"].startswith("image failed: ")]
    assert [(line["image"], line["level"]) for line in failed] == [("broken.ome.zarr", "warning")]
    assert any("2 images" in line["message"] for line in said)  # what a person would have seen


@pytest.mark.usefixtures("as_json")
def test_refusals_are_errors_and_other_output_is_left_alone(chorus: Chorus, tmp_path: Path) -> None:
    result = chorus("rank", tmp_path)
    (line,) = lines(result.err)
    assert (result.code, line["level"], result.out) == (2, "error", "")
    assert "no scores yet" in line["message"]


@pytest.mark.usefixtures("as_json")
def test_threads_do_not_mix_up_what_they_are_about(capsys: pytest.CaptureFixture[str]) -> None:
    together = threading.Barrier(8)

    def work(region: int) -> None:
        with about(run="r", image="i", region=region):
            together.wait(10)
            log.warning("%d", region)

    with structured():
        threads = [threading.Thread(target=work, args=(region,)) for region in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    said = lines(capsys.readouterr().err)
    assert sorted(line["region"] for line in said) == list(range(8))
    assert all(line["message"] == str(line["region"]) for line in said)


@pytest.mark.usefixtures("as_json")
def test_traces_and_coloured_consoles_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with structured():
        about_run("r")
        Console(stderr=True, force_terminal=True).print("[red]two[/red]\nlines")
        try:
            raise KeyError("x")
        except KeyError:
            log.exception("broke")
    first, second, third = lines(capsys.readouterr().err)
    assert [line["message"] for line in (first, second, third)] == ["two", "lines", "broke"]
    assert third["error"].startswith("Traceback")
    assert third["run"] == "r"


def test_without_the_variable_a_person_is_spoken_to_and_regions_are_not_listed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CHORUS_LOG", raising=False)
    with structured():
        assert not logging.getLogger("chorus.regions").isEnabledFor(logging.ERROR)
        assert not log.handlers


def test_another_kind_of_log_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORUS_LOG", "xml")
    with (
        pytest.raises(RefusedError, match="CHORUS_LOG=xml: is not a kind of log; set it to plain or json"),
        structured(),
    ):
        pass
