"""Tables of a run that never was: images of some difficulty, on which scores and Dice depend, skewed as real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

WIDTH = 24


@dataclass(frozen=True)
class Tables:
    scores: pd.DataFrame
    evaluation: pd.DataFrame
    features: pd.DataFrame


def simulated(
    images: int,
    seed: int,
    *,
    difficulty: float = 0.0,
    feature_shift: float = 0.0,
    empty: int = 0,
    prefix: str = "image",
) -> Tables:
    """A run and its evaluation.

    Parameters
    ----------
    images : in all, the last `empty` of which have no foreground
    difficulty : added to that of each image, which is exponential with mean 1; Dice falls by 0.05 with each unit
    feature_shift : added to all features, which have a standard deviation of about 2
    """
    rng = np.random.default_rng(seed)
    hard = rng.exponential(1.0, images) + difficulty
    noise = rng.normal(size=(images, 4))
    dice = np.clip(0.95 - 0.05 * hard + 0.01 * noise[:, 0], 0, 1)
    frame = pd.DataFrame(
        {
            "name": [f"{prefix}-{index:04d}" for index in range(images)],
            "status": "done",
            "message": "",
            "uncertainty": np.clip(0.02 + 0.01 * hard + 0.004 * noise[:, 1], 1e-4, 0.25),
            "epistemic": np.clip(0.005 + 0.004 * hard + 0.001 * noise[:, 2], 1e-5, 0.25),
            "aleatoric": np.clip(0.015 + 0.006 * hard + 0.002 * noise[:, 1], 1e-5, 0.25),
            "pairwise_dice": np.clip(0.98 - 0.04 * hard + 0.01 * noise[:, 3], 0, 1),
            "area_fraction:nucleus": np.clip(rng.lognormal(-2, 0.4, images), 0, 1),
        }
    )
    nothing = np.arange(images) >= images - empty
    frame.loc[nothing, ["uncertainty", "epistemic", "aleatoric"]] = np.nan
    frame.loc[nothing, "status"] = "empty"
    frame.loc[nothing, "pairwise_dice"] = 1.0
    frame.loc[nothing, "area_fraction:nucleus"] = 0.0
    # Features vary along a few directions, much more than across them.
    loading = np.random.default_rng(99).normal(size=(4, WIDTH))
    features = rng.normal(size=(images, 4)) @ loading + 0.3 * rng.normal(size=(images, WIDTH)) + feature_shift
    evaluation = pd.DataFrame({"name": frame["name"], "dice": np.where(nothing, 1.0, dice)})
    return Tables(frame, evaluation, pd.DataFrame({"name": frame["name"], "features": list(features)}))
