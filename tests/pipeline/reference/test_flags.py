"""Flags, their reasons and the review budget: out of distribution is not bad, and both are said."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.reference.flags import flag_images, review
from chorus.pipeline.reference.reasons import detector_reasons, percent
from chorus.pipeline.reference.reference import Reference, calibrate_from
from tests.support.simulated import Tables, simulated


def reference(images: int = 100, **changes: int) -> Reference:
    tables = simulated(images, seed=0, **changes)
    return calibrate_from(tables.scores, tables.evaluation, tables.features, ensemble="hash", tau=0.8)


def flagged(tables: Tables, known: Reference, **settings: float) -> pd.DataFrame:
    return flag_images(tables.scores, known, tables.features, **settings).set_index("name")


def raised(table: pd.DataFrame, name: str) -> pd.Series:
    return table["flags"].map(lambda flags: name in flags)


def test_an_image_that_is_out_of_distribution_but_segmented_well_is_flagged_as_such_and_keeps_a_high_dice() -> None:
    known = reference()
    table = flagged(simulated(30, seed=1, feature_shift=3.0), known)
    dice = simulated(30, seed=1).evaluation["dice"].to_numpy()
    assert raised(table, "ood").all()
    assert table["expected_dice"].mean() == pytest.approx(dice.mean(), abs=0.02)
    easy = table[table["expected_dice"] > 0.85]
    assert len(easy) > 15
    assert not raised(easy, "poor").any()
    assert easy["reasons"].map(lambda said: any(r.startswith("features ") and "sigma" in r for r in said)).all()


def test_hard_images_of_the_known_kind_are_flagged_as_poor() -> None:
    table = flagged(simulated(30, seed=2, difficulty=8), reference())
    assert raised(table, "poor").all()
    assert table["reasons"].map(lambda said: "below 0.8" in said[0]).all()
    assert (table["dice_bound"] <= table["expected_dice"]).all()


def test_of_familiar_images_few_are_flagged_as_out_of_distribution() -> None:
    shares = []
    for seed in range(6):
        tables = simulated(60, seed=100 + seed)
        known = calibrate_from(tables.scores, tables.evaluation, tables.features, ensemble="hash")
        shares.append(raised(flagged(simulated(100, seed=seed), known), "ood").mean())
    assert np.mean(shares) <= 0.08


def test_with_a_small_reference_set_those_more_unusual_than_all_of_it_are_flagged() -> None:
    known = reference(12)
    assert known.minimum_p() > 0.05
    assert raised(flagged(simulated(20, seed=3, feature_shift=20.0), known), "ood").all()


def test_finding_nothing_is_flagged_where_it_is_rare_and_not_where_it_is_common() -> None:
    new = simulated(20, seed=4, empty=3)
    rare, common = flagged(new, reference()), flagged(new, reference(100, empty=20))
    nothing = rare["status"] == "empty"
    assert (raised(rare, "empty") == nothing).all()
    assert not raised(common, "empty").any()
    assert rare[nothing]["reasons"].map(lambda said: said[0]).unique().tolist() == [
        "nothing found, as in 0 of 100 reference images"
    ]
    assert rare[nothing][["expected_dice", "dice_bound", "failure_score"]].isna().all(axis=None)
    assert (rare[nothing]["risk"] == 1).all()
    assert common[common["status"] == "empty"]["risk"].to_numpy() == pytest.approx(1 / 21)


def test_failed_images_stand_last_without_a_rank_and_give_their_message() -> None:
    new = simulated(12, seed=5)
    scores = new.scores.astype({"message": object})
    scores.loc[3, ["status", "message"]] = ["failed", "broken.zarr: cannot be read"]
    table = flag_images(scores, reference(), new.features)
    last = table.iloc[-1]
    assert (last["name"], last["flags"], last["reasons"]) == ("image-0003", ["failed"], ["broken.zarr: cannot be read"])
    assert last[["rank", "expected_dice", "risk", "p_value"]].isna().all()
    assert table["rank"].tolist()[:-1] == list(range(1, 12))


def test_the_riskiest_come_first_whatever_the_order_of_the_rows() -> None:
    new, known = simulated(40, seed=6), reference()
    table = flag_images(new.scores, known, new.features)
    assert (table["risk"].diff().dropna() <= 0).all()
    order = np.random.default_rng(0).permutation(40)
    pd.testing.assert_frame_equal(table, flag_images(new.scores.iloc[order], known, new.features))


def test_u_min_flags_what_is_not_more_certain_than_a_bad_reference_image() -> None:
    known = reference()
    frame = known.frame()
    u_min = frame.loc[frame["dice"] < 0.85, "uncertainty"].min()
    new = simulated(50, seed=7)
    table = flagged(new, known, below=0.85)
    expected = new.scores.set_index("name")["uncertainty"] >= u_min
    assert (raised(table, "uncertain") == expected.reindex(table.index)).all()
    told = table[raised(table, "uncertain")]["reasons"].map(lambda said: any("not below U_min" in r for r in said))
    assert told.all()


def test_the_risk_is_no_less_than_the_share_that_fails_on_average() -> None:
    risks, failed = [], []
    for seed in range(6):
        tables, new = simulated(60, seed=seed), simulated(100, seed=500 + seed)
        known = calibrate_from(tables.scores, tables.evaluation, ensemble="hash", tau=0.85)
        risks.append(flagged(Tables(new.scores, new.evaluation, pd.DataFrame()), known)["risk"].mean())
        failed.append((new.evaluation["dice"] < 0.85).mean())
    assert np.mean(failed) <= np.mean(risks) <= np.mean(failed) + 0.12


def by_hand(risks: list[float], ood: set[int] = frozenset()) -> pd.DataFrame:  # type: ignore[assignment]
    flags = [["ood"] if row in ood else [] for row in range(len(risks))]
    return pd.DataFrame({"name": [f"i{row}" for row in range(len(risks))], "risk": risks, "flags": flags})


def test_the_review_budget_is_that_of_a_case_by_hand() -> None:
    """Ten images and a failed one: two are looked at, of the other eight (0.2 + 0.1 + 6 * 0.01) / 8 are left."""
    table = by_hand([0.9, 0.5, 0.2, 0.1, *[0.01] * 6, math.nan], {1, 3, 4})
    plan = review(table, 0.2, wanted=0.03)
    assert (plan.look_at, plan.images) == (["i0", "i1"], 10)
    assert plan.left_share == pytest.approx(0.36 / 8)
    assert plan.needed == 3  # then 0.16 / 7 = 0.023 are left, with two 0.045
    assert plan.ood_left == 2


def test_a_budget_is_rounded_up_and_all_or_nothing_are_budgets_too() -> None:
    table = by_hand([0.5, 0.1, 0.1])
    assert review(table, 0.05).look_at == ["i0"]
    assert review(table, 0.0).left_share == pytest.approx(0.7 / 3)
    whole = review(table, 1.0)
    assert (whole.left_share, whole.needed, len(whole.look_at)) == (0, 3, 3)
    assert review(by_hand([]), 0.5).images == 0
    with pytest.raises(RefusedError, match="--budget 5: give a share"):
        review(table, 5)


@given(risks=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), budget=st.floats(0, 1))
def test_what_is_needed_is_enough_and_one_less_is_not(risks: list[float], budget: float) -> None:
    ordered = sorted(risks, reverse=True)
    plan = review(by_hand(ordered), budget, wanted=0.1)
    rest = ordered[len(plan.look_at) :]
    assert plan.left_share == pytest.approx(math.fsum(rest) / len(rest) if rest else 0)
    after, before = ordered[plan.needed :], ordered[max(plan.needed - 1, 0) :]
    assert not after or math.fsum(after) / len(after) < 0.1 + 1e-9
    assert plan.needed == 0 or math.fsum(before) / len(before) >= 0.1 - 1e-9


def test_reasons_are_words_with_numbers_the_most_unusual_first() -> None:
    values = {"pairwise_dice": 0.66, "area_fraction:nucleus": 0.4, "uncertainty": 0.123, "entropy": 0.2}
    sigmas = {"pairwise_dice": -5.0, "features": 9.2, "features_residual": 12.3, "uncertainty": 4.2, "entropy": 0.1}
    sigmas["area_fraction:nucleus"] = -3.0
    tails = {"pairwise_dice": 1e-7, "features": 1e-20, "features_residual": 1e-34, "uncertainty": 1e-5, "entropy": 0.4}
    tails["area_fraction:nucleus"] = 2e-3
    assert detector_reasons(values, sigmas, tails, 0.05) == [
        "features 12 sigma from the reference set",
        "members disagree on 34 % of the foreground",
        "uncertainty 0.123, 4.2 sigma above the reference set",
    ]
    few = {name: tails[name] for name in ("area_fraction:nucleus", "entropy")}
    assert detector_reasons(values, sigmas, few, 0.05) == [
        "nucleus covers 40 % of the image, 3.0 sigma below the reference set"
    ]
    assert detector_reasons(values, sigmas, {"entropy": 0.4}, 0.05) == [
        "entropy 0.200, 0.1 sigma above the reference set"
    ]
    assert detector_reasons({}, {}, {}, 0.05) == []


@pytest.mark.parametrize(("share", "text"), [(0.34, "34 %"), (0.056, "5.6 %"), (0.0999, "10 %"), (0, "0.0 %")])
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_every_image_without_flags_has_no_reasons_and_the_reverse() -> None:
    new = simulated(60, seed=8, difficulty=1, empty=5)
    table = flagged(new, reference())
    assert (table["flags"].map(len).gt(0) == table["reasons"].map(len).gt(0)).all()


def test_a_hundred_thousand_images_are_judged_within_seconds() -> None:
    from time import perf_counter

    new = simulated(100_000, seed=9, difficulty=0.5)
    known = reference(200)
    begun = perf_counter()
    table = flag_images(new.scores, known, new.features)
    review(table, 0.05)
    assert perf_counter() - begun < 60
    assert len(table) == 100_000


def test_a_dice_out_of_range_is_refused() -> None:
    with pytest.raises(RefusedError, match="--below 80: give a Dice between 0 and 1"):
        flag_images(simulated(3, seed=0).scores, reference(), below=80)


def test_nothing_is_promised_of_an_image_that_is_out_of_distribution() -> None:
    known, new = simulated(60, 1), simulated(40, 2, feature_shift=8.0, prefix="new")
    reference = calibrate_from(known.scores, known.evaluation, known.features, ensemble="hash")
    judged = flag_images(new.scores, reference, new.features)
    assert ["ood" in flags for flags in judged["flags"]] == [True] * 40
    assert (judged["dice_bound"] == 0).all()
    assert (judged["expected_dice"] > 0).all()
