"""Jobs of a cluster, as Ray's client tells of them: names, states, exit codes, logs, refusals, how far a run is."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
from ray.job_submission import JobDetails, JobStatus, JobType

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime import ray_jobs as room
from chorus.cluster.runtime.job_command import DEFAULT_ADDRESS, SubmittedCommand, SubmittedJob
from chorus.cluster.runtime.ray_jobs import STOP_SECONDS, Jobs
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.ledger import Ledger
from chorus.cluster.state.progress import run_state
from chorus.pipeline.errors import OutputError, RefusedError
from tests.support.jobs import FakeClient
from tests.support.making import pixels, write_image, write_light_ensemble

COMMAND = SubmittedCommand(
    ("predict", "gs://b/in", "-e", "nuclei-fluo", "-o", "gs://b/screen 1"), 1, "gs://b/screen 1", "e"
)
Connect = Callable[[FakeClient], Jobs]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    def connected(client: FakeClient) -> Jobs:
        monkeypatch.setattr(room, "_connect", lambda address: client)
        monkeypatch.setattr(room, "_POLL_SECONDS", 0.001)
        return Jobs(DEFAULT_ADDRESS)

    return connected


@pytest.mark.parametrize("folder", [None, "/data/my images; rm *"])
def test_entrypoint_is_the_command_as_typed_on_the_cluster_it_runs_on(folder: str | None) -> None:
    words = ("predict", "--", "a b.zarr", "$HOME/*.zarr")
    command = SubmittedCommand(words, 1, "", "", folder)
    parts = shlex.split(command.entrypoint, posix=True)
    given = parts if folder is None else parts[3:]
    assert given == ["exec", "chorus", "predict", "--address", "auto", *words[1:]]
    if folder is not None:
        assert parts[:3] == ["cd", folder, "&&"]


def test_the_shell_becomes_the_program_so_that_a_signal_reaches_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray sends a signal to its shell and to all below it."""
    program = tmp_path / "chorus"
    program.write_text("#!/bin/sh\necho $$ $*\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    command = SubmittedCommand(("predict", "a b"), 1, "", "", str(tmp_path))
    with subprocess.Popen(command.entrypoint, shell=True, stdout=subprocess.PIPE, text=True) as shell:
        said, _ = shell.communicate(timeout=60)
    assert said.split() == [str(shell.pid), "predict", "--address", "auto", "a", "b"]


def test_nothing_is_uploaded_and_what_ray_keeps_of_a_job_says_what_and_where(connect: Connect) -> None:
    client = FakeClient()
    job = connect(client).submit(COMMAND)
    (given,) = client.submitted
    assert set(given) == {"entrypoint", "submission_id", "runtime_env", "metadata"}
    assert set(given["runtime_env"]) == {"env_vars"}
    environment = given["runtime_env"]["env_vars"]
    assert environment["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_SECONDS)
    assert set(environment) == {"RAY_JOB_STOP_WAIT_TIME_S", "CHORUS_SUBMITTED_WITH"}
    assert given["metadata"]["out"] == "gs://b/screen 1"
    assert given["metadata"]["chorus"] == environment["CHORUS_SUBMITTED_WITH"]
    assert (job.name, job.command, job.ensemble) == ("screen-1-1", "predict", "e")


@pytest.mark.parametrize(
    ("ends", "state", "result"),
    [
        ((JobStatus.SUCCEEDED, 0), "done", 0),
        ((JobStatus.FAILED, 1), "failures", 1),
        ((JobStatus.FAILED, 2), "refused", 2),
        ((JobStatus.FAILED, 3), "cut short", 3),
        ((JobStatus.FAILED, -9), "cut short", 3),
        ((JobStatus.FAILED, None), "cut short", 3),
        ((JobStatus.STOPPED, None), "stopped", 3),
    ],
)
def test_a_followed_job_ends_as_its_command_did(
    ends: tuple[JobStatus, int | None], state: str, result: int, connect: Connect
) -> None:
    jobs = connect(FakeClient(polls=2, ends=ends))
    said: list[str] = []
    job = jobs.follow(jobs.submit(COMMAND).name, said.append)
    assert (job.state, job.result, job.alive) == (state, result, False)
    assert "".join(said) == "one\ntwo\n"


def test_what_is_followed_is_neither_lost_nor_said_twice_where_connections_break(connect: Connect) -> None:
    client = FakeClient(polls=6)
    client.logs, client.breaks = "".join(f"line {index}\n" for index in range(20)), 4
    jobs = connect(client)
    said: list[str] = []
    jobs.follow(jobs.submit(COMMAND).name, said.append)
    assert client.breaks == 0
    assert "".join(said) == client.logs


def test_the_same_command_into_the_same_output_is_refused_while_one_is_on_and_numbered_after(connect: Connect) -> None:
    client = FakeClient(polls=3)
    jobs = connect(client)
    jobs.submit(COMMAND)
    with pytest.raises(RefusedError, match="screen 1: job screen-1-1 is at it already; follow it with `ch"):
        jobs.submit(COMMAND)
    jobs.follow("screen-1-1", lambda _: None)
    assert jobs.submit(COMMAND).name == "screen-1-2"
    assert [job.name for job in jobs.submitted()] == ["screen-1-2", "screen-1-1"]
    assert jobs.latest().name == "screen-1-2"


def test_a_stopped_job_is_resumed_by_the_very_same_command(connect: Connect) -> None:
    client = FakeClient(polls=5)
    jobs = connect(client)
    jobs.submit(COMMAND)
    with pytest.raises(RefusedError, match="has not ended"):
        jobs.resume("screen-1-1")
    assert jobs.stop("screen-1-1").state == "stopped"
    assert client.stopped == ["screen-1-1"]
    with pytest.raises(RefusedError, match="has ended already"):
        jobs.stop("screen-1-1")
    assert jobs.resume("screen-1-1").name == "screen-1-2"
    first, second = client.submitted
    assert first["entrypoint"] == second["entrypoint"]
    assert first["metadata"] == second["metadata"]


def test_a_job_that_is_done_has_nothing_to_go_on_with(connect: Connect) -> None:
    jobs = connect(FakeClient())
    jobs.submit(COMMAND)
    with pytest.raises(RefusedError, match="screen-1-1: all is done"):
        jobs.resume("screen-1-1")


def test_unknown_jobs_and_clusters_without_any_are_refused_in_one_sentence(connect: Connect) -> None:
    jobs = connect(FakeClient())
    with pytest.raises(RefusedError, match="no job screen-9 of Chorus on this cluster"):
        jobs.job("screen-9")
    with pytest.raises(RefusedError, match="no jobs of Chorus"):
        jobs.latest()


def test_another_ray_is_refused_before_anything_is_sent(connect: Connect) -> None:
    client = FakeClient()
    client._server_ray_version = "2.59.0"
    with pytest.raises(RefusedError, match=f"ray is 2.59.0 on the cluster and {ray.__version__} here"):
        connect(client)


@pytest.fixture
def dashboard() -> Iterator[str]:
    """``host:port`` of something that answers as a dashboard does when asked for its version."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"version": "4", "ray_version": ray.__version__, "ray_commit": "x"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_an_address_that_is_given_goes_before_the_environment(
    scheme: str, dashboard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    jobs = Jobs(f"{scheme}{dashboard}")
    assert jobs._client.get_address() == f"http://{dashboard}"
    assert "--address" in jobs.call("list")


def test_a_cluster_that_does_not_answer_is_refused_in_one_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"http://127.0.0.1:{port}", f"127.0.0.1:{port}"):
        with pytest.raises(RefusedError, match=f"--address {address}: no cluster answers there"):
            Jobs(address)


def test_how_far_a_run_is_agrees_with_what_lies_in_its_ledger(tmp_path: Path) -> None:
    for index in range(2):
        write_image(tmp_path / "images" / f"{index}.ome.zarr", pixels((64, 128), seed=index))
    out = str(tmp_path / "out")
    request = PredictRequest(
        sources=[str(tmp_path / "images")],
        ensemble=str(write_light_ensemble(tmp_path / "e", members=1, width=2)),
        out=out,
        settings=ResultSettings(region=64, chunk=64, augmentations=["identity"]),
        run=RunSettings(executor="serial", thumbnails=False),
    )
    assert run_state(out, count=True) is None
    predict(request, Silent())
    ended = run_state(out, count=True)
    assert ended is not None
    assert (ended.outcome, ended.images, ended.images_done, ended.regions, ended.failed) == ("complete", 2, 2, 4, 0)
    # As it was when a driver died: the second image half done.
    content = json.loads((tmp_path / "out/run.json").read_text()) | {"outcome": "running"}
    del content["summary"]
    (tmp_path / "out/run.json").write_text(json.dumps(content))
    (tmp_path / "out/ledger/1.ome.zarr/image.json").unlink()
    (tmp_path / "out/ledger/1.ome.zarr/region-00000001.json").unlink()
    assert Ledger(out).has_region("1.ome.zarr", 0)
    half = run_state(out, count=True)
    assert half is not None
    assert (half.outcome, half.images_done, half.regions_done) == ("open", 1, 3)
    uncounted = run_state(out, count=False)
    assert uncounted is not None
    assert (uncounted.regions, uncounted.regions_done) == (4, None)


def test_an_output_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises((OutputError, RefusedError), match=r"run\.json"):
        run_state(str(tmp_path), count=True)


@pytest.mark.parametrize(
    ("entrypoint", "command", "out"),
    [
        ("chorus predict gs://b/in --ensemble e --out gs://b/out --address auto", "predict", "gs://b/out"),
        ("chorus convert gs://b/in -o gs://b/out", "convert", "gs://b/out"),
        ("python train.py --out x", None, None),
        ("echo it's", None, None),
    ],
)
def test_jobs_that_were_started_in_another_way_are_known_by_their_entrypoint(
    entrypoint: str, command: str | None, out: str | None
) -> None:
    """As a RayJob's."""
    details = JobDetails(
        type=JobType.SUBMISSION, submission_id="x", status=JobStatus.RUNNING, entrypoint=entrypoint, metadata={}
    )
    job = SubmittedJob.of(details)
    assert (job and job.command, job and job.out) == (command, out)
