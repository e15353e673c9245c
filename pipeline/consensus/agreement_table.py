"""Tables on the annotators of a run: a row per image and annotator, a summary per annotator, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chorus.pipeline.consensus.agreement import apart
from chorus.pipeline.consensus.ground_truth import ExpertRow, ImageTruth

_TEXTS = ("image", "expert", "status")
_NUMBERS = ("dice", "sensitivity", "specificity", "dice_others", "among_others", "ap50", "mean_ap")
_AGAINST = {"ap50": "ap50", "mean_ap": "map"}


@dataclass(frozen=True, slots=True)
class ExpertSummary:
    """One annotator over all images.

    Attributes
    ----------
    images, missing : number of images drawn, and not drawn
    dice, minimum_dice : mean and minimum Dice with the estimate; None if the annotator drew nothing usable
    dice_others : mean over images of the mean Dice with the other annotators; None if nobody else drew any of them
    share : median of that as a share of the others' own Dice if the annotator stands apart, else None
    """

    expert: str
    images: int
    missing: int
    dice: float | None
    minimum_dice: float | None
    dice_others: float | None
    share: float | None


def agreement_table(truths: Sequence[ImageTruth]) -> pd.DataFrame:
    """Return a row per image and annotator.

    Columns: ``image``, ``expert``, ``status`` (``drawn``, ``alone``: agrees with nobody, ``missing``), then numbers as
    in `chorus.pipeline.consensus.ground_truth.ExpertRow`; ``ap50`` and ``map`` only for instances.
    """
    rows: list[dict[str, Any]] = []
    for truth in truths:
        drawn = {row.expert: row.model_dump() for row in truth.experts}
        for expert in sorted([*drawn, *truth.missing]):
            rows.append({"image": truth.name, "expert": expert, "status": "missing"} | drawn.get(expert, {}))
    frame = pd.DataFrame(rows, columns=[*_TEXTS, *_NUMBERS])
    for name in _NUMBERS:
        frame[name] = pd.to_numeric(frame[name])
    if frame["ap50"].isna().all():
        return frame.drop(columns=list(_AGAINST))
    return frame.rename(columns=_AGAINST)


def summarise(truths: Sequence[ImageTruth], experts: Sequence[str]) -> list[ExpertSummary]:
    """Summarise every annotator over all images, in the order given."""
    shares = apart((names_of(truth), matrix_of(truth)) for truth in truths)
    summaries = []
    for expert in experts:
        rows = [row for truth in truths for row in truth.experts if row.expert == expert]
        missing = sum(expert in truth.missing for truth in truths)
        dices = [row.dice for row in rows]
        others = [row.dice_others for row in rows if row.dice_others is not None]
        summaries.append(
            ExpertSummary(
                expert=expert,
                images=len(rows),
                missing=missing,
                dice=float(np.mean(dices)) if dices else None,
                minimum_dice=min(dices, default=None),
                dice_others=float(np.mean(others)) if others else None,
                share=shares.get(expert),
            )
        )
    return summaries


def warnings(truths: Sequence[ImageTruth], summaries: Sequence[ExpertSummary]) -> list[str]:
    """Return a sentence per drawing that agrees with nobody, and per annotator who stands apart over all images."""
    messages = [
        f"{truth.name}: the drawing of {row.expert} agrees with nobody (Dice {row.dice_others or 0:.2f} with the "
        f"others, who have {row.among_others or 0:.2f} among themselves); look whether it is of another image"
        for truth, row in drawings_alone(truths)
    ]
    messages += [
        f"{one.expert} stands apart: over {one.images} images its Dice with the others is {one.share:.0%} of what they "
        "have among themselves; look whether the task was understood alike"
        for one in summaries
        if one.share is not None
    ]
    return messages


def drawings_alone(truths: Sequence[ImageTruth]) -> list[tuple[ImageTruth, ExpertRow]]:
    """Return the drawings that agree with nobody."""
    return [(truth, row) for truth in truths for row in truth.experts if row.status == "alone"]


def names_of(truth: ImageTruth) -> list[str]:
    """Return the names of the annotators of an image."""
    return [row.expert for row in truth.experts]


def matrix_of(truth: ImageTruth) -> NDArray[np.float64]:
    """Return the Dice of every two annotators of an image.

    Returns
    -------
    NDArray[np.float64]
        (experts, experts), 0 to 1.
    """
    return np.array(truth.pairwise)
