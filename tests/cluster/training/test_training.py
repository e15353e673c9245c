"""`chorus train` on Ray: an ensemble that works, and the same bits whatever is killed or stopped meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import tifffile
import zarr
from ray.cluster_utils import Cluster
from ray.exceptions import RayError

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.cancellation import cancel_running
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.training.folds import FoldReporter
from chorus.cluster.training.run import TrainOutcome, TrainRequest, hold_out, train
from chorus.pipeline.core.provenance import About, DataReference
from chorus.pipeline.demo.synthetic_data import simulate_field
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import CutShortError, RefusedError
from chorus.pipeline.training.data.pairs import TrainingPair
from chorus.pipeline.training.evaluation import dice
from chorus.pipeline.training.records import FoldResult, Step, read_log
from chorus.pipeline.training.settings import TrainSettings
from tests.support.making import write_image

IMAGES, SHAPE, STEPS = 6, (112, 128), 40
SETTINGS = TrainSettings(
    encoder="tu-mobilenetv4_conv_small_050",
    options={"decoder_channels": [32, 24, 16, 16, 8]},
    imagenet=False,
    classes=["background", "nucleus"],
    flows=True,
    folds=2,
    steps=STEPS,
    batch=4,
    patch=64,
    tile=64,
    learning_rate=4e-3,
    validate_every=8,
)


@dataclass
class Listener:
    """Keeps what it is told; `on_step` may interfere."""

    on_step: Callable[[Step], None] = lambda step: None
    begun: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    done: list[int] = field(default_factory=list)

    def phase(self, text: str) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, folds: Any, steps: int, devices: int) -> None:
        self.begun = list(folds)

    def step(self, step: Step) -> None:
        self.steps.append(step)
        self.on_step(step)

    def fold(self, result: FoldResult) -> None:
        self.done.append(result.fold)

    def end(self) -> None: ...


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated nuclei and their objects, one label per image."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for index in range(IMAGES):
        image, labels = simulate_field((3, index), SHAPE, "dense")
        tifffile.imwrite(folder / "images" / f"{index}.tif", image)
        tifffile.imwrite(folder / "labels" / f"{index}.tif", labels)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    arguments = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 128 << 20}
    made = Cluster(initialize_head=True, head_node_args=arguments)
    yield made
    made.shutdown()


def request(data: Path, out: Path, **changes: Any) -> TrainRequest:
    content: dict[str, Any] = {
        "images": str(data / "images"),
        "labels": str(data / "labels"),
        "out": str(out),
        "settings": SETTINGS,
        "about": About(intended_use="tests", data=[DataReference(name="simulated", licence="CC0-1.0")]),
        "hold_out": 0.3,
        "device": "cpu",
    }
    return TrainRequest.model_validate(content | changes)


def weights(out: Path) -> list[bytes]:
    return [(out / f"member-{fold}.safetensors").read_bytes() for fold in range(SETTINGS.folds)]


@dataclass
class Trained:
    out: Path
    outcome: TrainOutcome
    heard: Listener


@pytest.fixture(scope="module")
def unbroken(cluster: Cluster, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training that nothing disturbs, on Ray."""
    out, heard = tmp_path_factory.mktemp("unbroken") / "ensemble", Listener()
    outcome = train(request(data, out, address=cluster.address), heard)
    return Trained(out, outcome, heard)


@pytest.mark.ray
def test_a_training_on_ray_gives_an_ensemble_that_says_where_it_comes_from(unbroken: Trained) -> None:
    assert unbroken.outcome.exit_code == 0
    assert sorted(unbroken.heard.done) == [0, 1]
    for fold in (0, 1):
        assert [s.step for s in read_log(str(unbroken.out), fold)][-1] == STEPS
    ensemble = read_ensemble(str(unbroken.out))
    assert ensemble.hash == unbroken.outcome.hash
    about = ensemble.spec.about
    assert about.training is not None
    assert about.training.images == IMAGES - 2
    assert about.training.objects
    assert about.training.intensity["0"]["mean"] > 100
    assert [fold["dice"] for fold in about.training.folds] == [f.mean_dice for f in unbroken.outcome.folds]
    assert about.data == [DataReference(name="simulated", licence="CC0-1.0", images=IMAGES - 2)]
    assert about.scores == unbroken.outcome.scores
    assert "fold 1" in (unbroken.out / "training" / "curves.svg").read_text()


@pytest.mark.ray
def test_scores_are_better_than_chance_and_those_of_predict(unbroken: Trained, data: Path, tmp_path: Path) -> None:
    scores = unbroken.outcome.scores["hold-out"]
    pairs = [
        TrainingPair(str(i), "", "", str(i), "raster", (0,), SHAPE) for i in range(IMAGES)
    ]  # which are held out follows from their names alone
    kept = [pair.name for pair in hold_out(pairs, 0.3, SETTINGS.seed)[1]]
    for name in kept:
        write_image(tmp_path / "in" / f"{name}.ome.zarr", tifffile.imread(data / "images" / f"{name}.tif"))
    asked = PredictRequest(
        sources=[str(tmp_path / "in")],
        ensemble=str(unbroken.out),
        out=str(tmp_path / "out"),
        settings=ResultSettings(region=64, chunk=64),
        run=RunSettings(executor="serial"),
    )
    assert predict(asked, Silent()).state == "complete"
    truths = [tifffile.imread(data / "labels" / f"{name}.tif") > 0 for name in kept]
    found = [zarr.open_array(tmp_path / "out" / "images" / f"{n}.ome.zarr/labels/semantic/s0")[:] > 0 for n in kept]
    assert scores["dice:ensemble"] == pytest.approx(np.mean([dice(f, t) for f, t in zip(found, truths, strict=True)]))
    everything = np.mean([dice(np.ones_like(truth), truth) for truth in truths])
    assert scores["dice:ensemble"] > everything + 0.1
    names = [n + how for n in ("ensemble", "member-0", "member-1") for how in ("", ":no-augmentation")]
    metrics = {f"{metric}:{name}" for metric in ("dice", "ap50", "map") for name in names}
    assert scores.keys() == metrics | {"images"}


@pytest.mark.ray
@pytest.mark.kill
def test_a_fold_whose_process_is_killed_goes_on_and_the_others_never_notice(
    unbroken: Trained, cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(step: Step) -> None:
        """Once, the process of fold 1, when it has a checkpoint and is not yet done."""
        if step.fold == 1 and 8 <= step.step < STEPS and not killed:
            raylets = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "raylet"]
            mine = [p for p in raylets if psutil.Process(os.getpid()) in p.parents()]
            named = [c for p in mine for c in p.children(recursive=True) if "fold 1" in " ".join(c.cmdline())]
            for process in named:
                process.kill()
                killed.append(process.pid)

    heard = Listener(kill)
    out = tmp_path / "ensemble"
    outcome = train(request(data, out, address=cluster.address), heard)
    assert len(killed) == 1
    assert outcome.exit_code == 0
    assert [note for note in heard.notes if "died" in note] == [note for note in heard.notes if "fold 1" in note]
    assert sum("died" in note for note in heard.notes) == 1
    assert sorted(heard.done) == [0, 1]
    others = [step.step for step in heard.steps if step.fold == 0]
    assert others == sorted(set(others)), "fold 0 was repeated"
    for fold in (0, 1):
        logged = [step.step for step in read_log(str(out), fold)]
        assert logged == [step.step for step in read_log(str(unbroken.out), fold)]
    assert weights(out) == weights(unbroken.out)
    assert outcome.hash == unbroken.outcome.hash


@pytest.mark.ray
def test_what_still_runs_is_cancelled_and_what_has_ended_is_not(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled, real = [], ray.cancel
    monkeypatch.setattr(ray, "cancel", lambda task, **how: (cancelled.append(task), real(task, **how)))
    ray.init(address=cluster.address)
    try:
        sleep = ray.remote(max_retries=0)(lambda seconds: time.sleep(seconds))
        ended, running = sleep.remote(0), sleep.remote(600)
        ray.get(ended)
        cancel_running([ended, running])
        assert cancelled == [running]
        with pytest.raises(RayError):
            ray.get(running, timeout=60)
        cancel_running([])
    finally:
        ray.shutdown()


@pytest.mark.ray
@pytest.mark.long
def test_a_training_that_is_stopped_goes_on_where_it_was_and_ends_with_the_same_bits(
    unbroken: Trained, cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    def stop(step: Step) -> None:
        if step.fold == 1 and step.step >= 8:
            raise KeyboardInterrupt

    out = tmp_path / "ensemble"
    with pytest.raises(CutShortError, match="run the same command again"):
        train(request(data, out, address=cluster.address), Listener(stop))
    assert not (out / "ensemble.yaml").exists()
    before = {fold: read_log(str(out), fold) for fold in (0, 1)}
    heard: FoldReporter = Listener()
    outcome = train(request(data, out, executor="serial"), heard)
    assert outcome.exit_code == 0
    for fold in (0, 1):
        reached = before[fold][-1].step
        assert all(step.step > reached for step in heard.steps if step.fold == fold), "steps were repeated"
        assert read_log(str(out), fold)[: len(before[fold])] == before[fold]
    assert weights(out) == weights(unbroken.out)
    again = Listener()
    assert train(request(data, out, executor="serial"), again).hash == outcome.hash
    assert (again.begun, again.steps) == ([], []), "what is done is not done again"
    with pytest.raises(RefusedError, match=r"steps was 40, now 20.*--overwrite"):
        train(request(data, out, settings=SETTINGS.model_copy(update={"steps": 20})), Listener())
