"""The statistics of every role against NumPy in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from chorus.pipeline.core.fields import (
    AFFINITY,
    AFFINITY_VARIANCE,
    BOUNDARIES,
    BOUNDARY_ALEATORIC,
    BOUNDARY_EPISTEMIC,
    DISTANCE_VARIANCE,
    DISTANCES,
    FIELDS,
    RAY,
    RAY_VARIATION,
    VALUE,
    VALUE_VARIANCE,
)
from chorus.pipeline.core.outputs import (
    AFFINITIES,
    BOUNDARY,
    CLASSES,
    DISTANCE,
    FLOWS,
    RAYS,
    ROLES,
    VALUES,
    Output,
    Outputs,
    Role,
    classes_of,
    flows_of,
    rays_of,
)
from chorus.pipeline.core.role_sums import SUMS
from chorus.pipeline.core.sample_sums import SampleSums

CPU = torch.device("cpu")
EVERYTHING = Outputs(
    (
        classes_of(("background", "cell")),
        flows_of(),
        rays_of(8, (0, 40)),
        Output(DISTANCE, ("centre", "boundary")),
        Output(BOUNDARY, ("boundary",)),
        Output(AFFINITIES, ("-1,0", "0,-1"), vectors=((-1.0, 0.0), (0.0, -1.0))),
        Output(VALUES, ("a", "b", "c"), extent=(0, 1)),
    )
)


def samples_of(role: Role, samples: int, channels: int, spatial: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """(samples, tiles, channels, *spatial): probabilities where the role has such, else numbers far from zero."""
    rng = np.random.default_rng(seed)
    shape = (samples, 2, channels, *spatial)
    if role in (CLASSES, BOUNDARY, AFFINITIES):
        values = rng.random(shape)
        return (values / values.sum(axis=2, keepdims=True) if role == CLASSES else values).astype(np.float32)
    return (rng.normal(size=shape) + (0 if role == FLOWS else 30)).astype(np.float32)


def sums_of(role: Role, samples: NDArray[np.float32]) -> Any:
    sums = SUMS[role].zeros(2, samples.shape[2], samples.shape[3:], CPU)
    for count, sample in enumerate(samples):
        sums.add(torch.from_numpy(sample), count)
    return sums


@given(st.integers(1, 9), st.integers(0, 99), st.sampled_from([(5,), (3, 4), (2, 3, 4)]))
def test_means_and_variances_are_those_of_numpy_on_any_number_of_axes(
    count: int, seed: int, spatial: tuple[int, ...]
) -> None:
    def check(role: Role, field: Any, wanted: NDArray[Any]) -> None:
        found = sums_of(role, samples[role]).statistics(count)[field].numpy()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)

    channels = {RAYS: 4, DISTANCE: 2, BOUNDARY: 1, AFFINITIES: 3, VALUES: 2}
    samples = {role: samples_of(role, count, channels[role], spatial, seed) for role in channels}
    exact = {role: values.astype(np.float64) for role, values in samples.items()}
    check(DISTANCE, DISTANCES, exact[DISTANCE].mean(axis=0))
    check(DISTANCE, DISTANCE_VARIANCE, exact[DISTANCE].var(axis=0))
    check(VALUES, VALUE, exact[VALUES].mean(axis=0))
    check(VALUES, VALUE_VARIANCE, exact[VALUES].var(axis=0))
    check(AFFINITIES, AFFINITY, exact[AFFINITIES].mean(axis=0))
    check(AFFINITIES, AFFINITY_VARIANCE, exact[AFFINITIES].var(axis=0).mean(axis=1, keepdims=True))
    check(BOUNDARY, BOUNDARIES, exact[BOUNDARY].mean(axis=0))
    check(BOUNDARY, BOUNDARY_EPISTEMIC, exact[BOUNDARY].var(axis=0))
    check(BOUNDARY, BOUNDARY_ALEATORIC, (exact[BOUNDARY] * (1 - exact[BOUNDARY])).mean(axis=0))
    check(RAYS, RAY, exact[RAYS].mean(axis=0))
    deviation = np.sqrt(exact[RAYS].var(axis=0).mean(axis=1, keepdims=True))
    check(RAYS, RAY_VARIATION, deviation / exact[RAYS].mean(axis=(0, 2))[:, None])


def test_variances_of_large_values_keep_their_digits() -> None:
    values = (60000 + np.random.default_rng(0).normal(size=(12, 2, 1, 8, 8))).astype(np.float32)
    found = sums_of(VALUES, values).statistics(12)[VALUE_VARIANCE].numpy()
    np.testing.assert_allclose(found, values.astype(np.float64).var(axis=0), rtol=0.02)


def test_rays_of_no_length_have_a_variation_that_is_a_number() -> None:
    values = torch.zeros((1, 8, 2, 2))
    sums = SUMS[RAYS].zeros(1, 8, (2, 2), CPU)
    for count, sign in enumerate((1, -1)):
        sums.add(values + sign, count)
    assert torch.isfinite(sums.statistics(2)[RAY_VARIATION]).all()


@pytest.mark.parametrize("role", ROLES.values(), ids=ROLES)
@given(st.integers(1, 5), st.integers(1, 5))
def test_sums_of_some_members_and_of_others_add_up_to_those_of_all(role: Role, first: int, others: int) -> None:
    channels = {BOUNDARY: 1, FLOWS: 2}.get(role, 3)
    samples = samples_of(role, first + others, channels, (3, 4), 7)
    apart = sums_of(role, samples[:first]).plus(sums_of(role, samples[first:]), (first, others))
    together = sums_of(role, samples)
    for field, wanted in together.statistics(first + others).items():
        np.testing.assert_allclose(
            apart.statistics(first + others)[field].numpy(), wanted.numpy(), atol=1e-4, err_msg=field.name
        )


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 20))
def test_a_value_does_not_depend_on_its_place_in_the_array(row: int, column: int, seed: int) -> None:
    # Vectorised functions may treat the last few numbers of an array otherwise than the others.
    samples = [
        {
            one.role: samples_of(one.role, 3, len(one.names), (9, 9), seed + index)
            for index, one in enumerate(EVERYTHING)
        }
    ]

    def maps(part: tuple[slice, ...]) -> torch.Tensor:
        (given,) = samples
        size = tuple(len(range(9)[one]) for one in part)
        sums = SampleSums.zeros(EVERYTHING, 2, size, CPU)
        sums.add_member(
            {role: torch.from_numpy(np.ascontiguousarray(values[turn][:, :, *part])) for role, values in given.items()}
            for turn in range(3)
        )
        return sums.maps()

    whole = maps((slice(9), slice(9)))
    assert torch.equal(whole[:, :, row, column], maps((slice(row, row + 1), slice(column, column + 1)))[:, :, 0, 0])


def test_every_role_that_members_answer_with_has_sums_and_every_field_of_them_a_value() -> None:
    assert set(SUMS) == set(ROLES.values())
    sums = SampleSums.zeros(EVERYTHING, 1, (2, 2), CPU)
    sums.samples = 1
    wanted = [field for field in FIELDS.values() if field.role in SUMS and not field.parts]
    assert set(sums.statistics()) == set(wanted)
