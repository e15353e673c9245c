"""Runs of ``chorus evaluate``: what they measure, what they list, and what stays the same however it is carried out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from sklearn.metrics import f1_score, jaccard_score

from chorus.cluster.evaluation import image as evaluated
from chorus.cluster.evaluation.compare import compare_runs
from chorus.cluster.evaluation.documents import EvaluationRecord, EvaluationRow
from chorus.cluster.evaluation.run import EvaluateRequest, evaluate, read_evaluation
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.outcome import Outcome
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.metrics.baseline import otsu_mask
from chorus.pipeline.metrics.objects import components, count_objects
from tests.support.making import pixels, write_image, write_light_ensemble

Measured = Outcome[EvaluationRow, EvaluationRecord]
SHAPES = {"a": (60, 50), "b": (60, 50), "e": (40, 40), "z": (3, 40, 30)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over two images, one in which nothing is predicted, a stack, one without truth and one that fails."""
    folder = tmp_path_factory.mktemp("run")
    for seed, (name, shape) in enumerate(SHAPES.items()):
        write_image(folder / "images" / f"{name}.ome.zarr", pixels(shape, seed=seed), "zyx"[-len(shape) :])
    write_image(folder / "images" / "without.ome.zarr", pixels((40, 40)))
    write_image(folder / "images" / "broken.ome.zarr", pixels((40, 40)).astype("int64"))
    ensemble = write_light_ensemble(folder / "ensemble", members=1, augmentations=["identity"])
    settings = {"save": [], "region": 64, "chunk": 32}
    request = {"sources": [str(folder / "images")], "ensemble": str(ensemble), "out": str(folder / "out")}
    content = request | {"settings": settings, "run": {"executor": "serial"}}
    assert predict(PredictRequest.model_validate(content), Silent()).state == "failures"
    zarr.open_array(folder / "out" / "images" / "e.ome.zarr" / "labels" / "semantic" / "s0", mode="r+")[:] = 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run with a truth: the prediction moved by two pixels, as a mask; empty for the empty one."""
    shutil.copytree(finished / "out", tmp_path / "out")
    (tmp_path / "truth").mkdir()
    for name in SHAPES:
        moved = np.roll(predicted(tmp_path, name), 2, axis=-1)
        axes = {"axes": "ZYX"[-moved.ndim :]}
        mask = np.uint8(255) * moved
        tifffile.imwrite(tmp_path / "truth" / f"{name}.tif", mask, photometric="minisblack", metadata=axes)
    tifffile.imwrite(tmp_path / "truth" / "alone.tif", np.zeros((40, 40), np.uint8))
    return tmp_path


def predicted(run: Path, name: str) -> np.ndarray:
    stored = zarr.open_array(run / "out" / "images" / f"{name}.ome.zarr" / "labels" / "semantic" / "s0", mode="r")
    return np.asarray(stored[:])


def truth_of(run: Path, name: str) -> np.ndarray:
    return np.asarray(tifffile.imread(run / "truth" / f"{name}.tif"))


def measure(run: Path, *, executor: str = "serial", settings: dict[str, Any] | None = None, **more: Any) -> Measured:
    content = {"out": str(run / "out"), "executor": executor, "settings": settings or {}}
    given = {"truth": str(run / "truth")} | more
    return evaluate(EvaluateRequest.model_validate(content | given), Silent())


def rows(run: Path) -> pd.DataFrame:
    return read_evaluation(str(run / "out")).set_index("name")


def test_every_image_has_a_row_and_its_metrics_are_those_of_scikit_learn(run: Path) -> None:
    outcome = measure(run)
    assert (outcome.state, outcome.exit_code) == ("failures", 1)
    found = rows(run)
    assert found["status"].drop("e.ome.zarr").to_dict() == {
        "a.ome.zarr": "done",
        "b.ome.zarr": "done",
        "z.ome.zarr": "done",
        "without.ome.zarr": "no truth",
        "broken.ome.zarr": "failed",
    }
    for name in ("a", "b", "z"):
        flat = truth_of(run, name).ravel() > 0, predicted(run, name).ravel() > 0
        row = found.loc[f"{name}.ome.zarr"]
        assert row["dice"] == row["dice:nucleus"] == pytest.approx(f1_score(*flat))
        assert row["iou:nucleus"] == pytest.approx(jaccard_score(*flat))
        assert 0 < row["boundary_p95:nucleus"] <= 60
        assert np.isnan(row["ap50"])  # the run has no objects
    assert found.loc["e.ome.zarr", "dice"] == 1
    assert found.loc["broken.ome.zarr", "message"].startswith("the run failed it: ")
    assert found.loc[["without.ome.zarr", "broken.ome.zarr"], "dice"].isna().all()


def test_the_summary_lists_what_was_left_out_and_gives_means_with_intervals(run: Path) -> None:
    measure(run)
    summary = json.loads((run / "out" / "evaluation.json").read_text())
    assert sorted(summary["without_truth"]) == ["broken.ome.zarr", "without.ome.zarr"]
    assert summary["truth_without_image"] == ["alone"]
    assert list(summary["failures"]) == ["broken.ome.zarr"]
    dice = rows(run)["dice"].dropna()
    found = summary["metrics"]["dice"]
    assert (found["mean"], found["images"]) == (pytest.approx(dice.mean()), 4)
    assert dice.min() <= found["low"] <= found["mean"] <= found["high"] <= dice.max()
    assert any("Otsu's threshold" in sentence for sentence in summary["against_baseline"]["verdict"])


def test_the_baseline_is_otsu_of_the_source(run: Path, finished: Path) -> None:
    measure(run)
    source = np.asarray(zarr.open_array(finished / "images" / "z.ome.zarr" / "s0", mode="r")[:])
    expected = f1_score(truth_of(run, "z").ravel() > 0, otsu_mask(source).ravel())
    assert rows(run).loc["z.ome.zarr", "baseline_dice"] == pytest.approx(expected)
    measure(run, settings={"baseline": False})
    assert rows(run)["baseline_dice"].isna().all()


def test_objects_are_components_on_request_and_planes_add_up(run: Path) -> None:
    measure(run, settings={"objects": "components", "minimum_size": 4})
    found = rows(run)
    for name in ("a", "z"):
        truths, predictions = (np.atleast_3d(one.T).T for one in (truth_of(run, name), predicted(run, name)))
        counts = [
            count_objects(components(t > 0), components(p > 0), minimum_size=4)
            for t, p in zip(truths, predictions, strict=True)
        ]
        total = counts[0]
        for more in counts[1:]:
            total = total + more
        row = found.loc[f"{name}.ome.zarr"]
        assert row["ap50"] == total.average_precision[0]
        assert row["map"] == total.mean_average_precision
        assert row["panoptic_quality"] == total.panoptic_quality
        assert (row["objects_truth"], row["splits"]) == (total.truths, total.splits)
        assert 0 <= row["baseline_ap50"] <= 1
    assert (found.loc["e.ome.zarr", "ap50"], found.loc["e.ome.zarr", "objects_predicted"]) == (1, 0)


def test_objects_of_the_run_are_taken_where_it_has_them(run: Path) -> None:
    objects = np.zeros((60, 50), np.uint32)
    objects[5:15, 5:15], objects[15:25, 5:15] = 100_000, 7
    group = zarr.create_group(run / "out" / "images" / "a.ome.zarr" / "labels" / "nucleus")
    group.create_array("s0", data=objects, chunks=(32, 32))
    tifffile.imwrite(run / "truth" / "a.tif", (objects // 7).astype(np.uint16))
    measure(run)
    row = rows(run).loc["a.ome.zarr"]
    assert (row["ap50"], row["map"], row["objects_truth"], row["merges"]) == (1, 1, 2, 0)
    assert np.isnan(rows(run).loc["b.ome.zarr", "ap50"])


def test_large_planes_are_counted_block_by_block_with_the_same_result(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(run)
    whole = rows(run)
    monkeypatch.setattr(evaluated, "LARGEST_PLANE", 100)
    monkeypatch.setattr(evaluated, "_BLOCK", 7)
    measure(run, settings={"objects": "components"})
    blocks = rows(run)
    same = ["status", "dice", "iou:nucleus", "precision:nucleus", "recall:nucleus"]
    pd.testing.assert_frame_equal(blocks[same], whole[same])
    assert blocks[["boundary_p95:nucleus", "ap50", "baseline_dice"]].isna().all(axis=None)


def test_a_truth_of_another_size_fails_its_image_alone(run: Path) -> None:
    tifffile.imwrite(run / "truth" / "a.tif", np.zeros((10, 10), np.uint8))
    assert measure(run).exit_code == 1
    found = rows(run)
    assert "a.tif: is 1x1x10x10 (t, z, y, x), but the prediction is 1x1x60x50" in found.loc["a.ome.zarr", "message"]
    assert found.loc["a.ome.zarr", "status"] == "failed"
    assert found["dice"].notna().sum() == 3


def test_values_that_no_class_has_are_named_with_their_file(run: Path) -> None:
    path = run / "out" / "run.json"
    content = json.loads(path.read_text())
    content["ensemble"]["classes"].append({"name": "debris", "color": "#ff0000"})
    path.write_text(json.dumps(content))
    for name in ("b", "e", "z"):
        classes = (truth_of(run, name) > 0).astype(np.uint8)
        axes = {"axes": "ZYX"[-classes.ndim :]}
        tifffile.imwrite(run / "truth" / f"{name}.tif", classes, photometric="minisblack", metadata=axes)
    measure(run)
    found = rows(run)
    assert (
        "a.tif: has the label values 255, but the ensemble has the classes 0 to 2" in found.loc["a.ome.zarr", "message"]
    )
    # debris is neither predicted nor there
    assert found.loc["b.ome.zarr", "dice"] == pytest.approx((found.loc["b.ome.zarr", "dice:nucleus"] + 1) / 2)


def test_experts_stand_beside_and_one_that_cannot_be_read_is_left_out(run: Path) -> None:
    truth = truth_of(run, "a")
    for expert, drawn in {"one": truth, "two": np.roll(truth, 1, axis=0), "three": truth[:10]}.items():
        (run / "experts" / expert).mkdir(parents=True)
        tifffile.imwrite(run / "experts" / expert / "a.tif", drawn)
    measure(run, experts=str(run / "experts"))
    row = rows(run).loc["a.ome.zarr"]
    second = f1_score(truth.ravel() > 0, np.roll(truth, 1, axis=0).ravel() > 0)
    assert (row["expert_dice_max"], row["expert_dice_min"]) == (1, pytest.approx(second))
    assert row["expert_dice_mean"] == pytest.approx((1 + second) / 2)
    assert "expert three is left out" in row["message"]
    assert row["status"] == "done"


def test_pixels_are_counted_where_the_run_kept_its_probabilities(finished: Path, run: Path, tmp_path: Path) -> None:
    assert measure(run).summary.pixels is None  # this run kept no maps
    settings = {"save": ["probability", "epistemic"], "region": 64, "chunk": 32}
    content = {"sources": [str(finished / "images" / f"{name}.ome.zarr") for name in "ab"], "settings": settings}
    content |= {"ensemble": str(finished / "ensemble"), "out": str(tmp_path / "kept"), "run": {"executor": "serial"}}
    assert predict(PredictRequest.model_validate(content), Silent()).state == "complete"
    outcome = measure(run, out=str(tmp_path / "kept"))
    stored = [
        np.asarray(zarr.open_array(tmp_path / "kept" / "images" / f"{name}.ome.zarr" / "s0", mode="r")[:2])
        for name in "ab"
    ]
    probability = np.concatenate(stored, axis=1).astype(np.float64)
    truth = np.concatenate([truth_of(run, name) for name in "ab"]) > 0
    # By plain bins of the predicted class.
    confidence, right = probability.max(axis=0), probability.argmax(axis=0) == truth
    places = np.minimum((15 * confidence).astype(int), 14)
    expected = sum(
        abs(right[places == place].mean() - confidence[places == place].mean()) * (places == place).mean()
        for place in np.unique(places)
    )
    pixels = outcome.summary.pixels
    assert pixels is not None
    assert pixels.error["predicted"] == pytest.approx(expected, abs=1e-6)
    assert pixels.pixels == truth.size
    assert "<svg" in (tmp_path / "kept" / "reliability.svg").read_text()
    assert read_evaluation(str(tmp_path / "kept"))["calibration_error"].between(0, 1).all()


@pytest.mark.ray
@pytest.mark.long
def test_on_ray_the_table_is_the_same(run: Path) -> None:
    measure(run, settings={"objects": "components"})
    serial = rows(run)
    measure(run, executor="ray", settings={"objects": "components"})
    pd.testing.assert_frame_equal(rows(run), serial)


def test_what_is_no_run_or_has_no_truth_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no results of Chorus"):
        evaluate(EvaluateRequest(out=str(tmp_path / "nothing"), truth=str(run / "truth")), Silent())
    shutil.rmtree(run / "truth")
    (run / "truth").mkdir()
    tifffile.imwrite(run / "truth" / "other.tif", np.zeros((4, 4), np.uint8))
    with pytest.raises(RefusedError, match="fits none of the 6 images of the run"):
        measure(run)


def test_runs_are_compared_on_the_images_that_all_of_them_have(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dice = rng.uniform(0.6, 0.9, 12)
    for folder, values in {"x/out": dice, "y/out": dice - 0.05}.items():
        (tmp_path / folder).mkdir(parents=True)
        frame = pd.DataFrame({"name": [f"{k}.ome.zarr" for k in range(12)], "status": "done", "dice": values})
        frame.loc[11, "dice"] = np.nan if folder == "x/out" else 0.5
        frame.to_parquet(tmp_path / folder / "evaluation.parquet")
    outs = [str(tmp_path / "x" / "out"), str(tmp_path / "y" / "out")]
    found = compare_runs(outs, "dice")
    assert found.left_out == {"11.ome.zarr": ["x/out"]}
    assert found.comparison.images == 11
    assert "x/out is better than y/out in dice" in found.comparison.verdict[0]
    with pytest.raises(RefusedError, match="has no metric 'ap50'; give --metric one of dice"):
        compare_runs(outs, "ap50")
    with pytest.raises(RefusedError, match="two or more runs"):
        compare_runs(outs[:1] * 2, "dice")
    with pytest.raises(RefusedError, match=r"no evaluation yet .* run `chorus evaluate"):
        compare_runs([outs[0], str(tmp_path / "x")], "dice")
