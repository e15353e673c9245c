"""How far members disagree about directions: the circular variance of their flows, whatever their lengths."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import circvar

from chorus.pipeline.core.fields import FLOW_VARIANCE
from chorus.pipeline.core.role_sums import FlowSums, unit_vectors
from chorus.pipeline.core.sample_sums import SampleSums
from chorus.pipeline.reference.flags import flag_images
from chorus.pipeline.reference.reference import Reference, calibrate_from
from chorus.pipeline.scores.ranking import rank
from tests.support.engines import outputs_of
from tests.support.simulated import Tables, simulated

CPU = torch.device("cpu")


def variance(*flows: tuple[float, float]) -> float:
    """Of the flows (dy, dx) that as many samples give to one pixel."""
    sums = FlowSums.zeros(1, 2, (1, 1), CPU)
    for count, flow in enumerate(flows):
        sums.add(torch.tensor(flow).reshape(1, 2, 1, 1), count)
    return float(sums.statistics(len(flows))[FLOW_VARIANCE])


@pytest.mark.parametrize(
    ("flows", "expected"),
    [
        ([(0.0, 5.0)], 0),
        ([(3.0, 4.0)] * 7, 0),
        ([(5.0, 0.0), (-1.0, 0.0)], 1),
        ([(5.0, 0.0), (0.0, 2.0)], 1 - 1 / math.sqrt(2)),
        ([(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)], 1),
        ([(4.0, 0.0), (0.0, 0.0)], 0.5),
        ([(4.0, 0.0), (math.nan, 1.0)], 0.5),
        ([(4.0, 0.0), (math.inf, 1.0), (1.0, -math.inf), (math.inf, math.inf)], 0.75),
        ([(0.0, 0.0), (math.nan, math.nan)], 1),
        ([(1e-38, 1e-38), (3e38, 3e38), (2.0, 2.0)], 0),
    ],
)
def test_directions_by_hand(flows: list[tuple[float, float]], expected: float) -> None:
    assert variance(*flows) == pytest.approx(expected, abs=1e-6)
    assert 0 <= variance(*flows) <= 1


@given(
    angles=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=20),
    lengths=st.lists(st.floats(1e-3, 1e3), min_size=20, max_size=20),
)
def test_it_is_the_circular_variance_of_scipy_whatever_the_lengths(angles: list[float], lengths: list[float]) -> None:
    flows = [(r * math.sin(a), r * math.cos(a)) for a, r in zip(angles, lengths, strict=False)]
    assert variance(*flows) == pytest.approx(circvar(angles), abs=2e-6)


@given(arrays(np.float32, (2, 37), elements=st.floats(width=32)), st.integers(0, 36))
def test_a_direction_does_not_depend_on_the_place_in_the_array(flows: np.ndarray, place: int) -> None:
    # Vectorised functions may treat the last few numbers of an array otherwise than the others.
    whole = unit_vectors(torch.from_numpy(flows)[None, :, None])
    alone = unit_vectors(torch.from_numpy(flows[:, place : place + 1].copy())[None, :, None])
    assert torch.equal(whole[..., place], alone[..., 0])
    length = whole.norm(dim=1)
    has_one = np.isfinite(flows).all(axis=0) & (flows != 0).any(axis=0)
    np.testing.assert_allclose(length[0, 0].numpy(), has_one, atol=1e-6)


def test_without_flows_there_is_no_map_of_it() -> None:
    sums = SampleSums.zeros(outputs_of(3), 2, (4, 4), CPU)
    sums.samples = 1
    assert sums.maps().shape == (2, 5, 4, 4)


def with_flows(tables: Tables, strange: float = 0.0) -> Tables:
    """Of members that give flows; the last image's disagree by `strange` more."""
    hard = 1 - tables.evaluation["dice"].to_numpy()
    tables.scores["flow_variance"] = np.clip(0.05 + 0.3 * hard, 0, 1)
    tables.scores.loc[len(hard) - 1, "flow_variance"] += strange
    return tables


def reference(tables: Tables) -> Reference:
    return calibrate_from(tables.scores, tables.evaluation, tables.features, ensemble="hash")


def flagged(tables: Tables, known: Reference) -> pd.DataFrame:
    return flag_images(tables.scores, known, tables.features).set_index("name")


def test_images_whose_flows_disagree_are_ranked_first_and_flagged_with_the_reason() -> None:
    known, tables = reference(with_flows(simulated(60, seed=0))), with_flows(simulated(30, seed=1), strange=0.5)
    assert "flow_variance" in known.detector_scores
    assert "flow_variance" not in known.quality.scores
    assert rank(tables.scores, "flow_variance").ranked["name"][0] == "image-0029"
    image = flagged(tables, known).loc["image-0029"]
    assert "ood" in image["flags"]
    assert any(said.startswith("disagreement about the flows' directions 0.") for said in image["reasons"])


def test_ensembles_without_flows_and_references_of_earlier_versions_are_judged_as_before() -> None:
    plain, nothing = simulated(40, seed=0), simulated(40, seed=0)
    nothing.scores["flow_variance"] = np.nan
    known = reference(nothing)
    assert known.model_dump_json() == reference(plain).model_dump_json()
    expected = flagged(simulated(20, seed=1), known)
    pd.testing.assert_frame_equal(flagged(with_flows(simulated(20, seed=1)), known), expected)
