"""Engine and scores against the independent float64 reference: real networks, every activation, awkward shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from chorus.pipeline.core.augmentation import D4, FLIPS
from chorus.pipeline.core.class_labels import class_masks, predicted_labels
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.outputs import CLASSES
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.core.sample_sums import SampleSums
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.inference.engine import Engine, PlaneWindow
from chorus.pipeline.members.contract import ModuleMember
from chorus.pipeline.scores.image_scores import image_scores, region_sums
from tests.support import reference
from tests.support.engines import outputs_of, settings_of
from tests.support.making import network
from tests.support.reference import ReferencePosterior, reference_posterior

CPU = torch.device("cpu")
TILE, PATCH = 32, 16
CLOSE = 1e-3
"""A label may differ where a probability lies this near to a tie."""


class Normalised(torch.nn.Module):
    """A network whose answers are probabilities, for ensembles with activation none."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).softmax(dim=1)


def networks(members: int, outputs: int, channels: int, activation: str) -> list[torch.nn.Module]:
    made = [network(seed, channels=channels, outputs=outputs) for seed in range(members)]
    return [Normalised(module) for module in made] if activation == "none" else made


def image_of(shape: tuple[int, int], channels: int = 1) -> NDArray[np.float32]:
    """Blurred noise of about unit variance, (channels, y, x)."""
    noise = torch.randn((1, channels, shape[0] // 3 + 2, shape[1] // 3 + 2), generator=torch.Generator().manual_seed(7))
    smooth = torch.nn.functional.interpolate(noise, size=shape, mode="bilinear")
    return (smooth[0] * 1.5).numpy()


def computed(
    modules: Sequence[torch.nn.Module],
    image: NDArray[np.float32],
    activation: str,
    augmentations: Sequence[str],
    *,
    classes: int,
    batch: int,
    overlap: float = 0.5,
) -> Posterior:
    multilabel = activation == "sigmoid" and classes > 2
    settings = settings_of(
        activation=activation,  # type: ignore[arg-type]
        multilabel=multilabel,
        classes=classes - multilabel,
        tile=TILE,
        augmentations=tuple(augmentations),
        batch=batch,
    )
    whole = Window.of(0, image.shape[1], 0, image.shape[2])
    plane = PlaneWindow(image, whole, Grid.make(image.shape[1:], TILE, overlap))
    return Engine([ModuleMember(module, CPU) for module in modules], settings, CPU).posterior(plane, whole)


def expected(
    modules: Sequence[torch.nn.Module],
    image: NDArray[np.float32],
    activation: str,
    augmentations: Sequence[str],
    overlap: float = 0.5,
) -> ReferencePosterior:
    def member(module: torch.nn.Module) -> reference.Member:
        def call(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
            with torch.inference_mode():
                answer: NDArray[np.float64] = module(torch.from_numpy(pixels)[None])[0].numpy()
            return answer

        return call

    doubled = [member(module.double()) for module in modules]
    return reference_posterior(image.astype(np.float64), doubled, TILE, overlap, augmentations, activation)


def assert_same(found: Posterior, wanted: ReferencePosterior, classes: int, *, multilabel: bool) -> None:
    for name in ("probability", "epistemic", "aleatoric", "uncertainty"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-4, rtol=0, err_msg=name)
    certain = wanted.margin > CLOSE
    assert certain.mean() > 0.5
    assert np.array_equal(found.labels[certain], wanted.labels[certain])
    assert_same_scores(found, wanted, classes, multilabel=multilabel)


def assert_same_scores(found: Posterior, wanted: ReferencePosterior, classes: int, *, multilabel: bool) -> None:
    """Labels agree but at ties, so the scores must be those of the reference's maps over the labels found."""
    names = [f"class-{k}" for k in range(1, classes)]
    scores = image_scores([region_sums(found, classes, multilabel=multilabel, patch=PATCH)], names)
    foreground = found.masks != 0
    if foreground.any():
        assert scores["uncertainty"] == pytest.approx(wanted.uncertainty[foreground].mean(), abs=1e-5)
        assert scores["epistemic"] == pytest.approx(wanted.epistemic[foreground].mean(), abs=1e-5)
        assert scores["aleatoric"] == pytest.approx(wanted.aleatoric[foreground].mean(), abs=1e-5)
        assert scores["entropy"] == pytest.approx(wanted.entropy[foreground].mean(), abs=1e-4)
        worst = reference.patch_maximum(wanted.uncertainty, PATCH)
        assert scores["patch_uncertainty_max"] == (None if worst is None else pytest.approx(worst, abs=1e-5))
    if np.array_equal(foreground, wanted.masks.any(axis=0)):
        assert scores["uncertainty"] == (None if wanted.U is None else pytest.approx(wanted.U, abs=1e-5))

    bits = [(found.masks >> k) & 1 == 1 if multilabel else found.masks == k + 1 for k in range(classes - 1)]
    areas = [scores[f"area_fraction:{name}"] for name in names]
    assert areas == pytest.approx([mask.mean() for mask in bits], abs=1e-12)
    np.testing.assert_allclose(areas, wanted.area_fraction, atol=5e-3)
    for k, name in enumerate(names):
        dice, minimum = scores[f"pairwise_dice:{name}"], scores[f"pairwise_dice_min:{name}"]
        own = found.member_masks
        masks = (own >> k) & 1 == 1 if multilabel else own == k + 1
        assert (masks != wanted.member_masks[:, k]).mean() < 2e-3
        by_hand = reference.pairwise_dices(masks)
        assert dice == (pytest.approx(np.mean(by_hand), abs=1e-12) if by_hand else None)
        assert minimum == (min(by_hand) if by_hand else None)
        if np.array_equal(masks, wanted.member_masks[:, k]):
            assert dice == (
                None if wanted.pairwise_dice[k] is None else pytest.approx(wanted.pairwise_dice[k], abs=1e-12)
            )


@pytest.mark.parametrize(
    ("activation", "classes", "channels"),
    [("softmax", 2, 1), ("softmax", 4, 2), ("sigmoid", 2, 1), ("sigmoid", 4, 1), ("none", 3, 1)],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_engine_agrees_with_the_reference(activation: str, classes: int, channels: int, batch: int) -> None:
    modules = networks(3, classes - (activation == "sigmoid"), channels, activation)
    image = image_of((45, 39), channels)
    found = computed(modules, image, activation, FLIPS, classes=classes, batch=batch)
    wanted = expected(modules, image, activation, FLIPS)
    assert_same(found, wanted, classes, multilabel=activation == "sigmoid" and classes > 2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (37, 1), (7, 5), (32, 32), (33, 64)])
def test_every_shape_of_image_agrees_with_the_reference(shape: tuple[int, int]) -> None:
    modules = networks(2, 2, 1, "softmax")
    image = image_of(shape)
    found = computed(modules, image, "softmax", FLIPS, classes=2, batch=1)
    wanted = expected(modules, image, "softmax", FLIPS)
    for name in ("probability", "epistemic", "aleatoric", "uncertainty"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-4, rtol=0, err_msg=name)
    certain = wanted.margin > CLOSE
    assert np.array_equal(found.labels[certain], wanted.labels[certain])
    if certain.all():
        assert_same_scores(found, wanted, 2, multilabel=False)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.75])
def test_all_eight_symmetries_and_other_overlaps_agree_with_the_reference(overlap: float) -> None:
    modules = networks(2, 3, 1, "softmax")
    image = image_of((20, 25))
    found = computed(modules, image, "softmax", D4, classes=3, batch=2, overlap=overlap)
    assert_same(found, expected(modules, image, "softmax", D4, overlap), 3, multilabel=False)


def test_samples_by_hand_give_the_variances_of_the_paper() -> None:
    # Two samples of the foreground, 0.9 and 0.5: mean 0.7, mean of squares 0.53.
    sums = SampleSums.zeros(outputs_of(2), 1, (1, 1), CPU)
    sums.add_member({CLASSES: torch.tensor([1 - p, p])[None, :, None, None]} for p in (0.9, 0.5))
    background, foreground, epistemic, aleatoric = sums.maps()[0, :, 0, 0].tolist()
    assert (background, foreground) == pytest.approx((0.3, 0.7))
    assert epistemic == pytest.approx(0.53 - 0.49)
    assert aleatoric == pytest.approx(0.7 - 0.53)
    assert epistemic + aleatoric == pytest.approx(0.7 * 0.3)


def test_a_tie_goes_to_the_first_class() -> None:
    p = torch.full((3, 1, 1), 1 / 3)
    assert predicted_labels(p, multilabel=False).item() == 0
    assert predicted_labels(torch.tensor([0.2, 0.4, 0.4])[:, None, None], multilabel=False).item() == 1


def test_a_multilabel_pixel_keeps_every_class_that_reaches_one_half() -> None:
    p = torch.tensor([[0.5, 0.4, 0.6], [0.7, 0.49, 0.6]])[:, None]
    assert predicted_labels(p, multilabel=True).tolist() == [[2, 0, 1]]
    assert class_masks(p, multilabel=True).tolist() == [[3, 0, 3]]
