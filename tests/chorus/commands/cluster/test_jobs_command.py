"""``chorus submit`` and ``chorus jobs``: what is refused here, what is sent, what people and machines are told."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import typer
from ray.job_submission import JobStatus

from chorus.cli import app
from chorus.cluster.runtime import ray_jobs as room
from chorus.cluster.runtime import session
from chorus.cluster.runtime.ray_jobs import Jobs
from chorus.commands.cluster.submit import PLACES
from chorus.console.lazy import resolved
from chorus.console.progress import last_progress
from chorus.pipeline.io import storage
from tests.support.jobs import FakeClient
from tests.support.running import Chorus

URLS = ["gs://b/in.zarr", "-e", "nuclei-fluo", "-o", "gs://b/screen"]
LOG = """looking for images ...
12/640 regions 0.50 regions/s  2.10 Mpx/s  20 min 56 s left  devices 93% busy  0 failed
24/640 regions 0.52 regions/s  2.18 Mpx/s  19 min 44 s left  devices 94% busy  1 failed
"""


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """What the commands talk to in this test."""
    made = FakeClient(polls=2)
    monkeypatch.setattr(room, "_connect", lambda address: made)
    monkeypatch.setattr(room, "_POLL_SECONDS", 0.001)
    return made


def ends(client: FakeClient, status: JobStatus, code: int | None) -> None:
    client._ends = (status, code)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "plate.zarr", *URLS[1:]], "plate.zarr: is on this machine, where the cluster does not see it"),
        (["predict", "/data/plate.zarr", *URLS[1:]], "/data/plate.zarr: is on this machine"),
        (["predict", *URLS[:3], "-o", "out"], "--out out: is on this machine"),
        (["predict", URLS[0], "-e", "./mine", "-o", "gs://b/o"], "--ensemble ./mine: is on this machine"),
        (["predict", URLS[0], "-e", "nuclei-flu", "-o", "gs://b/o"], "neither a folder here nor an ensemble"),
        (["predict", "memory://x", *URLS[1:]], "memory://x: is in the memory of one process"),
        (["predict", "s3://key:word@b/x", *URLS[1:]], "s3://b/x: the URL holds credentials"),
        (["predict", *URLS, "--address", "auto"], "goes before the command"),
        (["predict", *URLS, "--tile", "many"], "--tile"),
        (["train", "gs://b/i", "--labels", "masks/", "--out", "gs://b/e"], "--labels masks/: is on this machine"),
        (["export", "rois", "gs://b/r", "--out", "rois"], "--out rois: is on this machine"),
        (["evaluate", "gs://b/r", "--truth", "masks"], "--truth masks: is on this machine"),
        (["rank", "gs://b/r"], "chorus rank: needs no cluster"),
        (["submit", "predict"], "chorus submit: needs no cluster"),
        (["jobs", "list"], "chorus jobs list: needs no cluster"),
        (["export", "pictures"], "export pictures: no command of Chorus; choose out of"),
        (["foo"], "foo: no command of Chorus"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_run_there_is_refused_here_in_one_sentence(
    words: list[str], said: str, chorus: Chorus, client: FakeClient
) -> None:
    result = chorus("submit", *words)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
    assert client.submitted == []


def test_names_of_ensembles_and_of_label_images_are_no_places(chorus: Chorus, client: FakeClient) -> None:
    train = ["train", "gs://b/plate.zarr", "--labels", "nuclei", "--out", "gs://b/e", "--start", "nuclei-fluo"]
    assert chorus("submit", "--no-follow", *train).code == 0
    assert client.submitted[0]["metadata"]["ensemble"] == "nuclei-fluo"


def test_shared_paths_are_taken_as_they_are_and_relative_ones_begin_where_the_person_is(
    chorus: Chorus, client: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    absolute = ["predict", "/data/in.zarr", "-e", "/data/e", "-o", "/data/out"]
    assert chorus("submit", "--no-follow", "--shared", *absolute).code == 0
    assert chorus("submit", "--no-follow", "--shared", *absolute[:-1], "out").code == 0
    first, second = client.submitted
    assert first["entrypoint"].startswith("exec chorus predict --address auto /data/in.zarr")
    assert second["entrypoint"].startswith(f"cd {tmp_path} && exec chorus predict")
    assert second["metadata"]["out"] == str(tmp_path / "out")


def test_every_text_that_a_command_on_ray_takes_is_known_as_a_place_or_as_none() -> None:
    """So that a new option with a path in it is not sent to where nobody can read it."""
    no_places = {"address", "augment", "channel", "channel_name", "class_name", "color", "expert", "label", "metric"}
    no_places |= {
        "architecture",
        "encoder",
        "option",
        "learning_rate",
        "name",
        "save",
        "truth_label",
        "tune_label",
        "only",
    }
    no_places |= {"description", "intended_use", "limits", "licence", "data_name", "data_url", "data_licence"}
    found = set()
    for command in commands(typer.main.get_command(app)):
        assert command.callback is not None
        parameters = inspect.signature(command.callback, eval_str=True).parameters
        if "executor" in parameters:
            found |= {name for name, one in parameters.items() if is_text(one.annotation)}
    assert {"sources", "out", "ensemble", "truth", "labels"} <= found
    assert found - set(PLACES) - no_places == set()
    assert set(PLACES) <= found


def commands(command: Any) -> Iterator[Any]:
    """All commands of a tree, each imported."""
    command = resolved(command)
    if not hasattr(command, "commands"):
        yield command
        return
    for one in command.commands.values():
        yield from commands(one)


def is_text(hint: Any) -> bool:
    """Whether a parameter takes any text, or a list of such."""
    if hint is str:
        return True
    if get_origin(hint) is Annotated:
        return is_text(get_args(hint)[0])
    return any(is_text(part) for part in get_args(hint)) if not str(hint).startswith("typing.Literal") else False


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [(JobStatus.SUCCEEDED, 0, 0), (JobStatus.FAILED, 1, 1), (JobStatus.FAILED, 3, 3), (JobStatus.STOPPED, None, 3)],
)
def test_submit_follows_and_ends_as_the_command_does(
    status: JobStatus, code: int | None, expected: int, chorus: Chorus, client: FakeClient
) -> None:
    client.logs = LOG
    ends(client, status, code)
    result = chorus("submit", "--json", "predict", *URLS)
    assert result.code == expected
    assert LOG in result.err
    content = json.loads(result.out)
    assert (content["name"], content["exit_code"]) == ("screen-1", code)
    assert ("chorus jobs resume screen-1" in result.err) == (expected != 0)


def test_ctrl_c_leaves_the_job_running_and_says_how_to_look_and_stop(
    chorus: Chorus, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Jobs, "follow", interrupted)
    result = chorus("submit", "predict", *URLS)
    assert result.code == 130
    assert "screen-1 goes on without you" in result.err
    for verb in ("status screen-1", "logs --follow screen-1", "stop screen-1"):
        assert f"chorus jobs {verb}" in result.err
    assert client.stopped == []


def test_jobs_are_listed_stopped_resumed_and_logged(chorus: Chorus, client: FakeClient) -> None:
    client._polls = 3
    assert chorus("submit", "--no-follow", "predict", *URLS).code == 0
    assert chorus("jobs", "logs").out == client.logs
    stopped = chorus("jobs", "stop", "screen-1")
    assert stopped.code == 0
    assert "go on with `chorus jobs resume screen-1`" in stopped.err
    ends(client, JobStatus.SUCCEEDED, 0)
    client._asked.clear()
    ends(client, JobStatus.STOPPED, None)
    assert chorus("jobs", "resume", "screen-1", "--no-follow").code == 0
    listed = json.loads(chorus("jobs", "list", "--json").out)
    assert [job["name"] for job in listed] == ["screen-2", "screen-1"]
    assert re.search(r"screen-1 .* stopped .* predict .* gs://b/screen", chorus("jobs", "list").out)
    assert chorus("jobs", "stop", "screen-7").code == 2


def test_status_tells_rate_and_time_left_and_that_the_output_cannot_be_seen(
    chorus: Chorus, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(url: str) -> bool:
        raise PermissionError(url)

    monkeypatch.setattr(storage, "exists", forbidden)
    client._polls, client.logs = 100, LOG
    chorus("submit", "--no-follow", "predict", *URLS)
    shown = chorus("jobs", "status")
    assert shown.code == 0
    assert "24 of 640 regions that were open, 0.52 regions/s" in shown.out
    assert "cannot be seen from here: gs://b/screen: permission denied" in shown.out
    content = json.loads(chorus("jobs", "status", "screen-1", "--json").out)
    assert content["progress"]["ended"] == 24
    assert content["state"] == "running"


def test_the_last_line_of_progress_is_found_in_logs_for_people_and_for_machines() -> None:
    for log in (LOG, "".join(json.dumps({"message": line, "run": "r"}) + "\n" for line in LOG.splitlines())):
        reached = last_progress(log)
        assert reached is not None
        assert (reached.ended, reached.total, reached.units) == (24, 640, "regions")
        assert reached.rates.endswith("19 min 44 s left  devices 94% busy  1 failed")
    assert last_progress("8 images: 8 done, 0 failed") is None


def test_sigterm_before_a_run_begins_is_cut_short_and_not_some_images_failed(
    chorus: Chorus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while `--device auto` asks the cluster for GPUs; batch systems look at the exit code."""
    before = signal.getsignal(signal.SIGTERM)

    def told(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(session, "start", told)
    result = chorus("predict", tmp_path, "-e", "nuclei-fluo", "-o", tmp_path / "out", "--address", "auto")
    assert result.code == 3
    assert "stopped; run the same command again to go on" in result.err
    assert signal.getsignal(signal.SIGTERM) is before
