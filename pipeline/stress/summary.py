"""What became of Dice, expected Dice, bound and flags under each corruption, and whether people were warned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from chorus.pipeline.report.curves import Curve, Panel, draw_curves
from chorus.pipeline.stress.corruptions import CORRUPTIONS, LEVELS

CLEAN = "as it is"
FALL = 0.1
"""Dice that an image loses so that somebody must be warned."""
_WARNED = 0.95
COLUMNS = ("image", "corruption", "level", "degree", "dice")
"""Of every row; where there is a reference set also ``expected_dice``, ``dice_bound`` and ``flags``."""


class Promise(NamedTuple):
    """How many images lost more than `FALL` of their Dice, and of how many of them people were warned."""

    fallen: int
    warned: int

    @property
    def kept(self) -> bool:
        """Whether people were warned of 95 % of them."""
        return self.warned >= _WARNED * self.fallen


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of all images with what a person would have been told of each.

    Parameters
    ----------
    rows : see `COLUMNS`; an empty prediction where there is something has a Dice of 0

    Returns
    -------
    pandas.DataFrame
        With ``fall``, the Dice lost against the same image as it is; and where there are flags ``flagged``, whether it
        has any; ``held``, whether its Dice is not below its bound (one of 0 is withdrawn, and holds); and ``warned``:
        it is flagged, or its expected Dice is at most `FALL` above its Dice.
    """
    clean = rows[rows["corruption"] == CLEAN].set_index("image")["dice"]
    table = rows.assign(fall=rows["image"].map(clean) - rows["dice"])
    if "flags" not in rows:
        return table
    flagged = np.array([len(flags) > 0 for flags in rows["flags"]], bool)
    close = (rows["expected_dice"] - rows["dice"] <= FALL).to_numpy(bool)
    held = ~(rows["dice_bound"] > rows["dice"]).to_numpy(bool)
    return table.assign(flagged=flagged, held=held, warned=flagged | close)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per corruption and level, the image as it is first: means, and shares of the images.

    Parameters
    ----------
    table : of `judged`

    Returns
    -------
    pandas.DataFrame
        ``corruption``, ``level`` (0 as it is), ``degree``, ``images``, ``dice``, and where there are flags
        ``expected_dice``, ``flagged``, ``held``, ``fallen`` (images whose Dice fell by more than `FALL`) and ``warned``
        (how many of these).
    """
    order = {CLEAN: -1} | {one.name: place for place, one in enumerate(CORRUPTIONS)}
    groups = table.groupby(["corruption", "level"], sort=False)
    found = groups.agg(degree=("degree", "first"), images=("dice", "size"), dice=("dice", "mean"))
    if "flags" in table:
        found = found.join(groups[["expected_dice", "flagged", "held"]].mean())
        fallen = table[table["fall"] > FALL].groupby(["corruption", "level"], sort=False)
        counts = fallen.agg(fallen=("dice", "size"), warned=("warned", "sum"))
        found = found.join(counts).fillna({"fallen": 0, "warned": 0})
        found = found.astype({"fallen": int, "warned": int})
    found = found.reset_index()
    return found.sort_values(
        ["corruption", "level"], key=lambda keys: keys.map(order) if keys.name != "level" else keys
    )


def promise(table: pd.DataFrame) -> Promise:
    """Return whether people were warned of images that fell, of all corruptions together."""
    fallen = table[table["fall"] > FALL]
    return Promise(len(fallen), int(fallen["warned"].sum()))


def draw_stress(summary: pd.DataFrame) -> str:
    """Draw SVG with a panel per corruption: Dice, what was expected, and the share of the images that are flagged.

    Parameters
    ----------
    summary : of `summarise`
    """
    clean = summary[summary["corruption"] == CLEAN].iloc[0]
    lines = [("Dice", "dice"), ("expected Dice", "expected_dice"), ("flagged", "flagged"), ("bound holds", "held")]
    panels = []
    for one in CORRUPTIONS:
        rows = summary[summary["corruption"] == one.name]
        if rows.empty:
            continue
        degrees = ", ".join(f"{degree:g}" for degree in one.degrees)
        curves = [
            Curve(label, [(0.0, float(clean[name])), *_points(rows["level"].tolist(), rows[name].tolist())])
            for label, name in lines
            if name in summary
        ]
        panels.append(Panel(f"{one.label}: {degrees} {one.unit}", "level", curves, (0.0, 1.02)))
    images = int(clean["images"])
    return draw_curves(panels, f"{images} images under {len(panels)} corruptions at {len(LEVELS)} levels")


def _points(levels: Sequence[int], values: Sequence[float]) -> list[tuple[float, float]]:
    return [(float(level), float(value)) for level, value in zip(levels, values, strict=True)]
