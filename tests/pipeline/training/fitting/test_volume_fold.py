"""A fold of volumes is like one of planes: it resumes with the same bits, and its member is one like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from chorus.pipeline.core.provenance import About
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import CutShortError
from chorus.pipeline.training.data.pairs import TrainingPair, load_pair
from chorus.pipeline.training.evaluation import Evaluator
from chorus.pipeline.training.fitting.fold import train_fold
from chorus.pipeline.training.fitting.networks import new_network
from chorus.pipeline.training.fitting.validation import dice_scores, evaluating, predicted, prepare_validation
from chorus.pipeline.training.records import FoldResult
from chorus.pipeline.training.settings import TrainSettings
from chorus.pipeline.training.summary import ensemble_spec, training_summary
from tests.support.training_volumes import SHAPE, SMALL, write_pairs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingPair, ...]:
    """Four small volumes."""
    return write_pairs(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, pairs: tuple[TrainingPair, ...]) -> tuple[FoldResult, Path]:
    """Fold 0, trained in one go."""
    folder = tmp_path_factory.mktemp("whole")
    return train_fold(SMALL, pairs, 0, str(folder), lambda _: None, lambda: False, CPU, 1), folder


@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_fold_of_volumes_that_was_stopped_ends_with_the_same_bits(
    tmp_path: Path, pairs: tuple[TrainingPair, ...], unbroken: tuple[FoldResult, Path], stop_at: int
) -> None:
    asked = iter(range(SMALL.steps))
    with pytest.raises(CutShortError, match=f"stopped at step {stop_at} of {SMALL.steps}"):
        train_fold(SMALL, pairs, 0, str(tmp_path), lambda _: None, lambda: next(asked) >= stop_at, CPU, 1)
    resumed = train_fold(SMALL, pairs, 0, str(tmp_path), lambda _: None, lambda: False, CPU, 1)
    whole, _ = unbroken
    assert (resumed.sha256, resumed.dice, resumed.ap50) == (whole.sha256, whole.dice, whole.ap50)


def test_a_trained_member_of_volumes_loads_and_answers_what_was_validated(
    pairs: tuple[TrainingPair, ...], unbroken: tuple[FoldResult, Path]
) -> None:
    result, folder = unbroken
    assert result.begun_with == "random"
    assert result.ap50 is not None
    stored = load_file(folder / result.weights)
    summary = training_summary(pairs, SMALL, [result])
    spec = ensemble_spec("test", SMALL, [result], About(training=summary))
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True)))
    ensemble = read_ensemble(str(folder))
    assert ensemble.spec.tile_shape == (8, 16, 16)
    assert ensemble.spec.input.pixel_sizes_um == (0.5, 0.2, 0.2)
    assert [role.name for role in ensemble.outputs.roles] == ["classes", "boundary"]
    network, _ = new_network(SMALL, 0)
    assert sum(value.numel() for value in stored.values()) == sum(p.numel() for p in network.parameters())
    member = ensemble.load_member(0, CPU)
    network = member.module
    validation = [prepare_validation(pair, SMALL) for pair in pairs if pair.group in result.validation]
    assert dice_scores(network, validation, SMALL, CPU) == result.dice
    network.eval()
    with torch.inference_mode():
        tile = torch.from_numpy(validation[0].image[None, :, :8, :16, :16])
        torch.testing.assert_close(member(tile), network(tile))
    scores = Evaluator(ensemble, CPU).scores("one", *load_pair(pairs[0]))
    assert {(score.predictor, score.augmented) for score in scores} == {
        (name, augmented) for name in ("member-0", "ensemble") for augmented in (True, False)
    }
    assert all(score.ap50 is not None for score in scores)


def test_training_of_volumes_learns(tmp_path: Path, pairs: tuple[TrainingPair, ...]) -> None:
    settings = SMALL.model_copy(update={"steps": 60, "validate_every": 60})
    result = train_fold(settings, pairs, 0, str(tmp_path), lambda _: None, lambda: False, CPU, 1)
    assert result.mean_dice > 0.8


def test_boundaries_are_learnt_of_planes_as_well(tmp_path: Path, pairs: tuple[TrainingPair, ...]) -> None:
    planes = [
        TrainingPair(f"{p.name}:z5", p.image, p.label, p.group, p.kind, p.channels, SHAPE[1:], z=5) for p in pairs
    ]
    settings = TrainSettings(
        boundaries=True, imagenet=False, folds=2, steps=4, batch=2, patch=32, validate_every=4, channels=["dna"]
    )
    result = train_fold(settings, planes, 0, str(tmp_path), lambda _: None, lambda: False, CPU, 1)
    assert result.ap50 is not None
    spec = ensemble_spec("test", settings, [result], About())
    assert [entry.role for entry in spec.outputs] == ["classes", "boundary"]


def test_a_volume_is_validated_in_blocks_of_the_size_of_a_patch(pairs: tuple[TrainingPair, ...]) -> None:
    image = prepare_validation(pairs[0], SMALL).image
    seen = []

    class Recording(torch.nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(tiles.shape[2:]))
            return tiles.expand(-1, 3, -1, -1, -1)

    network = Recording()
    with evaluating(network):
        answer = predicted(network, image, SMALL, CPU)
    assert set(seen) == {SMALL.patch_shape}
    np.testing.assert_array_equal(answer, np.repeat(image, 3, axis=0))
