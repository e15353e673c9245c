"""What is counted of a run: equal to its summary, each name used and described, and clean to promtool."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import ray.util.metrics
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.telemetry import metrics
from chorus.cluster.telemetry.metrics import DRIVER, REGISTRY, WORKER, Metric, Recorder, run_label, served
from chorus.pipeline.errors import RefusedError
from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.paths import ROOT

SOURCES = ROOT
SHAPES = [(50, 60), (100, 130), (64, 128)]
MEMBERS, AUGMENTATIONS = 2, 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PredictOutcome:
    """A run in this process over three images and one with a broken chunk."""
    folder = tmp_path_factory.mktemp("metrics")
    for index, shape in enumerate(SHAPES):
        write_image(folder / "images" / f"{index}.ome.zarr", pixels(shape, seed=index))
    broken = write_image(folder / "images" / "broken.ome.zarr", pixels((40, 40)))
    for chunk in (path for path in (broken / "s0" / "c").rglob("*") if path.is_file()):
        chunk.write_bytes(b"not a chunk")
    request = PredictRequest(
        sources=[str(folder / "images")],
        ensemble=str(write_light_ensemble(folder / "ensemble", members=MEMBERS, width=4)),
        out=str(folder / "out"),
        settings=ResultSettings(region=64, chunk=32, augmentations=["identity", "hflip"]),
        run=RunSettings(executor="serial"),
    )
    return predict(request, Silent())


def counted(out: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Of the run in `out`: by metric, values by what its labels say beside run, ensemble and node."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for sample in (sample for family in families() for sample in family.samples if sample.labels.get("run") == out):
        rest = tuple(v for k, v in sorted(sample.labels.items()) if k not in ("run", "ensemble", "node"))
        found.setdefault(sample.name, {})[rest] = sample.value
    return found


def families() -> Iterator[Family]:
    return iter(text_string_to_metric_families(generate_latest(REGISTRY).decode()))


def test_counters_equal_the_summary_of_the_run(run: PredictOutcome) -> None:
    found, summary = counted(run.out), run.summary
    regions = found["chorus_regions_total"]
    assert regions == {("done",): 9, ("failed",): 1, ("quarantined",): 0, ("unwritable",): 0}
    assert sum(regions.values()) == summary.regions
    assert found["chorus_tiles_total"] == {(): summary.tiles}
    assert found["chorus_forward_passes_total"] == {(): summary.tiles * MEMBERS * AUGMENTATIONS}
    assert found["chorus_pixels_total"] == {(): sum(h * w for h, w in SHAPES)}
    states = summary.model_dump(include={"done", "empty", "failed"})
    assert found["chorus_images_total"] == {(state,): count for state, count in states.items()}
    assert found["chorus_regions_open"] == found["chorus_devices"] == found["chorus_images_finishing"] == {(): 0}


def test_stages_and_bytes_are_those_of_the_regions(run: PredictOutcome) -> None:
    found = counted(run.out)
    seconds = found["chorus_stage_seconds_total"]
    scores = pd.read_parquet(f"{run.out}/scores.parquet")
    assert seconds[("infer",)] == pytest.approx(scores["seconds"].sum(), abs=0.02)
    assert set(seconds) == {("read",), ("wait",), ("infer",), ("write",), ("finish",)}
    # probability of two classes, uncertainty, epistemic and aleatoric as float16, labels as uint8
    assert found["chorus_written_bytes_total"] == {(): sum(h * w for h, w in SHAPES) * (5 * 2 + 1)}
    assert found["chorus_read_bytes_total"][()] >= sum(h * w for h, w in SHAPES) * np.dtype("uint16").itemsize


def test_labels_name_run_ensemble_and_node_and_never_an_image_or_a_region(run: PredictOutcome) -> None:
    known = {metric.name: set(metric.labels) for metric in (*DRIVER, *WORKER)}
    at_work = {metric.name for metric in WORKER}
    for sample in (sample for family in families() for sample in family.samples):
        if not sample.name.endswith("_created"):
            home = {"run", "ensemble", "node"} if sample.name in at_work else {"run", "ensemble"}
            assert set(sample.labels) == home | known[sample.name]
            assert not any(name in value for value in sample.labels.values() for name in ("broken", ".ome.zarr"))


def test_exposition_is_clean_to_promtool(run: PredictOutcome) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, of Debian's package prometheus")
    checked = subprocess.run([promtool, "check", "metrics"], input=generate_latest(REGISTRY), capture_output=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_every_metric_has_a_conventional_name_and_is_set_somewhere() -> None:
    code = "".join(path.read_text() for room in ("cluster", "chorus") for path in (SOURCES / room).rglob("*.py"))
    named = {value: name for name, value in vars(metrics).items() if isinstance(value, Metric)}
    assert set(named) == set(DRIVER + WORKER)
    for metric, constant in named.items():
        assert re.fullmatch(r"chorus_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        uses = re.findall(rf"\b(?:add|set)\({constant}\b|for metric in \([A-Z, ]*\b{constant}\b", code)
        assert uses, f"{metric.name} is never set"


def test_page_describes_every_metric_and_no_other() -> None:
    page = (SOURCES / "docs" / "metrics.md").read_text()
    described = dict(re.findall(r"^\| `(chorus_\w+)` \| (counter|gauge) \|", page, re.MULTILINE))
    assert described == {metric.name: metric.kind for metric in (*DRIVER, *WORKER)}


def test_metrics_are_served_while_a_run_goes_on_and_a_taken_port_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with served(port):
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        with pytest.raises(RefusedError, match=f"--metrics-port {port}: cannot be taken"), served(port):
            pass
    assert answer == generate_latest(REGISTRY).decode()
    with served(port):  # given back
        pass


def test_a_login_in_a_url_stays_out_of_the_labels() -> None:
    assert run_label("s3://key:secret@bucket/out") == "s3://bucket/out"
    assert run_label("gs://bucket/a@b") == "gs://bucket/a@b"


def test_in_a_process_of_ray_this_process_serves_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, dict[str, str]]] = []

    class Counter:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert (name, tag_keys) == ("chorus_device_oom_total", ("run", "node"))

        def inc(self, value: float, tags: dict[str, str]) -> None:
            seen.append((value, tags))

    monkeypatch.setattr(ray.util.metrics, "Counter", Counter)
    before = generate_latest(REGISTRY)
    recorder = Recorder(ray=True, run="r", node="n")
    recorder.add(metrics.OOM)
    recorder.add(metrics.OOM, 0)  # Ray takes no zero
    assert seen == [(1, {"run": "r", "node": "n"})]
    assert generate_latest(REGISTRY) == before
