"""All flags, each declared once: what `chorus flag` may state about an image, in order of display."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chorus.pipeline.scores.registry import with_current_names

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Flag:
    """A mark of an image; values of ``flags`` in ``flags.parquet`` and of the label ``flag`` of metrics.

    Attributes
    ----------
    label : name for display
    meaning : what holds for the images that have it, as half a sentence
    raised : condition, in Markdown
    former : name in tables of earlier versions
    """

    name: str
    label: str
    meaning: str
    raised: str
    former: str = ""


FLAGS = (
    Flag("failed", "failed", "the run has no result for them", "the run has no result for the image"),
    Flag(
        "empty",
        "empty",
        "nothing was found, which is rare in the reference set",
        "nothing was found, and that is rare in the reference set: (1 + empty) / (1 + images) is at most 0.05",
    ),
    Flag("poor", "poor", "the expected Dice is too low", "`expected_dice` is below tau"),
    Flag("uncertain", "uncertain", "more uncertain than good reference images are", "U is not below U_min"),
    Flag(
        "ood",
        "out of distribution",
        "unlike the reference set: nobody has checked such images",
        "`p_value` is at most 0.05; with fewer than 19 reference images, which cannot give such a p-value, when the "
        "image is more unusual than all of them",
        former="foreign",
    ),
)
FAILED, EMPTY, POOR, UNCERTAIN, OOD = (flag.name for flag in FLAGS)
FLAG_NAMES = tuple(flag.name for flag in FLAGS)
REVIEW = "review"
"""Not a flag but displayed like one: images that `chorus flag --budget` selected."""
_LABELS = {flag.name: flag.label for flag in FLAGS} | {REVIEW: "to review"}
_FORMER = {flag.former: flag.name for flag in FLAGS if flag.former}


def flag_label(name: str) -> str:
    """Return the display name of a flag, a status or `REVIEW`."""
    return _LABELS.get(name, name)


def current_flags(names: Iterable[str]) -> list[str]:
    """Return flags by their present names."""
    return [_FORMER.get(name, name) for name in names]


def with_current_flags(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a ``flags.parquet`` of any version, with the present names of columns and flags."""
    table = with_current_names(table)
    return table.assign(flags=table["flags"].map(current_flags)) if "flags" in table else table
