"""Objects by the flows of a second ensemble, which reads the probabilities that a first one left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
import zarr
from numpy.typing import NDArray

from chorus.cluster.objects import second_ensemble as object_flows
from chorus.cluster.objects import stream
from chorus.cluster.objects.inputs import Results
from chorus.cluster.objects.job import ObjectJob
from chorus.cluster.objects.request import ObjectsRequest
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.regions import worker
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.instances.regions import ObjectSettings
from chorus.pipeline.preprocessing.preparation import Measure
from tests.support.object_runs import drawn, finish, run, write_ensemble, write_results, write_source
from tests.support.objects import discs, objects_by_loops
from tests.support.second_ensembles import write_second

MAPS = ["probability", "uncertainty", "epistemic"]
APART = discs(120, 140, [(y, x, 8) for y in range(12, 120, 24) for x in range(12, 140, 24)])
PLANES = {"a": APART, "b": drawn(2, 70, 90, 12)}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    """An ensemble without flows."""
    return write_ensemble(tmp_path_factory.mktemp("first"), flows=False)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_second(tmp_path_factory.mktemp("second"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"), PLANES)


Make = Callable[..., Path]


@pytest.fixture
def results(first: Ensemble, source: Path, tmp_path: Path) -> Make:
    """Results of the first ensemble, in a new folder."""

    def make(name: str = "out", **changes: Any) -> Path:
        return write_results(tmp_path / name, source, first, PLANES, **({"save": MAPS} | changes))

    return make


def labels(out: Path, image: str = "a", name: str = "kind 1") -> NDArray[Any]:
    return np.asarray(zarr.open_array(out / f"images/{image}.ome.zarr/labels/{name}/s0", mode="r")[:])


def assert_one_each(truth: NDArray[Any], found: NDArray[Any]) -> None:
    """Every disc is one object and the reverse; a few pixels, from where all ways are equally steep, are of none."""
    both = (truth > 0) & (found > 0)
    pairs = np.unique(np.stack([truth[both], found[both]]), axis=1)
    discs_in, objects_in = (np.count_nonzero(np.unique(one)) for one in (truth, found))
    assert pairs.shape[1] == discs_in == objects_in
    assert not found[truth == 0].any()
    assert both.sum() > 0.98 * np.count_nonzero(truth)


def content(out: Path) -> list[bytes]:
    return [(out / "objects.parquet").read_bytes(), *(labels(out, image).tobytes() for image in PLANES)]


def processed(monkeypatch: pytest.MonkeyPatch, stop_at: int = 0) -> list[str]:
    """Gets the URLs of the regions that are written from now on; the `stop_at`-th is not written, but stops the run."""
    written: list[str] = []
    write = worker.write_region

    def noted(layout: Any, *arguments: Any) -> None:
        if len(written) + 1 == stop_at:
            raise KeyboardInterrupt
        written.append(layout.url)
        write(layout, *arguments)

    monkeypatch.setattr(worker, "write_region", noted)
    return written


def test_discs_apart_are_one_object_each_in_the_same_bytes_whatever_the_region(results: Make, second: Path) -> None:
    found = []
    for region in (64, 256):
        out = results(f"out-{region}", region=region)
        outcome = run(out, flows_from=str(second), diameter=None)
        assert (outcome.state, outcome.summary.method, outcome.summary.flows_from) == (
            "complete",
            "flows",
            "uphill",
        )
        assert not (out / "work").exists()
        found.append(content(out))
    assert found[0] == found[1]
    assert_one_each(APART, labels(out))
    table = pd.read_parquet(out / "objects.parquet")
    # One member that is turned with the image is of one mind, but for pixels from where all ways are equally steep.
    assert table["flow_variance"].between(0, 0.1).all()
    assert table["flow_error"].notna().all()
    asked = json.loads((out / "objects.json").read_text())["settings"]["flows_from"]
    assert (asked["ensemble"], asked["settings"]["save"]) == ("uphill", ["flow_variance", "flows"])


def test_objects_are_those_of_plain_loops_over_the_flows_of_a_run_over_the_probabilities(
    results: Make, second: Path, tmp_path: Path
) -> None:
    out, flows = results(), tmp_path / "flows"
    assert run(out, flows_from=str(second), diameter=12.0).state == "complete"
    settings = ResultSettings(channel=["probability:kind 1"], level=0, region=128, chunk=32, save=["flows"])
    request = PredictRequest(
        sources=[str(out / "images" / "b.ome.zarr")],
        ensemble=str(second),
        out=str(flows),
        settings=settings,
        run=RunSettings(executor="serial", thumbnails=False),
    )
    assert predict(request, Silent()).state == "complete"
    vectors = np.asarray(zarr.open_array(flows / "images/b.ome.zarr/s0", mode="r")[:]).astype(np.float32)
    foreground = np.asarray(zarr.open_array(out / "images/b.ome.zarr/labels/semantic/s0", mode="r")[:]) == 1
    expected = objects_by_loops(foreground, vectors, ObjectSettings(12.0))
    names, numbered = np.unique(expected, return_inverse=True)
    assert len(names) > 4
    assert np.array_equal(labels(out, "b"), numbered.reshape(expected.shape))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_each_class_follows_flows_of_its_own_probability(activation: str, second: Path, tmp_path: Path) -> None:
    first = write_ensemble(tmp_path / "e", classes=3, activation=activation, flows=False)
    planes = {"a": APART}
    out = write_results(tmp_path / "out", write_source(tmp_path / "in", planes), first, planes, save=MAPS)
    assert run(out, flows_from=str(second)).state == "complete"
    for k in (1, 2):
        assert_one_each(np.where(k - 1 == APART % 2, APART, 0), labels(out, name=f"kind {k}"))


@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_run_that_was_cut_short_among_its_flows_goes_on_to_the_same_bytes(
    stop_at: int, results: Make, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = results("whole"), results()
    assert run(whole, flows_from=str(second)).state == "complete"
    with monkeypatch.context() as patch:
        done = processed(patch, stop_at)
        outcome = run(out, flows_from=str(second))
    assert (outcome.state, outcome.exit_code, len(done)) == ("interrupted", 3, stop_at - 1)
    with monkeypatch.context() as patch:
        more = processed(patch)
        assert run(out, flows_from=str(second)).state == "complete"
    assert len(done) + len(more) == 6 + 4  # regions of both images, each once
    assert content(out) == content(whole)
    with monkeypatch.context() as patch:
        again = processed(patch)
        assert run(out, flows_from=str(second)).state == "complete"
    assert again == []


def test_a_run_that_was_cut_short_among_its_objects_has_its_flows(
    results: Make, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = results("whole"), results(region=512)
    assert run(whole, flows_from=str(second)).state == "complete"
    find_all = stream.find_all

    def stopped(job: ObjectJob) -> Any:
        if job.image.name == "b.ome.zarr":
            raise KeyboardInterrupt
        return find_all(job)

    with monkeypatch.context() as patch:
        patch.setattr(stream, "find_all", stopped)
        assert [row.status for row in run(out, flows_from=str(second)).rows] == ["done", "open"]
    written = processed(monkeypatch)
    assert run(out, flows_from=str(second)).state == "complete"
    assert written == []
    assert content(out) == content(whole)


def test_images_that_are_finished_later_are_added_and_the_others_are_not_done_again(
    results: Make, first: Ensemble, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = results("whole"), results(unfinished=("b",))
    assert run(whole, flows_from=str(second)).state == "complete"
    assert run(out, flows_from=str(second)).exit_code == 1
    known = Results(ObjectsRequest(out=str(out)))
    finish(out, known.table.image(1), first, known.settings, PLANES["b"])
    written = processed(monkeypatch)
    assert run(out, flows_from=str(second)).state == "complete"
    assert {url.rsplit("/", 1)[-1] for url in written} == {"b.ome.zarr"}
    assert content(out) == content(whole)


def test_an_image_that_the_second_ensemble_cannot_do_fails_alone(results: Make, tmp_path: Path) -> None:
    out = results()
    shard = min(path for path in (out / "images/b.ome.zarr/s0/c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:40])
    outcome = run(out, flows_from=str(write_second(tmp_path / "second")))
    assert [row.status for row in outcome.rows] == ["done", "failed"]
    assert "b.ome.zarr" in outcome.rows[1].message
    nothing = run(results("nothing"), flows_from=str(write_second(tmp_path / "nan", most=0.7)))
    assert [row.status for row in nothing.rows] == ["failed", "failed"]
    assert "members answer with NaN" in nothing.rows[0].message


def test_the_second_ensemble_sees_objects_at_the_size_that_it_was_trained_on(first: Ensemble, tmp_path: Path) -> None:
    # What the network looks at is smaller than these discs: without a change of scale they have no middle.
    large = discs(200, 200, [(y, x, 32) for y in (50, 150) for x in (50, 150)])
    entry = {"channels": ["probability"], "normalisation": {"kind": "none"}, "diameter_px": 16}
    second = write_second(tmp_path / "second", input=entry)
    out = write_results(tmp_path / "out", write_source(tmp_path / "in", {"a": large}), first, {"a": large}, save=MAPS)
    for diameter, found in ((64.0, 4), (16.0, None)):
        known = Results(ObjectsRequest(out=str(out), flows_from=str(second), diameter=diameter))
        assert known.second is not None
        planned = known.second.planned(known.layout(0), "a.ome.zarr", "kind 1")
        assert (planned.height, planned.model_height) == (200, 200 * 16 / diameter)
        outcome = run(out, flows_from=str(second), diameter=diameter)
        assert (outcome.summary.objects["kind 1"] == 4) == (found == 4)
    # Without --diameter it is that of the ensemble, of pixels as they are.
    plain = Results(ObjectsRequest(out=str(out), flows_from=str(second))).job(0)
    assert plain.settings.diameter == 16


def test_what_cannot_give_flows_is_refused(results: Make, first: Ensemble, second: Path, tmp_path: Path) -> None:
    two = {"channels": ["dna", "actin"], "normalisation": {"kind": "none"}}
    for saved, ensemble, changes, sentence in (
        (MAPS, first.url, {}, "its members give no flows; give --flows-from an ensemble that does"),
        (MAPS, write_second(tmp_path / "two", input=two), {}, r"takes 2 channels \(dna, actin\), and the probability"),
        (MAPS, second, {"method": "watershed"}, "--flows-from: objects by watershed take no flows"),
        (MAPS[1:], second, {}, "holds no probability, of which objects are made; run chorus predict with --save prob"),
    ):
        out = results(f"out-{sentence[:9]}", save=saved)
        with pytest.raises(RefusedError, match=sentence):
            run(out, flows_from=str(ensemble), **changes)
        assert not (out / "objects.json").exists()


def test_a_second_ensemble_by_which_images_depend_on_each_other_is_refused(
    results: Make, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only preprocessing that packages of BioImage.IO bring along is of that kind.
    measure = Measure("mean", 0, per="dataset")
    monkeypatch.setattr(object_flows, "measures_of", lambda _, tile, per: {measure} if per == "dataset" else set())
    with pytest.raises(RefusedError, match="normalises by statistics of all images of a run"):
        run(results(), flows_from=str(second))


def test_a_changed_second_ensemble_makes_the_objects_anew(results: Make, tmp_path: Path) -> None:
    out, second = results(), write_second(tmp_path / "second")
    assert run(out, flows_from=str(second)).state == "complete"
    earlier = json.loads((out / "objects.json").read_text())
    changed = yaml.safe_load(second.read_text()) | {"augmentations": ["identity"]}
    second.write_text(yaml.safe_dump(changed))
    assert run(out, flows_from=str(second)).state == "complete"
    now = json.loads((out / "objects.json").read_text())
    assert now["started"] != earlier["started"]
    assert now["settings"]["flows_from"]["hash"] != earlier["settings"]["flows_from"]["hash"]
    assert run(out, method="components").summary.method == "components"
    assert "flows_from" not in json.loads((out / "objects.json").read_text())["settings"]


@pytest.mark.ray
@pytest.mark.long
def test_ray_gives_the_bytes_of_one_process(results: Make, second: Path) -> None:
    whole, out = results("whole"), results()
    assert run(whole, flows_from=str(second)).state == "complete"
    assert run(out, flows_from=str(second), executor="ray").state == "complete"
    assert content(out) == content(whole)
