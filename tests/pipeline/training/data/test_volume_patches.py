"""Patches of volumes: images and labels stay aligned, flips are exact, and no axis is treated unlike the others."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chorus.pipeline.training.data.augment import augmented
from chorus.pipeline.training.data.patches import Draw, PatchSource, boundaries_of, prepare, window_shape
from chorus.pipeline.training.settings import Augment
from tests.support.training_volumes import SMALL, blobs, write_pairs

CPU = torch.device("cpu")
PATCH = (6, 12, 12)


def drawn(window: np.ndarray, matrix: np.ndarray, boundaries: np.ndarray | None = None) -> Draw:
    """A window of labels, which are their own image, with nothing but a change of place."""
    one, zeros = np.ones(1, np.float32), np.zeros((1, 1), np.float32)
    maps = [window > 0] if boundaries is None else [window > 0, boundaries]
    return Draw(
        images=(window > 0)[None, None].astype(np.float32),
        targets=np.stack(maps)[None].astype(np.float32),
        flows=False,
        boundaries=boundaries is not None,
        matrix=np.asarray(matrix, np.float32)[None],
        low=zeros,
        high=zeros + 1,
        gamma=one,
        contrast=one,
        noise=one * 0,
        bent=one * 0,
        seed=0,
    )


angles, scales, sides = st.floats(-180, 180), st.floats(0.7, 1.4), st.tuples(*[st.sampled_from([-1, 1])] * 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50), angles, scales, sides)
def test_labels_lie_where_the_image_has_them_for_every_rotation_scale_and_flip(
    seed: int, angle: float, scale: float, side: tuple[int, int, int]
) -> None:
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    matrix = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.diag(side) / scale
    window = window_shape(PATCH, Augment(scale=(0.7, 1.4)))
    batch = augmented(drawn(blobs(window, seed=seed, count=4), matrix), PATCH, CPU)
    image, classes = batch.images[0, 0], batch.classes[0]
    assert image.shape == classes.shape == PATCH
    # linear interpolation of 0 and 1: the nearest voxel has at least an eighth of the weight
    assert torch.all(classes[image > 0.875 + 1e-4] == 1)
    assert torch.all(classes[image < 0.125 - 1e-4] == 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 50), sides)
def test_flips_on_every_axis_are_exact_and_boundaries_go_with_the_labels(seed: int, side: tuple[int, int, int]) -> None:
    window = window_shape(PATCH, Augment(rotation=0, scale=(1, 1)))
    labels = blobs(window, seed=seed, count=5)
    batch = augmented(drawn(labels, np.diag(side), boundaries_of(labels)), PATCH, CPU)
    inside = tuple(
        slice((length - edge) // 2, (length + edge) // 2) for length, edge in zip(window, PATCH, strict=True)
    )
    flipped = [axis for axis in range(3) if side[axis] < 0]
    expected = np.flip(labels, flipped) > 0
    np.testing.assert_array_equal(batch.classes[0].numpy(), expected[_mirrored(inside, window, flipped)])
    assert batch.boundaries is not None
    ridges = boundaries_of(np.flip(labels, flipped))[_mirrored(inside, window, flipped)]
    np.testing.assert_array_equal(batch.boundaries[0].numpy(), ridges)


def _mirrored(inside: tuple[slice, ...], window: tuple[int, ...], flipped: list[int]) -> tuple[slice, ...]:
    """The slices of a patch in the flipped window."""
    return tuple(
        slice(length - part.stop, length - part.start) if axis in flipped else part
        for axis, (part, length) in enumerate(zip(inside, window, strict=True))
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 50), st.sampled_from(list(permutations(range(3)))), scales)
def test_exchanged_axes_give_the_same_patch_with_exchanged_axes(
    seed: int, order: tuple[int, int, int], scale: float
) -> None:
    labels, matrix = blobs((14, 22, 24), seed=seed, count=4), np.diag([1.0, -1.0, 1.0]) / scale
    batch = augmented(drawn(labels, matrix), PATCH, CPU)
    exchanged = augmented(
        drawn(labels.transpose(order), matrix[np.ix_(order, order)]), [PATCH[axis] for axis in order], CPU
    )
    torch.testing.assert_close(exchanged.images[0, 0], batch.images[0, 0].permute(order), atol=1e-4, rtol=0)


def test_a_batch_of_volumes_depends_on_its_seed_alone_and_reaches_all_classes(tmp_path: Path) -> None:
    prepared = [prepare(pair, SMALL) for pair in write_pairs(tmp_path, 2)]
    first, second = PatchSource(prepared, SMALL), PatchSource(prepared, SMALL)
    second.draw((9, 9))
    a, b = (augmented(source.draw((1, 2, 3)), SMALL.patch_shape, CPU) for source in (first, second))
    assert a.images.shape == (2, 1, 8, 16, 16)
    assert a.boundaries is not None
    assert b.boundaries is not None
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.classes, b.classes)
    assert torch.equal(a.boundaries, b.boundaries)
    assert not torch.equal(a.images, augmented(first.draw((1, 2, 4)), SMALL.patch_shape, CPU).images)
    draws = [first.draw((0, step)) for step in range(40)]
    middle = tuple(edge // 2 for edge in draws[0].images.shape[2:])
    centres = np.concatenate([draw.targets[:, 0, *middle] for draw in draws])
    assert abs(centres.mean() - 0.5) < 4 * 0.5 / np.sqrt(80)
    directions = {tuple(np.sign(np.round(draw.matrix[:, 0, 0], 6))) for draw in draws}
    assert len(directions) == 4  # z is flipped in either patch, both or none


def test_boundaries_are_the_pixels_beside_another_object() -> None:
    labels = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 2, 2], [0, 1, 1, 2, 2], [0, 0, 0, 2, 2]])
    expected = [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 1, 1, 0]]
    np.testing.assert_array_equal(boundaries_of(labels), expected)


@pytest.mark.parametrize("patch", [(8, 16, 16), (3, 10, 24), (32, 64)])
def test_a_window_holds_the_corners_of_its_patch_whatever_the_rotation(patch: tuple[int, ...]) -> None:
    augment = Augment(scale=(0.5, 2))
    window = window_shape(patch, augment)
    corner = np.array([(edge - 1) / 2 for edge in patch]) / 0.5
    for angle in np.radians(np.arange(0, 360, 5)):
        c, s = np.cos(angle), np.sin(angle)
        reach = np.abs(corner)
        reach[-2:] = np.abs([[c, -s], [s, c]]) @ corner[-2:]
        # grid_sample reads the voxel beyond a position, too
        assert all(far + 1 <= size // 2 - 0.5 for far, size in zip(reach, window, strict=True))
