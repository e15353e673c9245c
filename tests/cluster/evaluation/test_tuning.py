"""Options of objects are chosen by what `chorus evaluate` would measure, and the search leaves the run as it was."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile

from chorus.cluster.evaluation import trials, tuning
from chorus.cluster.evaluation.candidates import changed
from chorus.cluster.evaluation.run import EvaluateRequest, evaluate
from chorus.cluster.evaluation.tuning import TuneRequest, TuningRecord, tune_objects
from chorus.cluster.objects.request import ObjectsRequest
from chorus.cluster.objects.run import find_objects
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.scores import write_scores
from chorus.pipeline.errors import CutShortError, RefusedError
from tests.support.object_runs import drawn, write_ensemble, write_results, write_source
from tests.support.rows import image_row

# Discs, and crumbs that no expert has drawn.
TRUTH = {name: drawn(seed, 130, 150, 14) for seed, name in enumerate("abc")}


def crumbs(labels: np.ndarray, seed: int) -> np.ndarray:
    found, rng = labels.copy(), np.random.default_rng(seed)
    for number, (y, x) in enumerate(rng.integers(0, (126, 146), (40, 2)), labels.max() + 1):
        if not found[y : y + 4, x : x + 5].any():
            found[y : y + 4, x : x + 5] = number
    return found


SEEN = {name: crumbs(labels, seed) for seed, (name, labels) in enumerate(TRUTH.items())}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    ensemble = write_ensemble(tmp_path / "ensemble")
    out = write_results(tmp_path / "out", write_source(tmp_path / "source", SEEN), ensemble, SEEN, region=256)
    source = str(tmp_path / "source")
    write_scores(str(out), [image_row(f"{n}.ome.zarr", source=source, image=f"{n}.ome.zarr") for n in SEEN])
    return out


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    for name, labels in TRUTH.items():
        (tmp_path / "truth").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "truth" / f"{name}.tif", labels.astype(np.uint16))
    return tmp_path / "truth"


def request(out: Path, truth: Path, **options: Any) -> TuneRequest:
    content = {"out": str(out), "method": "components", "executor": "serial"} | options
    return TuneRequest(objects=ObjectsRequest.model_validate(content), truth=str(truth))


def precision(out: Path, truth: Path, asked: ObjectsRequest) -> pd.DataFrame:
    find_objects(asked, Silent())
    evaluate(EvaluateRequest(out=str(out), truth=str(truth), executor="serial"), Silent())
    return pd.read_parquet(out / "evaluation.parquet")


def content(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_scores_are_those_of_evaluate(out: Path, truth: Path) -> None:
    asked = request(out, truth)
    chosen, record = tune_objects(asked, Silent())
    assert set(record.images) == {f"{name}.ome.zarr" for name in TRUTH}
    assert chosen == changed(asked.objects, dict(record.chosen))
    assert chosen.minimum_size > 20  # the crumbs are gone
    for row in (record.tried[0], record.tried[-1]):
        measured = precision(out, truth, changed(asked.objects, dict(row.options)))
        assert measured["map"].mean() == pytest.approx(row.mean_precision, abs=1e-12)
        assert measured["ap50"].mean() == pytest.approx(row.precision_50, abs=1e-12)
        assert measured["objects_predicted"].sum() == row.objects
    means = [row.mean_precision for row in record.tried]
    assert means == sorted(means, reverse=True)
    assert record.left_out is not None
    assert record.before < means[0]
    assert record.left_out <= means[0]
    assert record.tried[0].options == record.chosen


def test_a_search_changes_nothing_of_the_run(out: Path, truth: Path) -> None:
    find_objects(ObjectsRequest(out=str(out), executor="serial"), Silent())
    before = content(out)
    tune_objects(request(out, truth, foreground_threshold=0.6), Silent())
    after = content(out)
    (record,) = after.keys() - before.keys()
    assert Path(record).name == tuning.RECORD
    assert {path: after[path] for path in before} == before


def test_a_search_that_was_cut_short_goes_on(
    out: Path, truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, function = [0], trials.try_options

    def counted(trial: trials.Trial, last: int = 10) -> trials.Tried:
        tried[0] += 1
        if tried[0] == last:
            raise KeyboardInterrupt
        return function(trial)

    monkeypatch.setattr(trials, "try_options", counted)
    asked = request(out, truth, foreground_threshold=0.6)
    with pytest.raises(CutShortError):
        tune_objects(asked, Silent())
    assert TuningRecord.model_validate_json((out / tuning.RECORD).read_bytes()).outcome == "running"
    _, record = tune_objects(asked, Silent())
    assert tried[0] == len(record.tried) * len(TRUTH) + 1  # only the one that was interrupted was done twice
    assert not (out / "work").exists() or not list((out / "work").rglob("*.json"))

    again = tried[0]
    chosen, same = tune_objects(asked, Silent())
    assert (tried[0], same) == (again, record)
    tifffile.imwrite(truth / "a.tif", TRUTH["b"].astype(np.uint16))
    _, other = tune_objects(asked, Silent())
    assert tried[0] > again
    assert other.truths != record.truths
    assert chosen.minimum_size > 20


def test_what_was_given_stays(out: Path, truth: Path) -> None:
    chosen, record = tune_objects(request(out, truth, minimum_size=5, foreground_threshold=0.6), Silent())
    assert (chosen.minimum_size, chosen.foreground_threshold) == (5, 0.6)
    assert not any({"minimum_size", "foreground_threshold"} & row.options.keys() for row in record.tried)


@pytest.mark.parametrize("method", ["flows", "watershed"])
def test_every_method_has_options_of_its_own(method: str, out: Path, truth: Path) -> None:
    (truth / "a.tif").unlink()
    _, record = tune_objects(request(out, truth, method=method, minimum_size=20), Silent())
    names = {name for row in record.tried for name in row.options}
    assert names == {"foreground_threshold", {"flows": "flow_error", "watershed": "diameter"}[method]}


def test_a_truth_that_does_not_fit_leaves_its_image_out(out: Path, truth: Path) -> None:
    tifffile.imwrite(truth / "b.tif", TRUTH["b"][:50].astype(np.uint16))
    _, record = tune_objects(request(out, truth, foreground_threshold=0.6), Silent())
    assert record.images == ["a.ome.zarr", "c.ome.zarr"]
    assert "give labels of the image's size" in record.failures["b.ome.zarr"]


def test_what_cannot_be_tuned_is_refused(out: Path, truth: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="--flows-from"):
        tune_objects(request(out, truth, method="auto", flows_from="other/"), Silent())
    (tmp_path / "none").mkdir()
    with pytest.raises(RefusedError, match="none"):
        tune_objects(request(out, tmp_path / "none"), Silent())
    for name in TRUTH:
        tifffile.imwrite(truth / f"{name}.tif", TRUTH[name][:50].astype(np.uint16))
    with pytest.raises(RefusedError, match="no image could be tried"):
        tune_objects(request(out, truth), Silent())
