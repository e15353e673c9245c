"""What flips and turns do to rays, affinities and vectors: those of an augmented image, restored, are the image's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from chorus.pipeline.core.augmentation import AUGMENTATIONS, D4, refused
from chorus.pipeline.core.outputs import AFFINITIES, BOUNDARY, DISTANCE, VALUES, Output, Outputs, rays_of
from chorus.pipeline.core.restoring import Turn, restored

FLIPPED = ("identity", "hflip", "vflip", "hvflip")
LABELS = arrays(np.int32, st.tuples(st.integers(5, 14), st.integers(5, 14)), elements=st.integers(0, 3))


def affinities_of(offsets: Sequence[Sequence[int]]) -> Output:
    names = tuple(",".join(map(str, offset)) for offset in offsets)
    return Output(AFFINITIES, names, vectors=tuple(tuple(map(float, offset)) for offset in offsets))


def joined(labels: NDArray[np.int32], output: Output) -> NDArray[np.float32]:
    """True affinities, (offsets, *spatial); NaN where the pixel at the offset is beyond the image."""
    result = np.full((len(output.vectors), *labels.shape), np.nan, np.float32)
    for channel, offset in enumerate(output.vectors):
        for place in np.ndindex(*labels.shape):
            other = tuple(int(p + o) for p, o in zip(place, offset, strict=True))
            if all(0 <= p < length for p, length in zip(other, labels.shape, strict=True)):
                result[channel, *place] = labels[place] == labels[other]
    return result


def outline(labels: NDArray[np.int32], output: Output) -> NDArray[np.float32]:
    """Steps from each pixel along each ray until its object ends, (rays, y, x)."""
    result = np.zeros((len(output.vectors), *labels.shape), np.float32)
    for channel, (dy, dx) in enumerate(output.vectors):
        for y, x in np.ndindex(*labels.shape):
            steps = 0
            while True:
                there = y + round(steps * dy), x + round(steps * dx)
                inside = all(0 <= p < length for p, length in zip(there, labels.shape, strict=True))
                if not inside or labels[there] != labels[y, x]:
                    break
                steps += 1
            result[channel, y, x] = steps
    return result


def forward(name: str, plane: NDArray[Any]) -> NDArray[Any]:
    return AUGMENTATIONS[name].forward(torch.from_numpy(plane)).numpy().copy()


def back(name: str, values: NDArray[Any], output: Output) -> NDArray[Any]:
    return AUGMENTATIONS[name].restore(torch.from_numpy(values), output).numpy()


@pytest.mark.parametrize("name", D4)
@pytest.mark.parametrize(
    "offsets",
    [
        [(-1, 0), (0, -1), (-3, 0), (0, -3)],
        [(1, 0), (0, -1), (2, -3), (3, 2), (2, 3), (-3, 2)],
        [(-1, 0), (1, 0), (0, 1), (0, -1)],
    ],
)
@given(labels=LABELS)
def test_affinities_of_augmented_labels_turn_back_into_those_of_the_labels(
    name: str, offsets: list[tuple[int, int]], labels: NDArray[np.int32]
) -> None:
    output = affinities_of(offsets)
    wanted = joined(labels, output)
    found = back(name, np.nan_to_num(joined(forward(name, labels), output)), output)
    defined = np.isfinite(wanted)
    assert np.array_equal(found[defined], wanted[defined])
    assert np.isfinite(found).all()


def test_affinities_that_only_moved_would_be_wrong() -> None:
    output = affinities_of([(-1, 0), (0, -1)])
    labels = np.repeat(np.repeat([[1, 2], [3, 1]], 4, axis=0), 5, axis=1).astype(np.int32)
    moved = AUGMENTATIONS["vflip"].backward(torch.from_numpy(joined(forward("vflip", labels), output))).numpy()
    wanted = joined(labels, output)
    assert not np.array_equal(moved[0][1:-1], wanted[0][1:-1])


@pytest.mark.parametrize("name", D4)
@pytest.mark.parametrize("rays", [4, 8, 16, 32])
def test_rays_of_augmented_labels_turn_back_into_those_of_the_labels(name: str, rays: int) -> None:
    output, rng = rays_of(rays, (0, 16)), np.random.default_rng(rays)
    labels = np.kron(rng.integers(0, 4, (3, 4)), np.ones((4, 3))).astype(np.int32)
    wanted = outline(labels, output)
    found = back(name, outline(forward(name, labels), output), output)
    assert np.array_equal(found, wanted)
    if name != "identity":
        moved = AUGMENTATIONS[name].backward(torch.from_numpy(outline(forward(name, labels), output))).numpy()
        assert not np.array_equal(moved, wanted), "the test can tell"


@pytest.mark.parametrize("role", [DISTANCE, BOUNDARY, VALUES])
@given(st.sampled_from(D4), arrays(np.float32, (2, 6, 9), elements=st.floats(-9, 9, width=32)))
def test_scalars_only_move(role: Any, name: str, values: NDArray[np.float32]) -> None:
    output = Output(role, ("a", "b"))
    assert np.array_equal(back(name, np.stack([forward(name, one) for one in values]), output), values)


def test_values_that_are_a_vector_turn_as_one() -> None:
    field = np.random.default_rng(0).normal(size=(12, 15)).astype(np.float32)
    output = Output(VALUES, ("y", "x"), turns=True)
    for name in D4:
        found = back(name, np.stack(np.gradient(forward(name, field))), output)
        np.testing.assert_allclose(found, np.stack(np.gradient(field)), atol=1e-6)
        if name != "identity":
            still = back(name, np.stack(np.gradient(forward(name, field))), replace(output, turns=False))
            assert not np.allclose(still, np.stack(np.gradient(field)))


SIGNED = [
    tuple(zip(order, signs, strict=True))
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("turn", SIGNED, ids=str)
def test_in_three_dimensions_affinities_turn_alike(turn: Turn) -> None:
    output = affinities_of([(-1, 0, 0), (0, -1, 0), (0, 0, -1), (-2, 0, 0), (0, 2, 0), (0, 0, 2)])
    labels = np.random.default_rng(1).integers(0, 2, (5, 6, 7)).astype(np.int32)

    def turned(values: NDArray[Any]) -> NDArray[Any]:
        """`values` in the augmented orientation: axis `of` of it is axis `axis` of the original."""
        spatial = [values.ndim - 3 + axis for axis in range(3)]
        order = [0] * 3
        for axis, (of, _) in enumerate(turn):
            order[of] = spatial[axis]
        moved = values.transpose([*range(values.ndim - 3), *order])
        return np.flip(moved, [values.ndim - 3 + of for of, sign in turn if sign < 0]).copy()

    def restored_positions(values: NDArray[Any]) -> NDArray[Any]:
        values = np.flip(values, [values.ndim - 3 + of for of, sign in turn if sign < 0])
        return values.transpose([*range(values.ndim - 3), *(values.ndim - 3 + of for of, _ in turn)]).copy()

    assert np.array_equal(restored_positions(turned(labels)), labels)
    moved = restored_positions(np.nan_to_num(joined(turned(labels), output)))
    found, wanted = restored(torch.from_numpy(moved), output, turn).numpy(), joined(labels, output)
    defined = np.isfinite(wanted)
    assert np.array_equal(found[defined], wanted[defined])


@pytest.mark.parametrize(
    ("rays", "allowed"), [(3, {"identity", "vflip"}), (6, set(FLIPPED)), (7, {"identity", "vflip"}), (12, set(D4))]
)
def test_rays_that_are_not_closed_under_an_augmentation_refuse_it(rays: int, allowed: set[str]) -> None:
    outputs = Outputs((rays_of(rays, (0, 9)),))
    assert {name for name in D4 if not refused(outputs, (name,))} == allowed
    assert refused(outputs, D4).startswith("augmentation ") == (allowed != set(D4))
    for name in set(D4) - allowed:
        with pytest.raises(ValueError, match="rays"):
            back(name, np.zeros((rays, 4, 4), np.float32), outputs.each[0])


def test_offsets_that_turn_into_none_of_them_refuse_the_augmentation() -> None:
    outputs = Outputs((affinities_of([(-1, 0), (-3, 0)]),))
    assert {name for name in D4 if not refused(outputs, (name,))} == set(FLIPPED)
    assert refused(outputs, ("identity", "rot90")) == (
        "augmentation rot90 cannot be used with affinities: it turns an offset into one that is not among the offsets"
    )
