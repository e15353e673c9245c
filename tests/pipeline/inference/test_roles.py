"""Members that answer with every role: nothing depends on regions, stages or batches, and augmentations agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chorus.pipeline.core.augmentation import D4, FLIPS
from chorus.pipeline.core.fields import (
    AFFINITY,
    AFFINITY_VARIANCE,
    BOUNDARIES,
    DISTANCES,
    PROBABILITY,
    RAY,
    RAY_VARIATION,
    VALUE,
)
from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.core.outputs import (
    AFFINITIES,
    BOUNDARY,
    CLASSES,
    DISTANCE,
    VALUES,
    Foreground,
    Output,
    Outputs,
    classes_of,
    flows_of,
    rays_of,
)
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.inference.engine import Engine, PlaneWindow
from chorus.pipeline.inference.posterior_builder import InferenceSettings
from chorus.pipeline.inference.stages import StageState
from tests.support.engines import CPU, Filter, arrays_of, assert_same_bytes, noise, plane_window

OFFSETS = ((-1.0, 0.0), (0.0, -1.0), (-3.0, 0.0), (0.0, 3.0))
OUTPUTS = Outputs(
    (
        Output(BOUNDARY, ("boundary",), "sigmoid"),
        rays_of(8, (0, 20)),
        classes_of(("background", "cell")),
        flows_of(),
        Output(DISTANCE, ("centre", "boundary")),
        Output(AFFINITIES, tuple(map(str, OFFSETS)), "sigmoid", vectors=OFFSETS),
        Output(VALUES, ("a",)),
    )
)


def how(outputs: Outputs = OUTPUTS, batch: int = 2, augmentations: tuple[str, ...] = FLIPS) -> InferenceSettings:
    return InferenceSettings(outputs, False, (32, 32), augmentations, batch)


class Structure:
    """A member that is equivariant: all that it says follows from the pixels around, in every role but flows."""

    activation = "none"

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        def at(dy: float, dx: float) -> torch.Tensor:
            """The pixel at an offset, at whole steps; the edge repeated."""
            y = (torch.arange(tiles.shape[2]) + round(dy)).clamp(0, tiles.shape[2] - 1)
            x = (torch.arange(tiles.shape[3]) + round(dx)).clamp(0, tiles.shape[3] - 1)
            return tiles[:, :, y][:, :, :, x]

        probability = tiles.sigmoid()
        rays = [3 + at(4 * dy, 4 * dx) for dy, dx in OUTPUTS.each[1].vectors]
        affinities = [-((tiles - at(dy, dx)) ** 2) for dy, dx in OFFSETS]
        gradient = torch.gradient(tiles, dim=(2, 3))
        return torch.cat(
            [tiles, *rays, 1 - probability, probability, *gradient, tiles, -tiles, *affinities, 100 * tiles], dim=1
        )

    def parameters_bytes(self) -> int:
        return 0


def image_of(shape: tuple[int, int], seed: int) -> NDArray[np.float32]:
    return noise(shape, seed)


def test_all_eight_symmetries_of_an_equivariant_member_say_what_it_says_of_the_tile_itself() -> None:
    image, grid, whole = image_of((32, 32), 0), Grid.make((32, 32), 32, 0.5), Window.of(0, 32, 0, 32)
    plane = PlaneWindow(image, whole, grid)
    once = Engine([Structure()], how(augmentations=("identity",)), CPU).posterior(plane, whole)
    all_eight = Engine([Structure()], how(augmentations=D4), CPU).posterior(plane, whole)
    for field in (PROBABILITY, BOUNDARIES, RAY, DISTANCES, VALUE):
        np.testing.assert_allclose(all_eight.maps(field), once.maps(field), atol=1e-4, err_msg=field.name)
    # A pair that reaches beyond the tile is known in no orientation.
    inside = (slice(None), slice(3, -3), slice(3, -3))
    np.testing.assert_allclose(all_eight.maps(AFFINITY)[inside], once.maps(AFFINITY)[inside], atol=1e-5)
    assert all_eight.maps(AFFINITY_VARIANCE)[inside].max() < 1e-10
    assert all_eight.maps(RAY_VARIATION).max() < 1e-3


@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    region=st.integers(7, 100),
    batch=st.integers(1, 5),
    data=st.data(),
)
def test_the_result_does_not_depend_on_regions_or_their_order(
    shape: tuple[int, int], region: int, batch: int, data: st.DataObject
) -> None:
    members = [Filter(seed, OUTPUTS.channels) for seed in range(2)]
    image, grid = image_of(shape, 1), Grid.make(shape, 32, 0.5)
    engine, whole = Engine(members, how(batch=batch), CPU), Window.of(0, shape[0], 0, shape[1])
    wanted = arrays_of(engine.posterior(plane_window(image, grid, whole), whole))
    regions = RegionGrid.make(shape, region)
    for index in data.draw(st.permutations(range(regions.count))):
        target = regions.window(index)
        part = arrays_of(engine.posterior(plane_window(image, grid, target), target))
        for name, values in part.items():
            expected = wanted[name][..., target.y.slice, target.x.slice]
            assert values.tobytes() == np.ascontiguousarray(expected).tobytes(), name


@settings(max_examples=15)
@given(members=st.integers(2, 4), batch=st.integers(1, 4), data=st.data())
def test_the_result_does_not_depend_on_how_members_are_spread_over_stages(
    members: int, batch: int, data: st.DataObject
) -> None:
    loaded = [Filter(seed, OUTPUTS.channels) for seed in range(members)]
    image, grid, target = image_of((50, 61), members), Grid.make((50, 61), 32, 0.5), Window.of(0, 50, 0, 61)
    plane = plane_window(image, grid, target)
    together = Engine(loaded, how(batch=batch), CPU).posterior(plane, target)
    cuts = sorted(data.draw(st.sets(st.integers(1, members - 1))))
    state: StageState | None = None
    for a, b in zip([0, *cuts], [*cuts, members], strict=True):
        engine = Engine(loaded[a:b], how(batch=batch), CPU)
        state = engine.stage(plane, target, state)
    assert state is not None
    assert_same_bytes(together, engine.conclude(plane, target, state))


RULES = [
    (Foreground(BOUNDARY, (0,), "complement"), lambda said: 1 - said["boundary"][0]),
    (Foreground(DISTANCE, (1,), "above", 0.2), lambda said: said["distances"][1] > 0.2),
    (Foreground(DISTANCE, (0,), "below", 0.2), lambda said: said["distances"][0] < 0.2),
    (Foreground(AFFINITIES, (0, 1), "same"), lambda said: said["affinities"][:2].mean(axis=0)),
]


@pytest.mark.parametrize(("foreground", "wanted"), RULES, ids=lambda rule: getattr(rule, "rule", ""))
def test_without_classes_the_foreground_follows_from_another_output(foreground: Foreground, wanted: object) -> None:
    others = tuple(output for output in OUTPUTS if output.role != CLASSES)
    outputs = Outputs((Output(CLASSES, ("background", "foreground"), foreground=foreground), *others))
    image, grid, whole = image_of((32, 32), 3), Grid.make((32, 32), 32, 0.0), Window.of(0, 32, 0, 32)
    settings_ = replace(how(outputs), augmentations=("identity",))
    found = Engine([Filter(0, outputs.channels)], settings_, CPU).posterior(PlaneWindow(image, whole, grid), whole)
    probability = np.asarray(wanted(found.fields), np.float32)  # type: ignore[operator]
    np.testing.assert_allclose(found.probability, np.stack([1 - probability, probability]), atol=1e-6)
    assert np.array_equal(found.labels, probability > 0.5)
