"""Runs that are submitted to a real Ray cluster by its Jobs API: their bytes, how they are stopped and resumed."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock
from ray.cluster_utils import Cluster

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.job_command import SubmittedCommand
from chorus.cluster.runtime.ray_jobs import STOP_SECONDS, Jobs
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.progress import run_state
from chorus.pipeline.errors import RefusedError
from tests.support.making import pixels, write_image, write_light_ensemble

pytestmark = [pytest.mark.ray, pytest.mark.long]

REGION = 64
# Far more than anything takes, also on a machine that others use.
LONGEST_SECONDS = 400.0


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head with a dashboard, and the programs of this environment on its path, as in the container."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    # A job joins the latest cluster of Ray's folder, whoever began it; sockets in it have short names.
    folder = tempfile.mkdtemp(prefix="cj-")
    patch.setenv("RAY_TMPDIR", folder)
    dashboard, agent = free_ports(2)
    arguments = {"num_cpus": 2, "include_dashboard": True, "object_store_memory": 96 << 20}
    arguments |= {"dashboard_port": dashboard, "dashboard_agent_listen_port": agent}
    made = Cluster(initialize_head=True, head_node_args=arguments)
    yield made
    made.shutdown()
    patch.undo()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def jobs(cluster: Cluster) -> Jobs:
    return Jobs(f"http://{cluster.webui_url}")


def command(images: Path, ensemble: Path, out: Path) -> SubmittedCommand:
    """`chorus predict` in small regions, one augmentation."""
    sizes = ["--region", str(REGION), "--chunk", str(REGION), "--no-report", "--augment", "none", "--actors", "2"]
    words = ["predict", str(images), "-e", str(ensemble), "-o", str(out), *sizes]
    return SubmittedCommand(tuple(words), 1, str(out), str(ensemble))


def serial(images: Path, ensemble: Path, out: Path) -> None:
    """The same run in this process."""
    settings = ResultSettings(region=REGION, chunk=REGION, augmentations=["identity"])
    run = RunSettings(executor="serial", thumbnails=False)
    request = PredictRequest(sources=[str(images)], ensemble=str(ensemble), out=str(out), settings=settings, run=run)
    assert predict(request, Silent()).state == "complete"


def hashes(out: Path) -> dict[str, str]:
    files = (path for path in (out / "images").rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def scores(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "scores.parquet").drop(columns="seconds")


def marks(out: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of every record: they change when one is written again."""
    files = (out / "ledger").rglob("*.json")
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


@pytest.mark.timeout(600)
def test_submitted_run_is_followed_to_its_end_and_its_bytes_are_those_of_a_local_one(
    jobs: Jobs, tmp_path: Path
) -> None:
    images, ensemble = tmp_path / "images", write_light_ensemble(tmp_path / "e", members=2, width=4)
    for index in range(2):
        write_image(images / f"{index}.ome.zarr", pixels((100, 130), seed=index))
    serial(images, ensemble, tmp_path / "here")
    job = jobs.submit(command(images, ensemble, tmp_path / "there"))
    with pytest.raises(RefusedError, match="is at it already"):
        jobs.submit(command(images, ensemble, tmp_path / "there"))
    said: list[str] = []
    ended = jobs.follow(job.name, said.append)
    assert (ended.state, ended.result) == ("done", 0), "".join(said)
    assert "".join(said) == jobs.log(job.name)
    assert "12/12 regions" in "".join(said)
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here")
    pd.testing.assert_frame_equal(scores(tmp_path / "there"), scores(tmp_path / "here"))
    assert [one.name for one in jobs.submitted()] == [job.name]
    assert json.loads((tmp_path / "there/run.json").read_text())["run"]["address"] == "auto"


@pytest.mark.timeout(1500)
def test_job_on_three_nodes_is_stopped_in_order_and_resumed_with_nothing_done_twice(
    cluster: Cluster, jobs: Jobs, tmp_path: Path
) -> None:
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=96 << 20, dashboard_agent_listen_port=free_ports(1)[0])
    images, ensemble = tmp_path / "images", write_light_ensemble(tmp_path / "e", members=2, width=48)
    for index in range(6):
        write_image(images / f"{index}.ome.zarr", pixels((2 * REGION, 4 * REGION), seed=index))
    serial(images, ensemble, tmp_path / "here")
    out = tmp_path / "there"
    job = jobs.submit(command(images, ensemble, out))
    until = time.monotonic() + LONGEST_SECONDS
    while sum(1 for _ in (out / "ledger").rglob("region-*.json")) < 4:
        assert time.monotonic() < until, jobs.log(job.name)
        assert jobs.job(job.name).alive, jobs.log(job.name)
        time.sleep(0.1)

    started = time.monotonic()
    stopped = jobs.stop(job.name)
    took = time.monotonic() - started
    before = marks(out)
    assert (stopped.state, stopped.result) == ("stopped", 3)
    assert took < STOP_SECONDS
    said = jobs.log(job.name)
    assert said.rstrip().endswith("cut short: stopped; run the same command again to go on"), said
    assert "Traceback" not in said
    FileLock(out / "run.lock").acquire(timeout=0).lock.release()  # the output is free
    state = run_state(str(out), count=True)
    assert state is not None
    assert state.outcome == "open"
    assert state.regions_done is not None
    assert 4 <= state.regions_done < state.regions == 48

    resumed = jobs.resume(job.name)
    ended = jobs.follow(resumed.name, lambda _: None)
    assert (ended.state, ended.result) == ("done", 0), jobs.log(resumed.name)
    now = marks(out)
    assert [path for path, mark in before.items() if now.get(path) != mark] == []
    assert hashes(out) == hashes(tmp_path / "here")
    pd.testing.assert_frame_equal(scores(out), scores(tmp_path / "here"))
    state = run_state(str(out), count=True)
    assert state is not None
    assert (state.outcome, state.images_done, state.failed) == ("complete", 6, 0)
    print(f"stopped within {took:.1f} s at {len(before)} records")


def test_a_command_that_is_refused_there_ends_so_here(jobs: Jobs, tmp_path: Path) -> None:
    job = jobs.submit(command(tmp_path / "nothing", tmp_path / "no-ensemble", tmp_path / "refused"))
    ended = jobs.follow(job.name, lambda _: None)
    assert (ended.state, ended.result) == ("refused", 2)
    assert "no-ensemble" in jobs.log(job.name)
