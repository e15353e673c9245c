"""The reference itself, against cases that a person can compute by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.reference import (
    FORWARD,
    INVERSE,
    circular_variance,
    gaussian_window,
    mirrored,
    patch_maximum,
    reference_features,
    reference_posterior,
    tile_starts,
)

Array = NDArray[np.float64]
D4 = ["identity", "hflip", "vflip", "hvflip", "rot90", "rot270", "transpose", "antitranspose"]


def always(*outputs: float) -> Callable[[Array], Array]:
    """A member that gives every pixel the same outputs."""
    return lambda pixels: np.ones((len(outputs), *pixels.shape[1:])) * np.reshape(outputs, (-1, 1, 1))


def echo(pixels: Array) -> Array:
    """A member whose foreground probability is the pixel itself."""
    return pixels[:1]


def test_two_constant_members_split_the_variance_as_by_hand() -> None:
    found = reference_posterior(np.zeros((1, 5, 7)), [always(0.9), always(0.7)], 4, 0.5, ["identity"], "none")
    np.testing.assert_allclose(found.probability[1], 0.8)
    np.testing.assert_allclose(found.probability[0], 0.2)
    np.testing.assert_allclose(found.epistemic, (0.81 + 0.49) / 2 - 0.64)
    np.testing.assert_allclose(found.aleatoric, (0.09 + 0.21) / 2)
    np.testing.assert_allclose(found.uncertainty, 0.16)
    np.testing.assert_allclose(found.margin, 0.6)
    assert (found.labels == 1).all()
    assert pytest.approx(0.16) == found.U
    assert found.mean_epistemic == pytest.approx(0.01)
    assert found.mean_aleatoric == pytest.approx(0.15)
    assert found.mean_entropy == pytest.approx(-0.8 * math.log2(0.8) - 0.2 * math.log2(0.2))
    assert found.pairwise_dice == [1.0]
    assert found.area_fraction == [1.0]


def test_softmax_of_three_classes_as_by_hand() -> None:
    member = always(math.log(1), math.log(2), math.log(5))
    found = reference_posterior(np.zeros((1, 3, 3)), [member], 2, 0, ["identity"], "softmax")
    np.testing.assert_allclose(found.probability[:, 1, 1], [1 / 8, 2 / 8, 5 / 8])
    np.testing.assert_allclose(found.aleatoric, (7 + 12 + 15) / 64 / 3)
    np.testing.assert_allclose(found.epistemic, 0, atol=1e-15)
    assert (found.labels == 2).all()
    assert found.mean_entropy == pytest.approx((1 / 8 * 3 + 2 / 8 * 2 + 5 / 8 * math.log2(8 / 5)) / math.log2(3))
    assert found.area_fraction == [0.0, 1.0]
    assert found.pairwise_dice == [None, None]


def test_no_foreground_has_no_mean_and_empty_masks_agree() -> None:
    found = reference_posterior(np.zeros((1, 4, 4)), [always(0.1), always(0.2)], 4, 0.5, ["identity"], "none")
    assert (found.U, found.mean_epistemic, found.mean_aleatoric, found.mean_entropy) == (None, None, None, None)
    assert found.pairwise_dice == [1.0]


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 13), (17, 6)])
@pytest.mark.parametrize(("tile", "overlap"), [(8, 0.5), (6, 0.25), (5, 0.4), (4, 0.0), (32, 0.5)])
def test_a_pointwise_member_gives_the_pixels_back_under_every_augmentation(
    shape: tuple[int, int], tile: int, overlap: float
) -> None:
    image = np.random.default_rng(0).random((1, *shape))
    found = reference_posterior(image, [echo], tile, overlap, [*D4, "rot180"], "none")
    np.testing.assert_allclose(found.probability[1], image[0])
    np.testing.assert_allclose(found.uncertainty, image[0] * (1 - image[0]))
    np.testing.assert_allclose(found.epistemic + found.aleatoric, found.uncertainty)
    assert np.array_equal(found.labels, image[0] > 0.5)


def test_two_overlapping_tiles_are_weighted_by_the_gaussian() -> None:
    # Tiles of 4 on a length of 6 start at 0 and 2; each answers with the value of its pixel 2: columns 2 and 4.
    image = np.tile([0.0, 0.0, 0.2, 0.0, 0.6, 0.0], (4, 1))[None]

    def third_column(pixels: Array) -> Array:
        return np.ones((1, 4, 4)) * pixels[0, 0, 2]

    found = reference_posterior(image, [third_column], 4, 0.5, ["identity"], "none").probability[1]
    near, far = math.exp(-0.5), math.exp(-4.5)  # 0.5 and 1.5 pixels off the centre, sigma 0.5
    both = [(0.2 * near + 0.6 * far) / (near + far), (0.2 * far + 0.6 * near) / (near + far)]
    expected = [0.2, 0.2, *both, 0.6, 0.6]
    np.testing.assert_allclose(found, np.tile(expected, (4, 1)))


def test_flipped_answers_are_flipped_back_before_the_mean() -> None:
    answer = np.array([[[0.9, 0.6], [0.3, 0.1]]])
    image = np.zeros((1, 2, 2))

    def mean_of(*augmentations: str) -> list[list[float]]:
        found = reference_posterior(image, [lambda pixels: answer], 2, 0, augmentations, "none")
        return np.round(found.probability[1], 12).tolist()

    assert mean_of("hflip") == [[0.6, 0.9], [0.1, 0.3]]
    assert mean_of("vflip") == [[0.3, 0.1], [0.9, 0.6]]
    assert mean_of("hvflip") == mean_of("rot180") == [[0.1, 0.3], [0.6, 0.9]]
    assert mean_of("transpose") == [[0.9, 0.3], [0.6, 0.1]]
    assert mean_of("antitranspose") == [[0.1, 0.6], [0.3, 0.9]]
    # The network saw the tile turned counter-clockwise, so that its answer is turned back clockwise.
    assert mean_of("rot90") == [[0.3, 0.9], [0.1, 0.6]]
    assert mean_of("rot270") == [[0.6, 0.1], [0.9, 0.3]]
    assert mean_of("identity", "hflip") == [[0.75, 0.75], [0.2, 0.2]]


def test_augmentations_are_undone_by_their_inverse() -> None:
    pixels = np.random.default_rng(0).random((2, 3, 3))
    for name, forward in FORWARD.items():
        assert np.array_equal(FORWARD[INVERSE[name]](forward(pixels)), pixels)
    assert len({forward(pixels).tobytes() for name, forward in FORWARD.items() if name != "rot180"}) == 8


def test_multilabel_members_decide_each_class_for_itself() -> None:
    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    members = [always(logit(0.9), logit(0.8), logit(0.1)), always(logit(0.7), logit(0.4), logit(0.1))]
    found = reference_posterior(np.zeros((1, 3, 3)), members, 2, 0.5, ["identity"], "sigmoid")
    np.testing.assert_allclose(found.probability[:, 0, 0], [0.8, 0.6, 0.1])
    np.testing.assert_allclose(found.uncertainty, (0.16 + 0.24 + 0.09) / 3)
    np.testing.assert_allclose(found.epistemic, (0.01 + 0.04 + 0) / 3)
    np.testing.assert_allclose(found.margin, 0.2)
    assert (found.labels == 1).all()
    assert found.masks[:, 0, 0].tolist() == [True, True, False]
    assert found.area_fraction == [1.0, 1.0, 0.0]
    assert found.pairwise_dice == [1.0, 0.0, 1.0]
    bits = [-p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in (0.8, 0.6, 0.1)]
    assert found.mean_entropy == pytest.approx(sum(bits) / 3)


def test_a_single_sigmoid_output_is_the_foreground_of_two_classes() -> None:
    found = reference_posterior(np.zeros((1, 2, 2)), [always(math.log(3))], 2, 0, ["identity"], "sigmoid")
    np.testing.assert_allclose(found.probability[:, 0, 0], [0.25, 0.75])
    assert pytest.approx(0.25 * 0.75) == found.U


def test_pairwise_dice_is_the_mean_over_pairs() -> None:
    image = np.array([[[1.0, 1.0, 0.0, 0.0]]])
    left, right = np.array([[[1, 1, 0, 0]]]), np.array([[[0, 1, 1, 1]]])
    members = [lambda pixels, m=mask: np.tile(m, (1, 4, 1)).astype(float) for mask in (left, left, right)]
    found = reference_posterior(image, members, 4, 0, ["identity"], "none")
    assert found.member_labels[:, 0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1]]
    assert found.pairwise_dice == [pytest.approx((1 + 2 * (2 * 1 / 5)) / 3)]
    assert found.minimum_pairwise_dice == [2 * 1 / 5]
    assert found.labels[0].tolist() == [1, 1, 0, 0]


def test_the_worst_patch_as_by_hand() -> None:
    values = np.zeros((5, 7))
    values[:4, 4:] = 1.5  # a patch of 4 x 4 that the border cuts to 4 x 3
    values[4, 0] = 100  # one of 1 x 4, which is a quarter
    values[4, 4:] = 1000  # one of 1 x 3, which is less
    assert patch_maximum(values, 4) == 25
    assert patch_maximum(values[:4], 4) == 1.5
    assert patch_maximum(values[4:, 4:], 4) is None


def test_features_are_means_over_positions_and_tiles_of_the_view_that_is_asked_for() -> None:
    def first_row(pixels: Array) -> Array:
        return pixels[:, :1]

    image = np.arange(4.0).reshape(1, 2, 2)
    # Tiles of 2 without overlap: one tile, the image itself.
    assert reference_features(image, [first_row, lambda pixels: pixels], 2, 0).tolist() == [0.5, 1.5]
    assert reference_features(image, [first_row], 2, 0, "vflip").tolist() == [2.5]
    assert reference_features(np.hstack([image, image + 4]), [first_row], 2, 0).tolist() == [(0.5 + 4.5) / 2]


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "expected"),
    [(10, 4, 0.5, [0, 2, 4, 6]), (10, 4, 0, [0, 4, 8]), (2, 8, 0.5, [0]), (8, 8, 0.5, [0]), (9, 8, 0.5, [0, 4])],
)
def test_tile_starts_as_by_hand(length: int, tile: int, overlap: float, expected: list[int]) -> None:
    assert tile_starts(length, tile, overlap) == expected


def test_mirroring_as_by_hand() -> None:
    assert [mirrored(i, 3) for i in range(-4, 8)] == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    assert [mirrored(i, 1) for i in (-3, 0, 5)] == [0, 0, 0]


def test_window_is_a_symmetric_gaussian_with_maximum_one() -> None:
    window = gaussian_window(4)
    line = [math.exp(-4), 1, 1, math.exp(-4)]  # relative to exp(-0.5) of the two middle pixels
    np.testing.assert_allclose(window, np.outer(line, line))
    assert gaussian_window(1).tolist() == [[1.0]]
    assert gaussian_window(9)[4, 4] == 1


def test_directions_at_right_angles_have_the_circular_variance_by_hand() -> None:
    down, right, none = (np.array(vector).reshape(2, 1, 1) for vector in ([3.0, 0.0], [0.0, 0.2], [0.0, math.nan]))
    assert circular_variance([down, right])[0, 0] == pytest.approx(1 - math.sqrt(0.5))
    assert circular_variance([down, down, none])[0, 0] == pytest.approx(1 / 3)
