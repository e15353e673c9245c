"""Evaluations that are stopped or killed: the same command finishes them, with the table of one that was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from chorus.cluster.evaluation import image as evaluated
from chorus.cluster.evaluation.documents import EvaluationRecord, EvaluationRow
from chorus.cluster.evaluation.job import EvaluationJob, EvaluationSettings
from chorus.cluster.evaluation.run import EvaluateRequest, evaluate, read_evaluation
from chorus.cluster.objects.request import ObjectsRequest
from chorus.cluster.objects.run import find_objects
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.outcome import Outcome
from chorus.pipeline.errors import RefusedError
from tests.support.interruptions import StopAfter, killed_after
from tests.support.making import pixels, write_image, write_light_ensemble

NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over four images that saved its probabilities, and a truth for three of them."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "truth").mkdir()
    for seed, name in enumerate(NAMES):
        write_image(folder / "images" / f"{name}.ome.zarr", pixels((60, 50), seed=seed), "yx")
        truth = np.random.default_rng(seed).random((60, 50)) > 0.5
        if name != "d":
            tifffile.imwrite(folder / "truth" / f"{name}.tif", truth.astype(np.uint8), photometric="minisblack")
    ensemble = write_light_ensemble(folder / "ensemble", members=1, augmentations=["identity"])
    settings = {"save": ["probability"], "region": 64, "chunk": 32}
    request = {"sources": [str(folder / "images")], "ensemble": str(ensemble), "out": str(folder / "out")}
    content = request | {"settings": settings, "run": {"executor": "serial"}}
    assert predict(PredictRequest.model_validate(content), Silent()).state == "complete"
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run and of its truth."""
    for name in ("out", "truth"):
        shutil.copytree(finished / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that this process measures."""
    names: list[str] = []
    real = evaluated.evaluate_image

    def note(job: EvaluationJob) -> Any:
        names.append(job.image.name)
        return real(job)

    monkeypatch.setattr(evaluated, "evaluate_image", note)
    return names


def request(run: Path, **more: object) -> EvaluateRequest:
    content = {"out": str(run / "out"), "truth": str(run / "truth"), "executor": "serial"}
    return EvaluateRequest.model_validate(content | more)


def record(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "out" / "evaluation.json").read_text())
    return content


def results(run: Path) -> dict[str, object]:
    """What an evaluation leaves, without times."""
    content = {name: value for name, value in record(run).items() if name not in ("started", "finished")}
    return content | {name: (run / "out" / name).read_bytes() for name in ("evaluation.parquet", "reliability.svg")}


def test_a_killed_evaluation_goes_on_where_it_was_with_the_same_table(
    run: Path, measured: list[str], tmp_path: Path
) -> None:
    assert evaluate(request(run), Silent()).state == "complete"
    whole = results(run)
    measured.clear()
    killed_after(2, evaluate, request(run))
    assert record(run)["outcome"] == "running"
    with pytest.raises(RefusedError, match="no evaluation yet"):
        read_evaluation(str(run / "out"))
    outcome = evaluate(request(run), Silent())
    assert (outcome.state, outcome.exit_code) == ("complete", 0)
    assert measured == ["c.ome.zarr"]
    assert results(run) == whole
    assert not (run / "out" / "work" / "evaluation").exists()


def test_a_stopped_evaluation_says_what_is_open(run: Path) -> None:
    outcome: Outcome[EvaluationRow, EvaluationRecord] = evaluate(request(run), StopAfter(1))
    assert (outcome.state, outcome.exit_code) == ("interrupted", 3)
    assert [row.status for row in outcome.rows] == ["done", "open", "open", "no truth"]
    assert outcome.summary.images is not None
    assert (outcome.summary.images.open, outcome.summary.images.no_truth) == (2, 1)
    assert outcome.content["rows"][0]["dice"] == outcome.rows[0].values["dice"]  # type: ignore[index, call-overload]


@pytest.mark.parametrize("change", ["truth", "settings", "objects"])
def test_what_a_measure_depends_on_is_measured_again_when_it_changed(
    run: Path, measured: list[str], change: str
) -> None:
    evaluate(request(run), StopAfter(2))
    measured.clear()
    asked = request(run)
    if change == "truth":
        tifffile.imwrite(run / "truth" / "a.tif", np.ones((60, 50), np.uint8), photometric="minisblack")
    elif change == "settings":
        asked = request(run, settings=EvaluationSettings(baseline=False))
    else:
        objects = ObjectsRequest(out=str(run / "out"), method="components", executor="serial")
        assert find_objects(objects, Silent()).state == "complete"
    assert evaluate(asked, Silent()).state == "complete"
    assert measured == [f"{name}.ome.zarr" for name in ("ac" if change == "truth" else "abc")]
    found = results(run)
    shutil.rmtree(run / "out" / "work", ignore_errors=True)
    (run / "out" / "evaluation.json").unlink()
    evaluate(asked, Silent())
    assert results(run) == found


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\x00garbage", b"[]", b'{"command": "evaluate"}'])
def test_a_damaged_record_begins_anew(run: Path, measured: list[str], damage: bytes) -> None:
    evaluate(request(run), StopAfter(2))
    (run / "out" / "evaluation.json").write_bytes(damage)
    measured.clear()
    assert evaluate(request(run), Silent()).state == "complete"
    assert len(measured) == 3


@pytest.fixture(scope="module")
def whole(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """An evaluated run, and its table."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(finished / "out", folder / "out")
    evaluate(EvaluateRequest(out=str(folder / "out"), truth=str(finished / "truth"), executor="serial"), Silent())
    return folder / "out", (folder / "out" / "evaluation.parquet").read_bytes()


@settings(max_examples=50, deadline=None)
@given(data=st.data(), tail=st.binary(max_size=8))
def test_a_table_that_was_cut_anywhere_is_refused_in_one_sentence(
    whole: tuple[Path, bytes], data: st.DataObject, tail: bytes
) -> None:
    out, table = whole
    cut = table[: data.draw(st.integers(0, len(table) - 1))] + tail
    if cut == table:
        return
    (out / "evaluation.parquet").write_bytes(cut)
    with pytest.raises(RefusedError, match=r"evaluation\.parquet: is damaged \(.*\); run `chorus evaluate") as refused:
        read_evaluation(str(out))
    assert "\n" not in str(refused.value)
