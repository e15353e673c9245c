"""What microscopes do to images: each effect has the size that physics gives it, in any number of axes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scipy.ndimage import gaussian_filter

from chorus.pipeline.training.data.augment import augmented
from chorus.pipeline.training.data.imaging import BRIGHTEST, Imaging, blurred, cut_out, shaded, with_photon_noise
from chorus.pipeline.training.data.pairs import find_pairs
from chorus.pipeline.training.data.patches import PatchSource, prepare
from chorus.pipeline.training.settings import Augment, TrainSettings
from tests.support.making import pixels

STILL = {"rotation": 0.0, "scale": (1.0, 1.0), "gamma": 1.0, "contrast": 1.0, "noise": 0.0}


def of(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("shape", [(40, 33), (20, 24, 19)])
def test_defocus_is_a_gaussian_blur_and_leaves_the_others_alone(shape: tuple[int, ...]) -> None:
    patches = torch.from_numpy(np.random.default_rng(0).random((2, 3, *shape), np.float32))
    result = blurred(patches, of(0, 2.0))
    assert torch.equal(result[0], patches[0])
    expected = gaussian_filter(patches[1].numpy(), (0, *[2.0] * len(shape)), mode="mirror", truncate=3)
    np.testing.assert_allclose(result[1].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 33), (9, 24, 19)])
def test_uneven_light_is_darkest_by_its_share_and_never_brighter(shape: tuple[int, ...]) -> None:
    light = shaded(torch.ones(3, 2, *shape), of(0, 0.3, 0.8), generator())
    assert torch.equal(light[0], torch.ones(2, *shape))
    torch.testing.assert_close(light.flatten(1).amin(1), torch.tensor([1, 0.7, 0.2]))
    assert light.max() <= 1
    assert torch.equal(light[:, 0], light[:, 1])
    assert torch.gradient(light[2, 0], dim=0)[0].abs().max() < 0.8 * 4 / shape[0]


def test_photon_noise_has_the_variance_of_counts_and_nothing_below_the_range_changes() -> None:
    levels = torch.tensor([-0.2, 0.0, 0.25, 1.0]).reshape(1, 4, 1, 1).repeat(2, 1, 200, 200)
    noisy = with_photon_noise(levels, of(0, 50), generator())
    assert torch.equal(noisy[0], levels[0])
    assert torch.equal(noisy[1, :2], levels[1, :2])
    torch.testing.assert_close(noisy[1].mean((1, 2)), levels[1, :, 0, 0], atol=0.005, rtol=0)
    torch.testing.assert_close(noisy[1].var((1, 2)), levels[1, :, 0, 0].clamp(min=0) / 50, atol=0.001, rtol=0)


@pytest.mark.parametrize("shape", [(40, 40), (20, 20, 20)])
def test_a_hole_is_a_rectangle_at_the_lower_end_of_the_range(shape: tuple[int, ...]) -> None:
    result = cut_out(torch.ones(2, 2, *shape), of(0, 0.25), generator())
    assert result[0].min() == 1
    where = (result[1, 0] == 0).nonzero()
    assert torch.equal(where.amax(0) - where.amin(0) + 1, torch.tensor(shape) // 4)
    assert len(where) == np.prod(np.array(shape) // 4)


def test_half_of_the_patches_get_each_effect_within_its_limits() -> None:
    augment = Augment(blur=2.5, shading=0.5, photons=20, offset=0.2, cutout=0.1)
    drawn = Imaging.drawn(np.random.default_rng(0), augment, 2000)
    assert drawn is not None
    for values, largest in (
        (drawn.blur, 2.5),
        (drawn.shading, 0.5),
        (drawn.photons, 20 * BRIGHTEST),
        (drawn.cutout, 0.1),
    ):
        assert abs(np.mean(values > 0) - 0.5) < 4 * 0.5 / np.sqrt(2000)
        assert 0.9 * largest < values.max() <= largest
    assert drawn.photons[drawn.photons > 0].min() >= 20
    assert -0.2 <= drawn.offset.min() < -0.19 < 0.19 < drawn.offset.max() <= 0.2
    assert Imaging.drawn(np.random.default_rng(0), Augment(), 8) is None


def source(folder: Path, augment: Augment) -> PatchSource:
    label = np.zeros((80, 80), np.uint8)
    label[20:50, 30:60] = 1
    for part, data in (("images", pixels(label.shape)), ("labels", label)):
        (folder / part).mkdir()
        tifffile.imwrite(folder / part / "one.tif", data)
    pair = find_pairs(str(folder / "images"), str(folder / "labels"), ["dna"]).pairs[0]
    settings = TrainSettings(patch=32, batch=4, augment=augment, channels=["dna"])
    return PatchSource([prepare(pair, settings)], settings)


def test_these_effects_change_no_number_that_recipes_without_them_draw(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    without = source(tmp_path / "a", Augment()).draw((1, 2, 3))
    with_all = source(tmp_path / "b", Augment(blur=2, shading=0.5, photons=20, offset=0.2, cutout=0.2)).draw((1, 2, 3))
    assert without.imaging is None
    assert with_all.imaging is not None
    for name in ("images", "targets", "matrix", "low", "high", "gamma", "contrast", "noise", "bent", "seed"):
        np.testing.assert_array_equal(getattr(without, name), getattr(with_all, name))


def test_a_patch_with_every_effect_keeps_its_labels_and_depends_on_its_seed_alone(tmp_path: Path) -> None:
    effects = Augment(**STILL, blur=2, shading=0.5, photons=20, offset=0.2, cutout=0.2)
    one = source(tmp_path, effects)
    draw = one.draw((1, 2, 3))
    first, again = (augmented(one.draw((1, 2, 3)), (32, 32), torch.device("cpu")) for _ in range(2))
    assert torch.equal(first.images, again.images)
    plain = augmented(replace(draw, imaging=None), (32, 32), torch.device("cpu"))
    assert torch.equal(first.classes, plain.classes)
    assert not torch.equal(first.images, plain.images)
