"""A fold learns, goes on after it was killed with the same bits, and its member is one like any other."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from chorus.pipeline.core.provenance import About
from chorus.pipeline.demo.synthetic_data import simulate_field
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import CutShortError, RefusedError
from chorus.pipeline.members.kinds.smp import SmpMember
from chorus.pipeline.preprocessing.normalisation import normalised
from chorus.pipeline.training.data.pairs import TrainingPair, find_pairs, load_pair
from chorus.pipeline.training.fitting import networks
from chorus.pipeline.training.fitting.fold import train_fold
from chorus.pipeline.training.fitting.networks import freeze_encoder, new_network
from chorus.pipeline.training.fitting.schedule import cycles
from chorus.pipeline.training.fitting.validation import evaluating, predicted
from chorus.pipeline.training.records import FoldResult, Step, fold_folder, read_log, read_result
from chorus.pipeline.training.settings import TrainSettings
from chorus.pipeline.training.summary import ensemble_spec
from tests.support.making import ARCHITECTURE, OPTIONS

CPU = torch.device("cpu")
SETTINGS = TrainSettings(
    **ARCHITECTURE,
    options=OPTIONS,
    imagenet=False,
    folds=2,
    steps=12,
    frozen_share=0.34,
    batch=2,
    patch=32,
    validate_every=5,
    learning_rate=5e-3,
    channels=["dna"],
    tile=64,
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingPair, ...]:
    """Four small simulated fields."""
    import tifffile

    folder = tmp_path_factory.mktemp("data")
    for index in range(4):
        image, label = simulate_field((1, index), (64, 80))
        for part, data in (("images", image), ("labels", label)):
            (folder / part).mkdir(exist_ok=True)
            tifffile.imwrite(folder / part / f"{index}.tif", data)
    return find_pairs(str(folder / "images"), str(folder / "labels"), ["dna"]).pairs


def train(
    pairs: Sequence[TrainingPair], folder: Path, settings: TrainSettings = SETTINGS, stop_at: int | None = None
) -> tuple[FoldResult, list[Step]]:
    """Fold 0, in one go, or killed before step `stop_at` and gone on with."""
    said: list[Step] = []
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > (stop_at or 0)

    if stop_at is not None:
        with pytest.raises(CutShortError, match=f"stopped at step {stop_at} of {settings.steps}"):
            train_fold(settings, pairs, 0, str(folder), said.append, stop, CPU, 1)
    return train_fold(settings, pairs, 0, str(folder), said.append, lambda: False, CPU, 1), said


Whole = tuple[FoldResult, list[Step], Path]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, pairs: tuple[TrainingPair, ...]) -> Whole:
    """Fold 0, trained in one go."""
    folder = tmp_path_factory.mktemp("whole")
    return *train(pairs, folder), folder


@pytest.mark.parametrize("stop_at", [3, 4, 7])  # 4 is where the frozen cycle ends
def test_a_fold_that_was_stopped_ends_with_the_same_bits_as_one_that_was_not(
    tmp_path: Path, pairs: tuple[TrainingPair, ...], unbroken: Whole, stop_at: int
) -> None:
    whole, _, folder = unbroken
    resumed, _ = train(pairs, tmp_path, stop_at=stop_at)
    assert resumed.sha256 == whole.sha256
    assert resumed.dice == whole.dice
    logs = [
        [(line.step, line.loss, line.learning_rate, line.dice) for line in read_log(str(where), 0)]
        for where in (folder, tmp_path)
    ]
    assert logs[0] == logs[1]
    assert [step for step, *_, dice in logs[0] if dice] == [5, 10, 12]


def test_a_fold_that_died_between_checkpoints_goes_on_from_the_last_one(
    tmp_path: Path, pairs: tuple[TrainingPair, ...], unbroken: Whole
) -> None:
    def fail(step: Step) -> None:
        if step.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_fold(SETTINGS, pairs, 0, str(tmp_path), fail, lambda: False, CPU, 1)
    said: list[Step] = []
    result = train_fold(SETTINGS, pairs, 0, str(tmp_path), said.append, lambda: False, CPU, 1)
    assert said[0].step == 6  # the checkpoint was of step 5
    assert result.sha256 == unbroken[0].sha256


def test_a_fold_that_is_done_is_not_trained_again_and_other_settings_are_refused(
    tmp_path: Path, pairs: tuple[TrainingPair, ...], unbroken: Whole
) -> None:
    result, said, folder = unbroken
    assert said[-1].step == 12
    assert read_result(str(folder), 0) == result
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    again, silent = train(pairs, tmp_path)
    assert again == result
    assert silent == []
    other = SETTINGS.model_copy(update={"loss": "focal"})
    with pytest.raises(RefusedError, match="was trained with other settings or images; choose another --out"):
        train(pairs, tmp_path, other)
    Path(fold_folder(str(tmp_path), 0), "result.json").unlink()
    with pytest.raises(RefusedError, match="was trained with other settings or images; choose another --out"):
        train(pairs, tmp_path, other)


def test_a_member_with_flows_loads_as_any_other_and_says_what_was_validated(
    tmp_path: Path, pairs: tuple[TrainingPair, ...]
) -> None:
    pytest.importorskip("cellpose")
    settings = SETTINGS.model_copy(update={"flows": True, "weights_dtype": "float16", "frozen_share": 0.0})
    result, said = train(pairs, tmp_path, settings)
    assert result.begun_with == "random"
    assert result.ap50 is not None
    assert said[-1].dice is not None
    assert set(result.train).isdisjoint(result.validation)
    state = load_file(tmp_path / "member-0.safetensors")
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float16}
    spec = ensemble_spec("test", settings, [result], About())
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True)))
    ensemble = read_ensemble(str(tmp_path))
    member = ensemble.load_member(0, CPU)
    both = total = 0
    for pair in pairs:
        if pair.group in result.validation:
            image, label = load_pair(pair)
            tiles = torch.from_numpy(normalised(image, settings.normalisation))[None]
            with torch.inference_mode():  # 64 x 96: mirrored at the right
                outputs = member(torch.nn.functional.pad(tiles, (0, 16, 0, 0), mode="reflect"))[0, :, :, :80]
            found = outputs[:2].argmax(0).numpy() == 1
            both += np.count_nonzero(found & (label > 0))
            total += np.count_nonzero(found) + np.count_nonzero(label)
    assert outputs.shape[0] == 4
    assert result.dice["object"] == pytest.approx(2 * both / total, abs=1e-6)


def test_training_learns(tmp_path: Path, pairs: tuple[TrainingPair, ...]) -> None:
    settings = SETTINGS.model_copy(update={"steps": 80, "validate_every": 40, "frozen_share": None, "batch": 4})
    result, said = train(pairs, tmp_path, settings)
    assert said[-1].loss < 0.6 * said[0].loss
    assert result.mean_dice > 0.6
    assert result.begun_with == "random"


def test_a_learning_rate_is_found_and_kept_over_a_stop(tmp_path: Path, pairs: tuple[TrainingPair, ...]) -> None:
    settings = SETTINGS.model_copy(update={"learning_rate": "find", "steps": 6})
    whole, _ = train(pairs, tmp_path / "whole", settings)
    resumed, _ = train(pairs, tmp_path / "resumed", settings, stop_at=2)
    assert resumed.learning_rate == whole.learning_rate > 0
    assert resumed.sha256 == whole.sha256


def test_the_encoder_rests_in_the_frozen_cycle_only_where_it_knows_something() -> None:
    settings = SETTINGS.model_copy(update={"frozen_share": None, "steps": 100})
    assert [(c.start, c.stop, c.frozen) for c in cycles(settings, False, 1e-3)] == [(0, 100, False)]
    frozen, full = cycles(settings, True, 1e-3)
    assert (frozen.stop, frozen.frozen, full.start, full.stop, full.frozen) == (20, True, 20, 100, False)
    assert full.learning_rate == frozen.learning_rate / 2
    network, _ = new_network(settings, 0)
    freeze_encoder(network, True)
    rests = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert rests
    assert all(name.startswith("encoder.") for name in rests)
    freeze_encoder(network, False)
    assert all(p.requires_grad for p in network.parameters())


def test_imagenet_weights_that_cannot_be_reached_are_random_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import segmentation_models_pytorch as smp

    def unreachable(*args: object, **kwargs: object) -> torch.nn.Module:
        raise ConnectionError("no route to host")

    said: list[str] = []
    monkeypatch.setattr(smp, "create_model", unreachable)
    # Not by a handler: libraries that set up logging for themselves disable loggers that are there already.
    logger = logging.getLogger("chorus.pipeline.training.fitting.networks")
    monkeypatch.setattr(logger, "warning", lambda text, *values: said.append(text % values))
    network, begun_with = new_network(SETTINGS.model_copy(update={"imagenet": True}), 7)
    assert begun_with == "random"
    assert len(said) == 1
    assert "ImageNet weights cannot be had (no route to host); it begins with random ones" in said[0]
    same, _ = new_network(SETTINGS, 7)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))


def test_imagenet_weights_are_the_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    import segmentation_models_pytorch as smp

    known, _ = new_network(SETTINGS, 99)
    monkeypatch.setattr(smp, "create_model", lambda *args, **kwargs: known)
    network, begun_with = new_network(SETTINGS.model_copy(update={"imagenet": True}), 7)
    assert begun_with == "imagenet"
    random, _ = new_network(SETTINGS, 7)
    for name, value in network.state_dict().items():
        source = known if name.startswith("encoder.") else random
        assert torch.equal(value, source.state_dict()[name])


def test_a_member_is_fine_tuned_and_gets_a_new_head_for_other_classes(tmp_path: Path) -> None:
    import hashlib

    module, _ = new_network(SETTINGS, 3)
    path = tmp_path / "m.safetensors"
    path.write_bytes(networks.member_weights(module, "float32"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    start = SmpMember(kind="smp", **ARCHITECTURE, options=OPTIONS, weights=str(path), sha256=digest)
    same, begun_with = new_network(TrainSettings(channels=["dna"], start=start), 0)
    assert begun_with == str(path)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), module.parameters(), strict=True))
    three = TrainSettings(channels=["dna"], start=start, labels="classes", classes=["background", "a", "b"])
    other, _ = new_network(three, 0)
    assert torch.equal(next(other.parameters()), next(module.parameters()))
    assert other.state_dict()["segmentation_head.0.weight"].shape[0] == 3
    with pytest.raises(RefusedError, match=r"do not fit .* with 2 input channels"):
        new_network(TrainSettings(channels=["dna", "actin"], start=start), 0)


def test_an_image_larger_than_a_block_is_validated_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from chorus.pipeline.training.fitting import validation

    network = torch.nn.Conv2d(1, 2, 65, padding=32, padding_mode="reflect").to(memory_format=torch.channels_last)
    image = np.random.default_rng(0).normal(size=(1, 160, 224)).astype(np.float32)
    with evaluating(network):
        whole = predicted(network, image, SETTINGS, CPU)
        monkeypatch.setattr(validation, "_BLOCK", 64)
        blocks = predicted(network, image, SETTINGS, CPU)
    np.testing.assert_allclose(blocks, whole, atol=1e-5)
