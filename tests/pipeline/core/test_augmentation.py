"""The symmetries of the square, and of volumes: forward, back, and as NumPy does them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chorus.pipeline.core.augmentation import (
    AUGMENTATIONS,
    D4,
    FLIPS,
    VOLUME_AUGMENTATIONS,
    VOLUME_FLIPS,
    augmentations_of,
    flips_of,
)
from chorus.pipeline.core.outputs import flows_of
from tests.support import reference, volume_reference

TILE = torch.arange(2 * 5 * 5, dtype=torch.float32).reshape(1, 2, 5, 5)


@given(name=st.sampled_from(D4), edge=st.integers(1, 9), seed=st.integers(0, 10))
def test_back_undoes_forward_bit_for_bit(name: str, edge: int, seed: int) -> None:
    x = torch.randn((2, 3, edge, edge), generator=torch.Generator().manual_seed(seed))
    augmentation = AUGMENTATIONS[name]
    assert torch.equal(augmentation.backward(augmentation.forward(x)), x)
    assert torch.equal(augmentation.forward(augmentation.backward(x)), x)


@pytest.mark.parametrize("name", D4)
def test_forward_is_what_the_reference_does(name: str) -> None:
    found = AUGMENTATIONS[name].forward(TILE)[0].numpy()
    assert np.array_equal(found, reference.FORWARD[name](TILE[0].numpy()))


def test_the_eight_differ_and_are_closed_under_composition() -> None:
    images = {name: AUGMENTATIONS[name].forward(TILE).numpy().tobytes() for name in D4}
    assert len(set(images.values())) == 8
    for first, second in itertools.product(D4, D4):
        both = AUGMENTATIONS[second].forward(AUGMENTATIONS[first].forward(TILE))
        assert both.numpy().tobytes() in images.values()


def test_the_flips_are_four_of_the_eight() -> None:
    assert set(FLIPS) <= set(D4)
    assert len(set(FLIPS)) == 4


BLOCK = torch.arange(2 * 3 * 5 * 5, dtype=torch.float32).reshape(1, 2, 3, 5, 5)


@given(
    name=st.sampled_from(sorted(VOLUME_AUGMENTATIONS)),
    depth=st.integers(1, 4),
    edge=st.integers(1, 6),
    seed=st.integers(0, 10),
)
def test_back_undoes_forward_of_a_volume_bit_for_bit(name: str, depth: int, edge: int, seed: int) -> None:
    x = torch.randn((2, 3, depth, edge, edge), generator=torch.Generator().manual_seed(seed))
    augmentation = VOLUME_AUGMENTATIONS[name]
    assert torch.equal(augmentation.backward(augmentation.forward(x)), x)
    assert torch.equal(augmentation.forward(augmentation.backward(x)), x)


def test_the_sixteen_of_a_volume_differ_and_are_closed_under_composition() -> None:
    images = {name: one.forward(BLOCK).numpy().tobytes() for name, one in VOLUME_AUGMENTATIONS.items()}
    assert len(set(images.values())) == 16
    for first, second in itertools.product(VOLUME_AUGMENTATIONS.values(), repeat=2):
        assert second.forward(first.forward(BLOCK)).numpy().tobytes() in images.values()


def test_the_flips_of_a_volume_reverse_each_subset_of_its_axes() -> None:
    for name in VOLUME_FLIPS:
        found = VOLUME_AUGMENTATIONS[name].forward(BLOCK)[0].numpy()
        assert np.array_equal(found, np.flip(BLOCK[0].numpy(), volume_reference.FLIPPED[name]))
    assert len(set(volume_reference.FLIPPED)) == len(VOLUME_FLIPS) == 8


@pytest.mark.parametrize("name", sorted(VOLUME_AUGMENTATIONS))
def test_vectors_of_a_volume_turn_as_the_slope_of_what_they_point_up(name: str) -> None:
    """The gradient of an augmented landscape, turned back, is the gradient of the landscape."""
    landscape = np.random.default_rng(3).normal(size=(4, 6, 6))
    one = VOLUME_AUGMENTATIONS[name]

    def slope(volume: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack(np.gradient(volume)))[None]

    augmented = one.forward(torch.from_numpy(landscape)[None, None])[0, 0].numpy()
    assert torch.allclose(one.restore(slope(augmented), flows_of("zyx")), slope(landscape))


def test_planes_have_no_augmentation_that_flips_z() -> None:
    assert set(augmentations_of("yx")) == set(D4)
    assert flips_of("yx") == FLIPS
    assert flips_of("zyx") == VOLUME_FLIPS
    assert {name for name, one in VOLUME_AUGMENTATIONS.items() if one.exchanges} == {
        *("rot90", "rot270", "transpose", "antitranspose"),
        *("zrot90", "zrot270", "ztranspose", "zantitranspose"),
    }
