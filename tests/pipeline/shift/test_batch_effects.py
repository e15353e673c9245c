"""Scores by plate, well and table: effects as plain ranks have them, honest alarms, and maps of plates."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.shift.batch_effects import group_tests, plate_maps, plate_places


def run(values: object, *, plates: int = 1, rows: str = "ABCD", columns: int = 6, fields: int = 1) -> pd.DataFrame:
    names = [
        f"p{plate}.ome.zarr/{row}/{column + 1}/{field}"
        for plate in range(plates)
        for row in rows
        for column in range(columns)
        for field in range(fields)
    ]
    return pd.DataFrame({"name": names, "uncertainty": values})


def variance_between(groups: list[int], values: list[float]) -> float:
    """Share of the ranks' variance that lies between groups, by sums of squares."""
    ranks = rankdata(values)
    middle = sum(ranks) / len(ranks)
    total = sum((rank - middle) ** 2 for rank in ranks)
    between = 0.0
    for group in set(groups):
        own = [rank for rank, of in zip(ranks, groups, strict=True) if of == group]
        between += len(own) * (sum(own) / len(own) - middle) ** 2
    return between / total


def test_epsilon_squared_is_the_share_of_variance_between_groups() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 4, 60).tolist()
    values = np.round(rng.normal(size=60) + 0.4 * np.array(groups), 1).tolist()
    scores = pd.DataFrame({"name": [f"{i:02}" for i in range(60)], "uncertainty": values})
    table = pd.DataFrame({"name": scores["name"], "operator": [f"o{group}" for group in groups]})
    (found,), notes = group_tests(scores, ["uncertainty"], table, alpha=0.05)
    assert found.effect == pytest.approx(variance_between(groups, values), abs=1e-12)
    assert found.measure == "epsilon squared"
    assert not notes
    for level in found.levels:
        own = [v for v, group in zip(values, groups, strict=True) if f"o{group}" == level.name]
        assert (level.images, level.median) == (len(own), float(np.median(own)))


@pytest.mark.parametrize("kind", ["numbers", "dates", "texts of dates"])
def test_numbers_and_dates_are_correlated_by_their_order(kind: str) -> None:
    rng = np.random.default_rng(0)
    days = rng.integers(0, 300, 40)
    values = rng.normal(size=40) + 0.02 * days
    scores = pd.DataFrame({"name": [f"{i:02}" for i in range(40)], "uncertainty": values})
    dates = pd.Timestamp("2026-01-01") + pd.to_timedelta(days, unit="D")
    column = {"numbers": days, "dates": dates, "texts of dates": dates.strftime("%Y-%m-%d")}[kind]
    (found,), _ = group_tests(
        scores, ["uncertainty"], pd.DataFrame({"name": scores["name"], "day": column}), alpha=0.05
    )
    expected = np.corrcoef(rankdata(days), rankdata(values))[0, 1]
    assert found.effect == pytest.approx(expected, abs=1e-12)
    assert found.measure == "Spearman's rho"
    assert found.shifted
    assert [level.images for level in found.levels] == [10] * 4 or sum(level.images for level in found.levels) == 40


def test_fields_of_a_well_do_not_count_as_independent() -> None:
    """Wells that differ, as they do under treatment, are no effect of their row or column."""
    rng, alarms, runs = np.random.default_rng(0), 0, 120
    for _ in range(runs):
        wells = rng.normal(size=(48, 1))
        scores = run((wells + 0.05 * rng.normal(size=(48, 9))).ravel(), rows="ABCDEF", columns=8, fields=9)
        found, _ = group_tests(scores, ["uncertainty"], alpha=0.05)
        assert {one.by for one in found} == {"well row", "well column"}
        alarms += any(one.shifted for one in found)
    assert alarms / runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)


def test_a_row_that_differs_on_every_plate_is_found() -> None:
    scores = run(np.random.default_rng(0).normal(size=96), plates=2, columns=12)
    scores.loc[scores["name"].str.contains("/D/"), "uncertainty"] += 3
    found, _ = group_tests(scores, ["uncertainty"], alpha=0.05)
    assert [one.by for one in found if one.shifted] == ["well row"]
    (row,) = (one for one in found if one.by == "well row")
    assert [level.name for level in row.levels] == ["A", "B", "C", "D"]
    assert max(row.levels, key=lambda level: level.median).name == "D"


def test_a_map_has_the_median_of_each_well() -> None:
    rng = np.random.default_rng(0)
    scores = run(rng.normal(size=2 * 3 * 11 * 4), plates=2, rows=("A", "B", "AA"), columns=11, fields=4)
    scores.loc[:3, "uncertainty"] = np.nan
    first, second = plate_maps(scores.sample(frac=1, random_state=0), ["uncertainty"])
    assert (first.plate, second.plate) == ("p0", "p1")
    assert first.rows == ["A", "B", "AA"]
    assert first.columns == [str(column) for column in range(1, 12)]
    assert first.wells[0].value is None
    for plate in (first, second):
        for well in plate.wells[1 if plate is first else 0 :]:
            start = f"{plate.plate}.ome.zarr/{well.row}/{well.column}/"
            own = [v for name, v in zip(scores["name"], scores["uncertainty"], strict=True) if name.startswith(start)]
            assert (well.images, well.value) == (4, float(np.median(own)))


def test_images_of_no_plate_have_no_place() -> None:
    names = pd.Series(["a.ome.zarr", "collection.ome.zarr/3", "p.ome.zarr/B/02/0"])
    assert plate_places(names)["plate"].tolist() == [None, None, "p"]
    assert plate_maps(pd.DataFrame({"name": names[:2], "uncertainty": [0.1, 0.2]}), ["uncertainty"]) == []


def test_the_row_of_an_image_goes_before_that_of_its_well_and_plate() -> None:
    scores = run(np.arange(48.0), plates=2)
    table = pd.DataFrame({"name": ["p0", "p1.ome.zarr", "p1/A/1", "p1.ome.zarr/A/2/0"], "batch": ["a", "b", "c", "c"]})
    (by_batch,) = (one for one in group_tests(scores, ["uncertainty"], table, alpha=0.05)[0] if one.by == "batch")
    assert {level.name: level.images for level in by_batch.levels} == {"a": 24, "b": 22}  # two of c are too few


def test_what_cannot_be_compared_is_said() -> None:
    scores = run(np.arange(24.0))
    table = pd.DataFrame({"name": scores["name"][:20], "id": [f"x{i}" for i in range(20)], "plate": ["a", "b"] * 10})
    found, notes = group_tests(scores, ["uncertainty"], table, alpha=0.05)
    assert {one.by for one in found} == {"well row", "well column", "plate"}
    assert notes[0] == "4 of 24 images are not in the table"
    assert notes[1].startswith("id is not compared")
    with pytest.raises(RefusedError, match="fits none of the 24 images"):
        group_tests(scores, ["uncertainty"], table.assign(name="elsewhere"), alpha=0.05)
