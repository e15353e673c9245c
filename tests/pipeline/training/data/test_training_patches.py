"""Patches: classes are equally likely, and flows turn with the image as if they were computed anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scipy.ndimage import affine_transform

from chorus.pipeline.core import outputs
from chorus.pipeline.core.augmentation import AUGMENTATIONS
from chorus.pipeline.training.data.augment import Batch, augmented
from chorus.pipeline.training.data.pairs import TrainingPair, find_pairs
from chorus.pipeline.training.data.patches import Draw, PatchSource, prepare, window_shape
from chorus.pipeline.training.fitting.finder import find_learning_rate, suggested
from chorus.pipeline.training.fitting.losses import new_loss
from chorus.pipeline.training.settings import Augment, TrainSettings
from tests.support.making import pixels

CPU = torch.device("cpu")
STILL = Augment(rotation=0, scale=(1, 1), gamma=1, contrast=1, noise=0)


def ellipses(size: int) -> np.ndarray:
    """Ellipses that stand apart, numbered: their flows have every direction."""
    y, x = np.mgrid[:size, :size]
    result = np.zeros((size, size), np.uint16)
    for number, (cy, cx, a, b) in enumerate([(22, 25, 13, 8), (60, 40, 9, 15), (35, 70, 14, 11), (78, 80, 8, 10)], 1):
        result[((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 <= 1] = number
    return result


def write_pair(folder: Path, label: np.ndarray) -> TrainingPair:
    for part, data in (("images", pixels(label.shape)), ("labels", label)):
        (folder / part).mkdir(exist_ok=True, parents=True)
        tifffile.imwrite(folder / part / "one.tif", data)
    return find_pairs(str(folder / "images"), str(folder / "labels"), ["dna"]).pairs[0]


def drawn(image: np.ndarray, targets: np.ndarray, matrix: np.ndarray) -> Draw:
    """One window with nothing but a change of place."""
    one = np.ones(1, np.float32)
    zeros = np.zeros((1, 1), np.float32)
    return Draw(
        image[None, None].astype(np.float32),
        targets[None].astype(np.float32),
        len(targets) == 3,
        False,
        np.asarray(matrix, np.float32)[None],
        zeros,
        zeros + 1,
        one,
        one,
        one * 0,
        one * 0,
        0,
    )


def test_classes_are_equally_likely_at_the_centre_however_rare_they_are(tmp_path: Path) -> None:
    label = np.zeros((200, 150), np.uint8)
    label[5:9, 5:9], label[100:130, 20:90] = 1, 2
    settings = TrainSettings(
        labels="classes", classes=["background", "rare", "common"], patch=32, batch=50, augment=STILL, channels=["dna"]
    )
    source = PatchSource([prepare(write_pair(tmp_path, label), settings)], settings)
    middle = window_shape((32, 32), STILL)[0] // 2
    centres = np.concatenate([source.draw((0, step)).targets[:, 0, middle, middle] for step in range(12)])
    counts = np.bincount(centres.astype(int), minlength=3)
    assert np.all(np.abs(counts - 200) < 4 * np.sqrt(600 * 2 / 9))


def test_a_batch_depends_on_its_seed_alone(tmp_path: Path) -> None:
    settings = TrainSettings(patch=32, batch=4, augment=Augment(elastic=True, clahe=True), flows=True)
    prepared = prepare(write_pair(tmp_path, ellipses(96)), settings)
    first, second = PatchSource([prepared], settings), PatchSource([prepared], settings)
    second.draw((9, 9))
    a, b = (augmented(source.draw((1, 2, 3)), (32, 32), CPU) for source in (first, second))
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.classes, b.classes)
    assert a.flows is not None
    assert b.flows is not None
    assert torch.equal(a.flows, b.flows)
    assert not torch.equal(a.images, augmented(first.draw((1, 2, 4)), (32, 32), CPU).images)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_flips_and_quarter_turns_are_exact_and_those_that_prediction_undoes(name: str) -> None:
    augmentation = AUGMENTATIONS[name]
    window = 36
    image = pixels((window, window)) / 1000
    label = (image > 0.5).astype(np.float32)
    vectors = np.random.default_rng(0).normal(size=(2, window, window))
    vectors *= 5 / np.linalg.norm(vectors, axis=0)
    # where each offset from the centre comes from, by the augmentation itself
    y, x = torch.meshgrid(torch.arange(-1.0, 2.0), torch.arange(-1.0, 2.0), indexing="ij")
    moved = torch.stack([augmentation.forward(y), augmentation.forward(x)]).numpy()
    matrix = np.stack([moved[:, 2, 1], moved[:, 1, 2]], axis=1)
    batch = augmented(drawn(image, np.concatenate([label[None], vectors]), matrix), (32, 32), CPU)
    # window // 2 - 0.5 is the patch's centre
    inside = (..., slice(2, 34), slice(2, 34))
    expected = augmentation.forward(torch.from_numpy(image[inside]))
    torch.testing.assert_close(batch.images[0, 0].double(), expected, atol=1e-4, rtol=0)
    assert torch.equal(batch.classes[0], augmentation.forward(torch.from_numpy(label[inside])).long())
    assert batch.flows is not None
    back = augmentation.restore(batch.flows, outputs.flows_of())[0]
    torch.testing.assert_close(back.double(), torch.from_numpy(vectors[inside]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("angle", "magnification"), [(30, 1.0), (-75, 1.0), (140, 1.2), (10, 0.85)])
def test_flows_of_a_turned_and_scaled_patch_are_those_of_its_turned_labels(angle: float, magnification: float) -> None:
    pytest.importorskip("cellpose")
    from chorus.pipeline.instances.whole_image import flows_of

    label = ellipses(100)
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    matrix = np.array([[c, -s], [s, c]]) / magnification
    targets = np.concatenate([label[None] > 0, flows_of(label)])
    batch = augmented(drawn(pixels(label.shape), targets, matrix), (96, 96), CPU)
    # the same by SciPy on the label image, and flows computed anew
    centre = np.full(2, 47.5)
    turned = affine_transform(label, matrix, np.full(2, 49.5) - matrix @ centre, (96, 96), order=0, mode="nearest")
    assert np.mean(batch.classes[0].numpy() == (turned > 0)) > 0.995
    expected = flows_of(turned)
    assert batch.flows is not None
    found = batch.flows[0].numpy()
    both = (np.linalg.norm(found, axis=0) > 0) & (np.linalg.norm(expected, axis=0) > 0)
    cosine = (found * expected).sum(0)[both] / 25
    assert both.sum() > 500
    assert np.median(cosine) > 0.99
    assert np.mean(cosine > 0.8) > 0.9


def test_flows_beyond_an_edge_are_mirrored_with_the_object(tmp_path: Path) -> None:
    pytest.importorskip("cellpose")
    settings = TrainSettings(patch=64, batch=8, flows=True, augment=STILL, channels=["dna"])
    label = np.zeros((40, 40), np.uint16)
    label[:12, 10:22] = 1
    prepared = prepare(write_pair(tmp_path, label), settings)
    flows = prepared.targets[1:]
    draw = PatchSource([prepared], settings).draw((0,))
    for image, targets in zip(draw.images, draw.targets, strict=True):
        # a row of the window that is the image's first: the row above it is the image's second, mirrored
        rows = [r for r in range(2, 60) if np.array_equal(image[0, r - 1], image[0, r + 1])]
        for row in rows:
            np.testing.assert_array_equal(targets[1, row - 1], -targets[1, row + 1])
            np.testing.assert_array_equal(targets[2, row - 1], targets[2, row + 1])
    assert flows.any()


def test_bent_flows_keep_their_length_and_lie_in_objects(tmp_path: Path) -> None:
    pytest.importorskip("cellpose")
    settings = TrainSettings(patch=96, batch=4, flows=True, augment=Augment(elastic=True), channels=["dna"])
    draw = PatchSource([prepare(write_pair(tmp_path, ellipses(100)), settings)], settings).draw((0,))
    bent = replace(draw, bent=np.ones(4, np.float32))
    batch = augmented(bent, (96, 96), CPU)
    assert batch.flows is not None
    length = batch.flows.norm(dim=1)
    assert torch.all((length < 1e-6) | ((length - 5).abs() < 1e-3))
    assert torch.all(length[batch.classes == 0] == 0)
    straight = augmented(replace(draw, bent=np.zeros(4, np.float32)), (96, 96), CPU)
    assert not torch.equal(straight.classes, batch.classes)


def test_intensities_vary_within_their_limits_and_labels_do_not() -> None:
    image = np.tile(np.linspace(0, 1, 36, dtype=np.float32), (36, 1))
    plain = drawn(image, image[None] > 0.5, np.eye(2))
    one = np.ones(1, np.float32)
    same = augmented(plain, (32, 32), CPU).images[0, 0].numpy()
    brighter = augmented(replace(plain, gamma=one * 2, contrast=one * 1.3), (32, 32), CPU).images[0, 0].numpy()
    np.testing.assert_allclose(brighter, 1.3 * same**2, atol=1e-5)
    noisy = augmented(replace(plain, noise=one * 0.1), (32, 32), CPU).images[0, 0].numpy()
    assert np.std(noisy - same) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("name", ["ce_dice", "focal", "tversky", "lovasz"])
def test_losses_are_small_for_the_truth_and_flows_and_boundaries_add_theirs(name: str) -> None:
    classes = torch.from_numpy((ellipses(96) > 0).astype(np.int64))[None]
    right = 20 * torch.nn.functional.one_hot(classes, 2).permute(0, 3, 1, 2).float() - 10
    flows = torch.randn(1, 2, 96, 96)
    loss = new_loss(name)  # type: ignore[arg-type]
    ridges = (torch.rand(1, 96, 96) > 0.9).float()

    def of(
        outputs: torch.Tensor, flows: torch.Tensor | None = None, ridges: torch.Tensor | None = None
    ) -> torch.Tensor:
        return loss(outputs, Batch(right, classes, flows, ridges))

    assert of(right) < 1e-3
    assert of(-right) > 0.5
    off = of(torch.cat([right, flows + 2], 1), flows)
    torch.testing.assert_close(off - of(right), torch.tensor(2.0), atol=1e-3, rtol=0)
    said = 20 * ridges[:, None] - 10
    assert of(torch.cat([right, flows, said], 1), flows, ridges) < 2e-3
    assert of(torch.cat([right, -said], 1), None, ridges) > 10


def test_the_default_loss_is_cross_entropy_and_dice() -> None:
    torch.manual_seed(0)
    logits, classes = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    probability, truth = logits.softmax(1), torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2)
    both, total = (probability * truth).sum((0, 2, 3)), (probability + truth).sum((0, 2, 3))
    expected = -(probability.log() * truth).sum(1).mean() + (1 - 2 * both / total).mean()
    torch.testing.assert_close(new_loss("ce_dice")(logits, Batch(logits, classes, None, None)), expected)


def test_the_suggested_rate_is_where_the_loss_falls_fastest_but_a_tenth_of_the_best_at_most() -> None:
    rates = np.geomspace(1e-6, 1, 50)
    exponent = np.log10(rates)
    falling = list(1 - 1 / (1 + np.exp(-4 * (exponent + 4))) + np.maximum(0, exponent + 1.5) * 2)
    assert suggested(rates, falling) == pytest.approx(1e-4, rel=0.4)
    late = list(1 - 1 / (1 + np.exp(-20 * (exponent + 2))))
    assert suggested(rates[:40], late[:40]) <= rates[39] / 10 + 1e-12


def test_the_range_test_leaves_the_network_as_it_is_and_is_repeatable() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 1, 1))
    before = {key: value.clone() for key, value in network.state_dict().items()}

    def loss_of(trial: torch.nn.Module, step: int) -> torch.Tensor:
        x = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(step))
        return ((trial(x) - x[:, :, 1:-1, 1:-1]) ** 2).mean()

    first, second = (find_learning_rate(network, loss_of, 0.0) for _ in range(2))
    assert first == second
    assert 1e-6 < first.suggestion < 1
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
