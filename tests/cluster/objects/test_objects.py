"""Runs of ``chorus objects``: every object once, the same bytes however the run was cut, cut short or spread."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import zarr
from numpy.typing import NDArray
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from chorus.cluster.objects import run as objects
from chorus.cluster.objects import stream
from chorus.cluster.objects.inputs import Results
from chorus.cluster.objects.request import ObjectsRequest
from chorus.cluster.objects.tasks import finding
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.ensembles.ensemble import Ensemble
from tests.support.object_runs import CHANNELS, drawn, finish, run, write_ensemble, write_results, write_source

PLANES = {"a": drawn(1, 150, 170, 35), "b": drawn(2, 90, 70, 12), "empty": np.zeros((50, 60), np.int32)}


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    return write_ensemble(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"), PLANES)


@pytest.fixture(scope="module")
def whole(source: Path, ensemble: Ensemble, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results and objects of a run whose regions are larger than the images."""
    out = write_results(tmp_path_factory.mktemp("whole") / "out", source, ensemble, PLANES, region=512)
    assert run(out).state == "complete"
    return out


def labels(out: Path, image: str, name: str = "kind 1", level: int = 0) -> NDArray[Any]:
    group = out / "images" / f"{image}.ome.zarr" / "labels" / name
    return np.asarray(zarr.open_array(group / f"s{level}", mode="r")[:])


def written(out: Path) -> dict[Path, int]:
    """When each file was last written."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "run.lock"}


def assert_same(out: Path, other: Path, planes: dict[str, Any] = PLANES, name: str = "kind 1") -> None:
    assert (out / "objects.parquet").read_bytes() == (other / "objects.parquet").read_bytes()
    for image in planes:
        levels = sorted(p.name for p in (other / "images" / f"{image}.ome.zarr" / "labels" / name).glob("s*"))
        assert levels
        for level in range(len(levels)):
            found, expected = labels(out, image, name, level), labels(other, image, name, level)
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected), (image, level)


@pytest.mark.parametrize("region", [64, 96])
def test_regions_change_no_byte(region: int, source: Path, ensemble: Ensemble, whole: Path, tmp_path: Path) -> None:
    out = write_results(tmp_path / "out", source, ensemble, PLANES, region=region)
    outcome = run(out)
    assert (outcome.state, outcome.exit_code) == ("complete", 0)
    assert_same(out, whole)
    assert not (out / "work").exists()


def test_labels_count_from_one_and_rows_say_what_is_in_the_label_image(whole: Path, source: Path) -> None:
    table = pd.read_parquet(whole / "objects.parquet")
    assert list(table["image"].unique()) == ["a.ome.zarr", "b.ome.zarr"]
    for image, rows in table.groupby("image"):
        name = str(image).removesuffix(".ome.zarr")
        found = labels(whole, name)
        assert found.dtype == np.uint32
        assert rows["label"].tolist() == list(range(1, found.max() + 1))
        pixels = np.asarray(zarr.open_array(source / str(image) / "s0", mode="r")[:])
        posterior = zarr.open_group(whole / "images" / str(image), mode="r")
        names = [c["label"] for c in posterior.attrs["ome"]["omero"]["channels"]]  # type: ignore[index, call-overload]
        maps = np.asarray(posterior["s0"][:])  # type: ignore[index]
        for row in rows.to_dict("records"):
            mask = found == row["label"]
            y, x = np.nonzero(mask)
            assert row["area"] == mask.sum()
            assert (row["y0"], row["x0"], row["y1"], row["x1"]) == (y.min(), x.min(), y.max() + 1, x.max() + 1)
            np.testing.assert_allclose((row["y"], row["x"]), (y.mean(), x.mean()))
            for index, channel in enumerate(CHANNELS):
                np.testing.assert_allclose(row[f"mean:{channel}"], pixels[index][mask].mean())
            for uncertainty in ("uncertainty", "epistemic", "flow_variance"):
                expected = maps[names.index(uncertainty)][mask].astype(np.float64).mean()
                np.testing.assert_allclose(row[uncertainty], expected)
    assert (table["class"] == "kind 1").all()
    assert (table["area"] >= 15).all()


def test_discs_apart_are_one_object_each(tmp_path: Path, ensemble: Ensemble) -> None:
    truth = np.zeros((150, 150), np.int32)
    y, x = np.mgrid[:150, :150]
    for index, (cy, cx) in enumerate(np.ndindex(5, 5), 1):  # some across the borders of regions
        truth[(y - 30 * cy - 15) ** 2 + (x - 30 * cx - 15) ** 2 <= 12**2] = index
    planes = {"grid": truth}
    out = write_results(tmp_path / "out", write_source(tmp_path / "in", planes), ensemble, planes, noise=0.1)
    assert run(out).summary.objects == {"kind 1": 25}
    pairs = np.unique(np.stack([truth, labels(out, "grid")]).reshape(2, -1), axis=1)
    assert pairs.shape == (2, 26)


def test_viewers_find_the_label_image(whole: Path) -> None:
    group = whole / "images" / "a.ome.zarr"
    listed = json.loads((group / "labels" / "zarr.json").read_text())["attributes"]["ome"]
    assert listed["labels"] == ["semantic", "kind 1"]
    attributes = json.loads((group / "labels" / "kind 1" / "zarr.json").read_text())["attributes"]["ome"]
    assert attributes["image-label"] == {"version": "0.5", "source": {"image": "../../"}}
    *_, node = Reader(parse_url(str(group)))()
    assert np.array_equal(node.data[0].compute(), labels(whole, "a"))


STAGES = ("find_in_region", "number_objects", "label_pixels", "finish_objects", "unite")


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_was_cut_short_goes_on_to_the_same_bytes(
    stage: str, source: Path, ensemble: Ensemble, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write_results(tmp_path / "out", source, ensemble, PLANES)
    home = objects if stage == "unite" else stream
    original: Callable[..., Any] = getattr(home, stage)
    calls = []

    def stopped(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == (3 if stage in ("find_in_region", "label_pixels") else 1):
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(home, stage, stopped)
        outcome = run(out)
    assert (outcome.state, outcome.exit_code) == ("interrupted", 3)
    assert not (out / "objects.parquet").exists()
    computed: list[Any] = []
    converging_objects = finding.converging_objects
    with monkeypatch.context() as patch:
        patch.setattr(finding, "converging_objects", lambda *a: computed.append(a) or converging_objects(*a))
        assert run(out).state == "complete"
    assert_same(out, whole)
    # No region is done twice: 2 were done of 9 of the first image, and none of the 5 of the others.
    assert len(computed) == (7 + 5 if stage == "find_in_region" else 0)


@pytest.mark.parametrize(
    ("damaged", "stage"),
    [
        ("work/objects/a.ome.zarr/counts.json", "finish_objects"),
        ("work/objects/a.ome.zarr/done.json", "unite"),
        ("objects.json", "unite"),
    ],
)
@pytest.mark.parametrize("length", [0, 20])
def test_what_was_damaged_of_a_run_that_was_cut_short_is_made_again(
    damaged: str,
    stage: str,
    length: int,
    source: Path,
    ensemble: Ensemble,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = write_results(tmp_path / "out", source, ensemble, PLANES)

    def stopped(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(objects if stage == "unite" else stream, stage, stopped)
        assert run(out).state == "interrupted"
    content = (out / damaged).read_bytes()
    (out / damaged).write_bytes(content[:length])
    partial = out / "images" / "a.ome.zarr" / "labels" / "kind 1" / "s0" / ".0123456789abcdef.part"
    partial.write_bytes(b"half of")
    assert run(out).state == "complete"
    assert_same(out, whole)
    assert not partial.exists()


def test_complete_objects_whose_record_is_damaged_are_made_again(
    source: Path, ensemble: Ensemble, whole: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    content = (out / "objects.json").read_bytes()
    (out / "objects.json").write_bytes(content[:-40] + b"\xff")
    assert run(out).state == "complete"
    assert_same(out, whole)
    assert json.loads((out / "objects.json").read_bytes())["images"] == json.loads(content)["images"]


def test_the_same_again_does_nothing_and_other_settings_make_it_anew(
    source: Path, ensemble: Ensemble, tmp_path: Path
) -> None:
    out = write_results(tmp_path / "out", source, ensemble, PLANES)
    first = run(out)
    times = written(out)
    again = run(out)
    assert (again.state, again.rows, again.summary) == (first.state, first.rows, first.summary)
    assert written(out) == times
    larger = run(out, minimum_size=120)
    assert larger.summary.objects["kind 1"] < first.summary.objects["kind 1"]
    table = pd.read_parquet(out / "objects.parquet")
    assert (table["area"] >= 120).all()
    assert labels(out, "a").max() == (table["image"] == "a.ome.zarr").sum()


def test_images_that_are_not_finished_are_listed_and_done_when_they_are(
    source: Path, ensemble: Ensemble, whole: Path, tmp_path: Path
) -> None:
    out = write_results(tmp_path / "out", source, ensemble, PLANES, unfinished=("b",))
    outcome = run(out)
    assert (outcome.state, outcome.exit_code) == ("failures", 1)
    assert [row.status for row in outcome.rows] == ["done", "failed", "done"]
    assert "b.ome.zarr: is not finished; run the same `chorus predict` again" in outcome.rows[1].message
    assert pd.read_parquet(out / "objects.parquet")["image"].unique().tolist() == ["a.ome.zarr"]
    results = Results(ObjectsRequest(out=str(out)))
    finish(out, results.table.image(1), ensemble, results.settings, PLANES["b"])
    assert run(out).state == "complete"
    assert_same(out, whole)


def test_planes_are_numbered_one_by_one(ensemble: Ensemble, tmp_path: Path) -> None:
    stack = np.stack([np.stack([drawn(10 * t + z, 100, 90, 15) for z in range(2)]) for t in range(2)])
    planes = {"stack": stack}
    source = write_source(tmp_path / "in", planes)
    first = write_results(tmp_path / "first", source, ensemble, planes, region=64)
    second = write_results(tmp_path / "second", source, ensemble, planes, region=128)
    for out in (first, second):
        assert run(out).state == "complete"
    assert_same(first, second, planes)
    table, found = pd.read_parquet(first / "objects.parquet"), labels(first, "stack")
    assert found.shape == stack.shape
    for (t, z), rows in table.groupby(["t", "z"]):  # type: ignore[misc]
        assert rows["label"].tolist() == list(range(1, found[t, z].max() + 1))
    assert table[["t", "z"]].drop_duplicates().to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_each_class_has_its_own_label_image(activation: str, tmp_path: Path) -> None:
    ensemble = write_ensemble(tmp_path / "e", classes=3, activation=activation)
    planes = {"a": drawn(3, 130, 120, 25)}
    source = write_source(tmp_path / "in", planes)
    first = write_results(tmp_path / "first", source, ensemble, planes, region=64)
    second = write_results(tmp_path / "second", source, ensemble, planes, region=128)
    for out in (first, second):
        outcome = run(out)
        assert outcome.state == "complete"
        assert min(outcome.summary.objects.values()) > 3
    for k in (1, 2):
        assert_same(first, second, planes, f"kind {k}")
        objects_of_class = labels(first, "a", f"kind {k}")
        assert set(np.unique(1 + planes["a"][objects_of_class > 0] % 2)) <= {k}
    table = pd.read_parquet(first / "objects.parquet")
    assert table["class"].drop_duplicates().tolist() == ["kind 1", "kind 2"]


def test_a_damaged_result_fails_its_image_alone(source: Path, ensemble: Ensemble, tmp_path: Path) -> None:
    out = write_results(tmp_path / "out", source, ensemble, PLANES)
    shard = out / "images" / "b.ome.zarr" / "s0" / "c" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:50])
    outcome = run(out)
    assert (outcome.exit_code, [row.status for row in outcome.rows]) == (1, ["done", "failed", "done"])
    assert "b.ome.zarr: a result cannot be decoded" in outcome.rows[1].message
    assert "unexpected" not in outcome.rows[1].message


def test_flows_that_are_no_numbers_are_no_flows(ensemble: Ensemble, tmp_path: Path) -> None:
    planes = {"a": drawn(4, 90, 100, 10)}
    out = write_results(
        tmp_path / "out", write_source(tmp_path / "in", planes), ensemble, planes, region=128, noise=float("nan")
    )
    outcome = run(out)
    assert outcome.state == "complete"
    assert outcome.summary.objects == {"kind 1": 0}
    assert not labels(out, "a").any()


def test_a_run_without_objects_has_a_table_without_rows(whole: Path, ensemble: Ensemble, tmp_path: Path) -> None:
    planes = {"empty": PLANES["empty"]}
    out = write_results(tmp_path / "out", write_source(tmp_path / "in", planes), ensemble, planes)
    assert run(out).state == "complete"
    assert pq.read_table(out / "objects.parquet").num_rows == 0
    assert pq.read_schema(out / "objects.parquet") == pq.read_schema(whole / "objects.parquet")


def test_channels_that_an_image_does_not_have_are_null(tmp_path: Path, ensemble: Ensemble) -> None:
    planes = {"one": drawn(5, 80, 80, 8), "two": drawn(6, 80, 80, 8)}
    source = write_source(tmp_path / "in", planes)
    path = source / "two.ome.zarr" / "zarr.json"
    path.write_text(path.read_text().replace("actin", "tubulin"))
    out = write_results(tmp_path / "out", source, ensemble, planes)
    assert run(out).state == "complete"
    table = pd.read_parquet(out / "objects.parquet").set_index("image")
    assert list(table.columns[-3:]) == ["mean:dna", "mean:actin", "mean:tubulin"]
    assert table.loc["one.ome.zarr", "mean:tubulin"].isna().all()
    assert table.loc["two.ome.zarr", "mean:tubulin"].notna().all()


@pytest.mark.ray
def test_ray_gives_the_bytes_of_one_process(source: Path, ensemble: Ensemble, whole: Path, tmp_path: Path) -> None:
    out = write_results(tmp_path / "out", source, ensemble, PLANES)
    request = ObjectsRequest(out=str(out), diameter=10.0, executor="ray")
    assert objects.find_objects(request, Silent()).state == "complete"
    assert_same(out, whole)
