"""On real Ray: the same bytes as the serial executor's with any number of actors, and failures that stay small."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ray.cluster_utils import Cluster

from chorus.cluster.planning.devices.placement import Placement
from chorus.cluster.planning.plan import RunContext
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.regions import ray_executor as stream
from chorus.cluster.regions.ray_executor import RayExecutor
from chorus.cluster.runtime import session
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.runtime.resources import Resources
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.state.scores import read_features
from chorus.pipeline.core.retries import RETRIES
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import CutShortError, RefusedError
from chorus.pipeline.io import storage
from tests.support.making import pixels, write_ensemble, write_image, write_light_ensemble

pytestmark = pytest.mark.ray

# More cores than the machine has: what matters is who does what, not how fast.
CORES = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    arguments = {"num_cpus": CORES, "include_dashboard": False, "object_store_memory": 128 << 20}
    made = Cluster(initialize_head=True, head_node_args=arguments)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 1 to 6 regions of 64, one with a shard of the output that is all background."""
    folder = tmp_path_factory.mktemp("images")
    for index, shape in enumerate([(50, 60), (100, 130), (64, 128), (130, 70), (90, 90)]):
        write_image(folder / f"{index}.ome.zarr", pixels(shape, seed=index))
    return folder


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three members; each image is measured before it is inferred, so that there are tasks of both kinds."""
    normalisation = {"kind": "percentile", "low": 1, "high": 99.8}
    entry = {"channels": ["dna"], "normalisation": normalisation}
    return write_light_ensemble(tmp_path_factory.mktemp("ensemble"), width=4, input=entry)


def run(images: Path, ensemble: Path, out: Path, **settings: Any) -> PredictOutcome:
    request = PredictRequest(
        sources=[str(images)],
        ensemble=str(ensemble),
        out=str(out),
        settings=ResultSettings(region=64, chunk=32),
        run=RunSettings.model_validate({"executor": "ray"} | settings),
    )
    return predict(request, Silent())


def files(out: Path) -> dict[str, str]:
    found = (path for path in (out / "images").rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def scores(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "scores.parquet").drop(columns="seconds")


@pytest.fixture(scope="module")
def serial(images: Path, ensemble: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serial") / "out"
    assert run(images, ensemble, out, executor="serial").state == "complete"
    return out


@pytest.mark.parametrize(
    "spread",
    [
        pytest.param({"actors": 1}, marks=pytest.mark.long),
        pytest.param({"actors": 2}, marks=pytest.mark.long),
        pytest.param({"actors": 3}, marks=pytest.mark.long),
        pytest.param({"actors": 4, "placement": "replicated"}, marks=pytest.mark.long),
        {"actors": 2, "placement": "staged", "stages": 2},
        pytest.param({"actors": 4, "placement": "staged", "stages": 2}, marks=pytest.mark.long),
        pytest.param({"actors": 3, "placement": "staged", "stages": 3}, marks=pytest.mark.long),
    ],
    ids=lambda spread: "-".join(map(str, spread.values())),
)
def test_actors_and_stages_give_the_bytes_of_the_serial_executor(
    spread: dict[str, Any], cluster: Cluster, images: Path, ensemble: Path, serial: Path, tmp_path: Path
) -> None:
    outcome = run(images, ensemble, tmp_path / "out", address=cluster.address, **spread)
    assert (outcome.state, outcome.exit_code) == ("complete", 0)
    assert files(tmp_path / "out") == files(serial)
    pd.testing.assert_frame_equal(scores(tmp_path / "out"), scores(serial))
    assert (tmp_path / "out/features.parquet").read_bytes() == (serial / "features.parquet").read_bytes()


@pytest.mark.long
def test_encoder_features_pass_through_stages_on_ray(cluster: Cluster, tmp_path: Path) -> None:
    ensemble = write_ensemble(tmp_path / "ensemble", members=2, augmentations=["identity"])
    write_image(tmp_path / "images" / "a.ome.zarr", pixels((100, 130)))
    ways = {
        "serial": {"executor": "serial"},
        "staged": {"address": cluster.address, "actors": 4, "placement": "staged", "stages": 2},
    }
    for name, how in ways.items():
        assert run(tmp_path / "images", ensemble, tmp_path / name, **how).state == "complete"
    serial, staged = (tmp_path / name for name in ways)
    assert len(read_features(str(serial))["features"][0]) > 2 * 100
    assert (staged / "features.parquet").read_bytes() == (serial / "features.parquet").read_bytes()
    pd.testing.assert_frame_equal(scores(staged), scores(serial))


def test_failing_images_are_rows_and_the_rest_is_done(cluster: Cluster, tmp_path: Path) -> None:
    ensemble = write_light_ensemble(tmp_path / "ensemble", width=4)
    for name in ("a", "broken", "z"):
        write_image(tmp_path / "images" / f"{name}.ome.zarr", pixels((100, 130)))
    chunk = tmp_path / "images" / "broken.ome.zarr" / "s0" / "c" / "0" / "1"
    chunk.write_bytes(chunk.read_bytes()[:20])
    outs = {"serial": tmp_path / "serial", "ray": tmp_path / "ray"}
    for executor, out in outs.items():
        how = {"address": cluster.address, "actors": 2} if executor == "ray" else {}
        outcome = run(tmp_path / "images", ensemble, out, executor=executor, **how)
        assert (outcome.state, outcome.exit_code) == ("failures", 1)
    table = scores(outs["ray"])
    assert table["status"].tolist() == ["done", "failed", "done"]
    assert table["message"][1]
    pd.testing.assert_frame_equal(table, scores(outs["serial"]))
    assert files(outs["ray"]) == files(outs["serial"])


@pytest.mark.long
def test_terminal_shows_our_lines_only(images: Path, ensemble: Path, serial: Path, tmp_path: Path) -> None:
    """With a Ray of its own, which starts and stops with the run."""
    program = [sys.executable, "-m", "chorus.cli", "predict", str(images), "-e", str(ensemble), "-o"]
    program += [str(tmp_path / "out"), "--region", "64", "--chunk", "32", "--actors", "1", "--no-report"]
    program += ["--executor", "ray"]
    environment = os.environ | {"COLUMNS": "300"}
    done = subprocess.run(program, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    ours = [
        r"(looking for images|starting Ray|trying the ensemble|measuring the images) \.\.\.",
        r"5 images, \d+ regions, \d+ tiles, \d+ forward passes on 1 actors .*",
        r"\d+/\d+ regions .*",
        r"5 images: 5 done, .*",
        r"(results|report|next) .*",
    ]
    others = [line for line in done.stderr.splitlines() if not any(re.fullmatch(known, line) for known in ours)]
    assert others == []
    assert files(tmp_path / "out") == files(serial)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "nowhere.invalid:6379"])
@pytest.mark.timeout(60)
def test_no_cluster_at_the_address_is_refused_in_one_sentence(
    address: str, images: Path, ensemble: Path, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match=rf"--address {address}: no Ray cluster .*; start one with `ray start") as e:
        run(images, ensemble, tmp_path / "out", address=address)
    assert "\n" not in str(e.value)


PLACEMENT = Placement(
    groups=(range(3),),
    actors_per_stage=2,
    least_actors_per_stage=2,
    cpus_per_actor=1,
    gpus_per_actor=0,
    regions_per_block=1,
    blocks_per_actor=2,
    tasks=2,
)


@pytest.fixture
def context(ensemble: Path, tmp_path: Path) -> RunContext:
    read = read_ensemble(str(ensemble))
    settings = resolve(ResultSettings(region=64, chunk=32), read)
    return RunContext(
        out=str(tmp_path),
        ensemble=read.url,
        ensemble_hash="of another",
        ensemble_name="fluo",
        settings=settings,
        session="session",
    )


@pytest.fixture
def connected(cluster: Cluster) -> Iterator[Resources]:
    yield session.start(cluster.address, staged=False)
    session.stop()


@pytest.mark.long
def test_actors_that_cannot_start_cut_the_run_short_and_say_why(
    connected: Resources, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "RETRIES", replace(RETRIES, streams=1))
    with pytest.raises(CutShortError) as caught:
        list(RayExecutor(PLACEMENT, 1.0, connected.logs).regions(context, np.arange(3)))
    assert "changed since the run began" in str(caught.value)
    assert connected.logs in str(caught.value)
    assert "\n" not in str(caught.value)


def test_task_that_fails_or_dies_is_a_result(connected: Resources) -> None:
    executor = RayExecutor(PLACEMENT, 1.0, connected.logs)
    executor.submit(0, sum, [1, 2])
    executor.submit(1, storage.scheme, "ftp://elsewhere")
    executor.submit(2, int, "no number")
    executor.submit(3, os._exit, 1)
    results = sorted(executor.results(wait=True), key=lambda result: result.key)
    assert results[0] == TaskResult(0, 3)
    assert "ftp://elsewhere: scheme 'ftp' is not supported" in str(results[1].error)
    assert "unexpected ValueError: invalid literal" in str(results[2].error)
    assert "the process that worked on it died" in str(results[3].error)


@pytest.mark.parametrize("regions_per_block", [1, 57])
def test_every_region_is_in_one_block_and_all_actors_have_blocks_to_the_end(regions_per_block: int) -> None:
    for count in (1, 5, 100, 3_000, 1_000_000):
        executor = RayExecutor(replace(PLACEMENT, regions_per_block=regions_per_block), 1.0, "the logs")
        blocks = executor._blocks(np.arange(count))
        assert np.array_equal(np.concatenate([block["region"].to_numpy() for block in blocks]), np.arange(count))
        assert min(count, 8 * PLACEMENT.actors_per_stage) <= len(blocks) <= 5_000
        assert max(map(len, blocks)) <= max(regions_per_block, count // 5_000)


def test_stream_that_hangs_is_broken_off_and_begun_anew(
    connected: Resources, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No actor can ever start: each asks for more cores than the cluster has."""
    monkeypatch.setattr(stream, "RETRIES", replace(RETRIES, stream_start_seconds=5.0))
    executor = RayExecutor(replace(PLACEMENT, cpus_per_actor=CORES + 1), 0.0, connected.logs)
    with pytest.raises(CutShortError, match=r"Ray failed again and again \(no region ended any more\)"):
        list(executor.regions(context, np.arange(3)))


class Streams(RayExecutor):
    """A RayExecutor whose streams are given: statuses of so many regions, then an error or the end."""

    def __init__(self, *scripts: tuple[int, Exception | None]) -> None:
        self._scripts = list(scripts)
        self._logs = "the logs"
        self.begun: list[list[int]] = []

    def _stream(self, context: RunContext, todo: np.ndarray) -> Iterator[RegionStatus]:
        self.begun.append(todo.tolist())
        count, error = self._scripts.pop(0)
        for region in todo[:count].tolist():
            yield RegionStatus(region, 0, region, "done")
        if error is not None:
            raise error


def test_new_stream_takes_what_a_broken_one_left(context: RunContext) -> None:
    executor = Streams((2, RuntimeError("an actor is gone")), (0, AssertionError()), (1, None), (2, None))
    todo = np.array([3, 5, 7, 11, 13])
    assert [status.region for status in executor.regions(context, todo)] == [3, 5, 7, 11, 13]
    assert executor.begun == [[3, 5, 7, 11, 13], [7, 11, 13], [7, 11, 13], [11, 13]]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(RuntimeError("first line\nlast line"), "last line"), (AssertionError(), "AssertionError"), (None, "no result")],
)
def test_streams_that_only_break_cut_the_run_short(failure: Exception | None, reason: str, context: RunContext) -> None:
    executor = Streams((1, failure), *[(0, failure)] * 3)
    found = []
    with pytest.raises(CutShortError, match=rf"Ray failed .*{reason}.*; look into the logs, then run the same"):
        found += list(executor.regions(context, np.arange(4)))
    assert len(executor.begun) == 4


def test_nothing_to_do_starts_no_stream(context: RunContext) -> None:
    assert list(Streams().regions(context, np.array([], np.int64))) == []
