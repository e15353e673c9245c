"""Why an image is flagged, in words that a person at the microscope can check."""

from __future__ import annotations

from collections.abc import Mapping

from chorus.pipeline.reference.marginals import CLASS_DICE, FOREGROUND
from chorus.pipeline.reference.ood import FEATURES, OUTSIDE, TOGETHER
from chorus.pipeline.scores.image_quality import RADIUS

_MOST = 3
_WORDS = {
    "uncertainty": "uncertainty",
    "epistemic": "epistemic variance",
    "aleatoric": "aleatoric variance",
    "entropy": "entropy",
    "uncertainty_patch_max": "uncertainty of the worst patch",
    "flow_variance": "disagreement about the flows' directions",
}

_LOOKS = {
    "intensity_mean": "mean intensity",
    "intensity_std": "spread of the intensity",
    "background": "background",
    "contrast": "contrast",
    "noise": "noise",
    "sharpness": "sharpness",
}


def detector_reasons(
    values: Mapping[str, float], sigmas: Mapping[str, float], tails: Mapping[str, float], level: float
) -> list[str]:
    """What the detectors say of an image, the strangest first, at most three.

    Parameters
    ----------
    values : its scores
    sigmas, tails : by detector, its sigma and the tail beyond it (a probability), without those that say nothing
    level : tails above are no reason; where all are, the strangest is given alone
    """
    strange = sorted((name for name in tails if tails[name] <= level), key=lambda name: (tails[name], name))
    if not strange and tails:
        strange = [min(tails, key=lambda name: (tails[name], name))]
    said: dict[str, str] = {}
    for name in strange:
        # Both distances of features are one thing to a person, and so are the two of the members' Dice.
        said.setdefault(_subject(name), _sentence(name, values.get(name, float("nan")), sigmas[name]))
    return list(said.values())[:_MOST]


def percent(share: float) -> str:
    """``34 %``; a digit more below 10 %."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def _subject(name: str) -> str:
    if name in (FEATURES, OUTSIDE):
        return FEATURES
    return "pairwise_dice" if name == "pairwise_dice_min" else name


def _sentence(name: str, value: float, sigma: float) -> str:
    away = f"{_size(sigma)} sigma"
    if name in (FEATURES, OUTSIDE):
        return f"features {away} from the reference set"
    if name == TOGETHER:
        return f"scores in an unusual relation, {away} from the reference set"
    side = "above" if sigma >= 0 else "below"
    if name.startswith(FOREGROUND):
        return f"{name.removeprefix(FOREGROUND)} covers {percent(value)} of the image, {away} {side} the reference set"
    field, _, of = name.partition(":")
    if field == RADIUS:
        return f"{of} of {value:.1f} pixels radius, {away} {side} the reference set"
    if field in _LOOKS:
        return f"{_LOOKS[field]} of {of} {value:.4g}, {away} {side} the reference set"
    if name == "pairwise_dice_min":
        return f"two members disagree on {percent(1 - value)} of the foreground"
    if name.startswith("pairwise_dice"):
        what = name.removeprefix(CLASS_DICE) if name.startswith(CLASS_DICE) else "the foreground"
        return f"members disagree on {percent(1 - value)} of {what}"
    return f"{_WORDS.get(name, name)} {value:.3f}, {away} {side} the reference set"


def _size(sigma: float) -> str:
    size = abs(sigma)
    if size > 1000:
        return "more than 1000"
    return f"{size:.0f}" if size >= 9.95 else f"{size:.1f}"
