"""U_min and other thresholds: by hand, and with nothing to take them from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.pipeline.reference.threshold import threshold

U = np.array([0.01, 0.05, 0.03, 0.08, 0.02])
DICE = np.array([0.95, 0.70, 0.90, 0.60, 0.85])


def test_u_min_is_the_minimum_uncertainty_of_an_image_below_tau() -> None:
    found = threshold(U, DICE, 0.8)
    assert found.minimum == 0.05
    assert found.beyond(np.array([0.049, 0.05, 0.2, np.nan])).tolist() == [False, True, True, False]


def test_where_low_is_bad_it_is_the_highest_value_below_tau() -> None:
    found = threshold(1 - U, DICE, 0.8, low_is_bad=True)
    assert found.minimum == 0.95
    assert found.worst_seen == pytest.approx(0.92)
    assert found.beyond(np.array([0.951, 0.95, 0.2])).tolist() == [False, True, True]


def test_with_no_image_below_tau_only_what_is_beyond_all_of_them_is_flagged() -> None:
    found = threshold(U, DICE, 0.5)
    assert found.minimum is None
    assert found.beyond(np.array([0.08, 0.081])).tolist() == [False, True]
    assert threshold(1 - U, DICE, 0.5, low_is_bad=True).beyond(np.array([0.93, 0.91])).tolist() == [False, True]


@given(
    rows=st.lists(st.tuples(st.floats(0, 0.25, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=60),
    tau=st.floats(0.1, 0.9),
)
def test_no_reference_image_that_passes_is_below_tau(rows: list[tuple[float, float]], tau: float) -> None:
    values, dice = (np.array(column, float) for column in zip(*rows, strict=True))
    found = threshold(values, dice, tau)
    assert (dice[~found.beyond(values)] >= tau).all()


def test_the_threshold_at_a_rate_flags_no_more_good_images_than_it_says() -> None:
    flagged = []
    for seed in range(400):
        values = np.random.default_rng(seed).exponential(size=140)
        found = threshold(values[:40], np.ones(40), 0.8, false_positive_rate=0.1)
        assert found.at_rate is not None
        flagged.append(np.mean(values[40:] >= found.at_rate))
    error = np.std(flagged) / np.sqrt(len(flagged))
    assert 0.1 - 1 / 41 - 2 * error <= np.mean(flagged) <= 0.1 + 2 * error


def test_too_few_good_images_have_no_threshold_at_a_rate() -> None:
    assert threshold(U, DICE, 0.8, false_positive_rate=0.05).at_rate is None
