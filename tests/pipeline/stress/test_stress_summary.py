"""What is said of a stress test, against counting by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from chorus.pipeline.stress.summary import CLEAN, Promise, draw_stress, judged, promise, summarise

NAMES = ("image", "corruption", "level", "degree", "dice", "expected_dice", "dice_bound", "flags")
ROWS = pd.DataFrame(
    [
        ("a", CLEAN, 0, 0.0, 0.9, 0.88, 0.8, []),
        ("b", CLEAN, 0, 0.0, 0.8, 0.85, 0.7, []),
        ("a", "noise", 1, 0.08, 0.85, 0.84, 0.7, []),  # lost little
        ("b", "noise", 1, 0.08, 0.5, 0.8, 0.6, []),  # fell, nobody is warned, and the bound does not hold
        ("a", "noise", 2, 0.12, 0.4, 0.8, 0.0, ["out_of_distribution"]),  # fell, flagged, bound withdrawn
        ("b", "noise", 2, 0.12, 0.3, 0.35, 0.2, []),  # fell as was expected
        ("a", "defocus", 1, 1.0, 0.3, None, None, ["empty"]),
    ],
    columns=NAMES,
)


def test_warnings_and_bounds_are_counted() -> None:
    table = judged(ROWS)
    assert table["fall"].round(9).tolist() == [0, 0, 0.05, 0.3, 0.5, 0.5, 0.6]
    assert table["warned"].tolist() == [True, True, True, False, True, True, True]
    assert table["held"].tolist() == [True, True, True, False, True, True, True]
    assert promise(table) == Promise(4, 3)
    assert not promise(table).kept
    assert promise(table[table["image"] == "a"]) == Promise(2, 2)
    assert promise(table[table["image"] == "a"]).kept


def test_a_row_per_corruption_and_level_in_their_order() -> None:
    found = summarise(judged(ROWS)).set_index(["corruption", "level"])
    assert list(found.index) == [(CLEAN, 0), ("noise", 1), ("noise", 2), ("defocus", 1)]
    first = found.loc[("noise", 1)]
    assert first["dice"] == pytest.approx(0.675)
    assert first["expected_dice"] == pytest.approx(0.82)
    assert (first["images"], first["flagged"], first["held"]) == (2, 0, 0.5)
    assert (first["fallen"], first["warned"]) == (1, 0)
    assert (found.loc[("noise", 2)]["fallen"], found.loc[("noise", 2)]["warned"]) == (2, 2)
    assert found.loc[(CLEAN, 0)]["fallen"] == 0


def test_without_a_reference_set_there_is_dice_alone() -> None:
    table = judged(ROWS[list(NAMES[:5])])
    assert "warned" not in table
    found = summarise(table)
    assert set(found.columns) == {"corruption", "level", "degree", "images", "dice"}
    picture = draw_stress(found)
    assert "Gaussian noise: 0.08, 0.12" in picture
    assert "expected Dice" not in picture
    assert "expected Dice" in draw_stress(summarise(judged(ROWS)))
