"""The symmetries of the square: forward, back, and as NumPy does them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chorus.pipeline.core.augmentation import AUGMENTATIONS, D4, FLIPS
from tests.support import reference

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
