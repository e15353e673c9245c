"""Judge the images of a run by their scores: expected Dice, out of distribution or not, and which to review."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.reference.distances import feature_matrix
from chorus.pipeline.reference.marginals import log_p, numbers, side_of
from chorus.pipeline.reference.ood import EMPTY
from chorus.pipeline.reference.reasons import detector_reasons
from chorus.pipeline.reference.reference import Reference
from chorus.pipeline.reference.threshold import Threshold, threshold
from chorus.pipeline.scores.flag_registry import EMPTY as EMPTY_FLAG
from chorus.pipeline.scores.flag_registry import FAILED, FLAG_NAMES, OOD, POOR, UNCERTAIN
from chorus.pipeline.scores.judgement_scores import OOD_SCORE

SIGMA = "sigma:"


@dataclass(frozen=True)
class Review:
    """Effect of reviewing a share of the images.

    Attributes
    ----------
    look_at : names, the most urgent first
    images : number of images that have a result
    left_share : upper estimate of the share below tau among the images that are not reviewed
    wanted : the largest acceptable share there
    needed : the smallest number of images to review so that `left_share` is below `wanted`
    ood_left : number of images that are out of distribution and not reviewed: the estimate does not hold for them
    """

    look_at: list[str]
    images: int
    left_share: float
    wanted: float
    needed: int
    ood_left: int


def flag_images(
    scores: pd.DataFrame,
    reference: Reference,
    features: pd.DataFrame | None = None,
    *,
    below: float | None = None,
    level: float = 0.05,
) -> pd.DataFrame:
    """Judge the images of a run by the reference set of its ensemble; images to review first come first.

    Parameters
    ----------
    scores : rows of ``scores.parquet``
    reference : of the ensemble that gave them
    features : columns ``name`` and ``features``, if there are any
    below : Dice that is too low, tau; by default the reference's
    level : images with p-values up to it are out of distribution: about this share of familiar images is flagged.
        If the reference set is too small to give such p-values, images that are more unusual than every reference image
        are flagged.

    Returns
    -------
    pandas.DataFrame
        A row per image: ``rank`` (1 is to be reviewed first; none for failed images), ``name``, ``status``,
        ``expected_dice``, ``dice_bound`` (0 for images that are out of distribution), ``risk`` (upper probability that
        Dice is below tau), ``p_value``, ``flags`` and ``reasons`` (lists), ``failure_score``, ``ood_score``
        (distinguishes images whose p-values are at the minimum), and ``sigma:<detector>``.

    Raises
    ------
    RefusedError
        If `below` is no Dice between 0 and 1, or the features do not fit the reference set.
    """
    return flag_parts([(scores, features)], reference, below=below, level=level)


def flag_parts(
    parts: Iterable[tuple[pd.DataFrame, pd.DataFrame | None]],
    reference: Reference,
    *,
    below: float | None = None,
    level: float = 0.05,
) -> pd.DataFrame:
    """As `flag_images`, of scores and features that come part by part: features of many images are gigabytes.

    Each image is judged by itself, so the parts do not change the result.
    """
    tau = reference.tau if below is None else below
    if not 0 < tau < 1:
        raise RefusedError(f"--below {tau:g}: give a Dice between 0 and 1")
    level = max(level, reference.minimum_p())
    judged = [_judged(scores, features, reference, tau, level) for scores, features in parts]
    return _ordered(pd.concat(judged, ignore_index=True))


def _judged(
    scores: pd.DataFrame, features: pd.DataFrame | None, reference: Reference, tau: float, level: float
) -> pd.DataFrame:
    """Return what is known of each image, in the order of `scores`."""
    scores = scores.reset_index(drop=True)
    failed = (scores["status"] == "failed").to_numpy(bool)
    empty = (scores["status"] == "empty").to_numpy(bool)
    table = scores[["name", "status"]].copy()
    table["failure_score"] = np.where(failed | empty, np.nan, reference.quality.failure_scores(scores))
    failure = table["failure_score"].to_numpy(np.float64)
    table["expected_dice"] = reference.quality.dice_of(failure)
    lower = np.where(failed | empty, np.nan, reference.bound.lower(scores))
    table["dice_bound"] = np.fmin(lower, table["expected_dice"])
    table["risk"] = np.where(failed, np.nan, reference.risk(failure, empty, tau))
    space = reference.detectors.space
    matrix = feature_matrix(features, list(scores["name"]), None if space is None else len(space.mean))
    sigmas = reference.detectors.measure(scores, empty, matrix)
    sigmas[failed] = np.nan
    table["p_value"] = reference.detectors.p_values(sigmas)
    table[OOD_SCORE.name] = np.where(table["p_value"].isna(), np.nan, reference.detectors.ood_scores(sigmas))
    # No bound holds for images unlike the reference images, except 0.
    table["dice_bound"] = table["dice_bound"].mask((table["p_value"] <= level) & table["dice_bound"].notna(), 0.0)
    raised = _raised(table, scores, reference, tau, level)
    table["flags"] = [[name for name in FLAG_NAMES if raised[name][row]] for row in range(len(table))]
    table["reasons"] = _reasons(table, scores, sigmas, reference, tau, level)
    return table.join(sigmas.drop(columns=EMPTY).add_prefix(SIGMA))


def review(flagged: pd.DataFrame, budget: float, *, wanted: float = 0.01) -> Review:
    """Select the images to review with a budget, and estimate the share below tau among the rest.

    Parameters
    ----------
    flagged : result of `flag_images`, in its order
    budget : share of the images with a result that are reviewed, 0 to 1; rounded up to whole images
    wanted : largest acceptable share below tau among the rest

    Raises
    ------
    RefusedError
        If `budget` is no such share.
    """
    if not 0 <= budget <= 1:
        raise RefusedError(f"--budget {budget:g}: give a share of the images between 0 and 1, such as 0.05")
    known = flagged[flagged["risk"].notna()]
    risk = known["risk"].to_numpy(np.float64)
    count = min(math.ceil(budget * len(known) - 1e-9), len(known))
    # left[k]: mean risk of the remaining images when k are reviewed.
    sums = np.append(np.cumsum(risk[::-1])[::-1], 0.0)
    left = np.append(sums[:-1] / np.arange(len(risk), 0, -1), 0.0)
    ood = [OOD in flags for flags in known["flags"].iloc[count:]]
    return Review(
        look_at=[str(name) for name in known["name"].iloc[:count]],
        images=len(known),
        left_share=float(left[count]),
        wanted=wanted,
        needed=int(np.flatnonzero(left < wanted)[0]),
        ood_left=sum(ood),
    )


def uncertainty_threshold(reference: Reference, tau: float) -> Threshold | None:
    """Return U_min of the reference set for any `tau`; None if the ensemble gives no uncertainty."""
    if "uncertainty" not in reference.scores:
        return None
    images = reference.frame()
    known = images[(images["status"] == "done") & images["uncertainty"].notna()]
    return threshold(known["uncertainty"].to_numpy(np.float64), known["dice"].to_numpy(np.float64), tau)


def _raised(
    table: pd.DataFrame, scores: pd.DataFrame, reference: Reference, tau: float, level: float
) -> dict[str, NDArray[np.bool_]]:
    """Return, by flag, which images it is raised for."""
    limit = uncertainty_threshold(reference, tau)
    uncertain = np.zeros(len(table), bool)
    if limit is not None and "uncertainty" in scores:
        uncertainty = pd.to_numeric(scores["uncertainty"]).to_numpy(np.float64, na_value=np.nan)
        uncertain = limit.beyond(uncertainty) & (table["status"] == "done").to_numpy(bool)
    nothing = (1 + sum(reference.empty)) / (1 + reference.images)
    return {
        FAILED: (table["status"] == "failed").to_numpy(bool),
        EMPTY_FLAG: (table["status"] == "empty").to_numpy(bool) & (nothing <= level),
        POOR: (table["expected_dice"] < tau).to_numpy(bool),
        UNCERTAIN: uncertain,
        OOD: (table["p_value"] <= level).to_numpy(bool),
    }


def _reasons(
    table: pd.DataFrame, scores: pd.DataFrame, sigmas: pd.DataFrame, reference: Reference, tau: float, level: float
) -> list[list[str]]:
    """Return per image the reasons of its flags; none without flags."""
    detectors = list(reference.detector_names)
    tails = {name: np.exp(log_p(sigmas[name].to_numpy(np.float64), side_of(name))) for name in detectors}
    limit = uncertainty_threshold(reference, tau)
    values = dict(zip(detectors, numbers(scores, detectors).T, strict=True))
    away = {name: sigmas[name].to_numpy(np.float64) for name in detectors}
    expected = table["expected_dice"].to_numpy(np.float64)
    messages = scores["message"].fillna("") if "message" in scores else pd.Series("", index=scores.index)
    reasons: list[list[str]] = []
    for row, flags in enumerate(table["flags"]):
        own_reasons = []
        if FAILED in flags:
            own_reasons.append(str(messages.iloc[row]) or "it has no result")
        if EMPTY_FLAG in flags:
            own_reasons.append(f"nothing found, as in {sum(reference.empty)} of {reference.images} reference images")
        if POOR in flags:
            own_reasons.append(f"expected Dice {expected[row]:.2f}, below {tau:g}")
        if UNCERTAIN in flags and limit is not None:
            own_reasons.append(_beyond(float(scores["uncertainty"].iloc[row]), limit))
        if {OOD, POOR} & set(flags):
            there = [name for name in detectors if not math.isnan(tails[name][row])]
            own, far, tail = (
                {name: float(values_of[name][row]) for name in there} for values_of in (values, away, tails)
            )
            own_reasons += detector_reasons(own, far, tail, level)
        reasons.append(own_reasons)
    return reasons


def _beyond(uncertainty: float, limit: Threshold) -> str:
    if limit.minimum is None:
        return f"uncertainty {uncertainty:.3f}, above that of every reference image (at most {limit.worst_seen:.3f})"
    return f"uncertainty {uncertainty:.3f}, not below U_min {limit.minimum:.3f}"


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Sort by risk, highest first; ties by failure score, then by how unusual an image is, then by name."""
    keys = ["risk", "failure_score", OOD_SCORE.name, "name"]
    ordered = table.sort_values(keys, ascending=[False, False, False, True], na_position="last").reset_index(drop=True)
    ranks = pd.array(range(1, len(ordered) + 1), dtype="Int64")
    ordered.insert(0, "rank", pd.Series(ranks).where(ordered["risk"].notna()))
    first = ["rank", "name", "status", "expected_dice", "dice_bound", "risk", "p_value", "flags", "reasons"]
    return ordered[[*first, *(name for name in ordered.columns if name not in first)]]
