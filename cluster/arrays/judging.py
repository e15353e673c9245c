"""Compares one image with a reference set: flags, reasons, and the expected Dice."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from chorus.cluster.state.documents import ImageRow
from chorus.cluster.state.scores import scores_frame
from chorus.pipeline.inference.feature_records import ImageFeatures
from chorus.pipeline.reference.flags import flag_images
from chorus.pipeline.reference.reference import Reference
from chorus.pipeline.scores.registry import STATED


@dataclass(frozen=True)
class Judgement:
    """The result of `chorus flag` for one image.

    Attributes
    ----------
    flags : what is the matter; empty where nothing is
    reasons : the same in words
    expected_dice, dice_bound, risk, p_value : `chorus.pipeline.scores.registry.STATED`; None where there is none
    """

    flags: tuple[str, ...]
    reasons: tuple[str, ...]
    expected_dice: float | None
    dice_bound: float | None
    risk: float | None
    p_value: float | None


def judged(row: ImageRow, features: ImageFeatures, reference: Reference) -> Judgement:
    """Compare an image, by its row of scores and its features, with a reference set."""
    known = pd.DataFrame({"name": [row.name], "features": [features.mean]})
    flagged = flag_images(scores_frame([row]), reference, known).iloc[0]
    values = {one.name: None if pd.isna(flagged[one.name]) else float(flagged[one.name]) for one in STATED}
    return Judgement(flags=tuple(flagged["flags"]), reasons=tuple(flagged["reasons"]), **values)
