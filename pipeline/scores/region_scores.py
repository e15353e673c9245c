"""Scores that follow from the prediction alone; `chorus.pipeline.scores.image_scores` computes their sums.

References
----------
U and its parts: Griebel et al., deepflash2, Nature Communications 14:1679 (2023), Eq. 3 to 5. Entropy, pairwise Dice
and patches: Zenk et al., Medical Image Analysis 101:103392 (2025); patches after Kahl et al., ICLR 2024
(arXiv:2401.08501), where they slide over the image; here they lie on a grid, so that each is in one region.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chorus.pipeline.scores.score import Score

if TYPE_CHECKING:
    from chorus.pipeline.scores.image_scores import RegionTotal


def _area_variation(total: RegionTotal, k: int) -> float | None:
    """Return the population standard deviation of the members' areas divided by their mean, from exact integers."""
    areas = [overlap[member] for member, overlap in enumerate(total.sums.overlaps[k])]
    area, squares = sum(areas), sum(own * own for own in areas)
    return math.sqrt(len(areas) * squares - area * area) / area if len(areas) > 1 and area else None


UNCERTAINTY = Score(
    name="uncertainty",
    label="uncertainty U",
    meaning="mean predictive variance over the predicted foreground",
    digits=4,
    doubtful="high",
    unit="0 to 0.25",
    listed=True,
    quality=True,
    detects=True,
    kind="uncertainty",
    by_group=True,
    reason="uncertainty {value:.3f}, {away}",
    from_regions=lambda total, _: total.mean(total.sums.uncertainty),
)
EPISTEMIC = Score(
    name="epistemic",
    label="epistemic variance",
    meaning="the part of U that is disagreement between samples of members and augmentations",
    digits=4,
    doubtful="high",
    unit="0 to 0.25",
    listed=True,
    quality=True,
    detects=True,
    kind="uncertainty",
    from_regions=lambda total, _: total.mean(total.sums.epistemic),
)
ALEATORIC = Score(
    name="aleatoric",
    label="aleatoric variance",
    meaning="the part of U that each sample states of itself",
    digits=4,
    doubtful="high",
    unit="0 to 0.25",
    quality=True,
    detects=True,
    kind="uncertainty",
    from_regions=lambda total, _: total.mean(total.sums.aleatoric),
)
ENTROPY = Score(
    name="entropy",
    label="entropy",
    meaning="mean predictive entropy over the predicted foreground, as a fraction of its maximum",
    digits=3,
    doubtful="high",
    unit="0 to 1",
    quality=True,
    detects=True,
    kind="uncertainty",
    from_regions=lambda total, _: total.mean(total.sums.entropy),
)
PATCH_MAXIMUM = Score(
    name="patch_uncertainty_max",
    label="maximum patch uncertainty",
    meaning="the highest mean predictive variance of a patch of 16 x 16 pixels on a grid, all its pixels counted",
    digits=3,
    doubtful="high",
    unit="0 to 0.25",
    quality=True,
    detects=True,
    kind="uncertainty",
    former="uncertainty_patch_max",
    from_regions=lambda total, _: total.patch_maximum,
)
PAIRWISE_DICE = Score(
    name="pairwise_dice",
    label="pairwise Dice",
    meaning="mean Dice between the segmentations of two members, over pairs and foreground classes",
    digits=3,
    doubtful="low",
    unit="0 to 1",
    listed=True,
    quality=True,
    detects=True,
    kind="uncertainty",
    by_group=True,
    reason="members disagree on {complement} of the foreground",
    from_regions=lambda total, _: total.mean_dice,
)
PAIRWISE_DICE_MINIMUM = Score(
    name="pairwise_dice_min",
    label="minimum pairwise Dice",
    meaning="the lowest Dice of any two members and any foreground class",
    digits=3,
    doubtful="low",
    unit="0 to 1",
    quality=True,
    detects=True,
    kind="uncertainty",
    reason="two members disagree on {complement} of the foreground",
    subject="pairwise_dice",
    from_regions=lambda total, _: min((dice for pairs in total.dices for dice in pairs), default=None),
)
CLASS_DICE = Score(
    name="pairwise_dice",
    label="pairwise Dice",
    meaning="mean Dice between the segmentations of one class by two members, over pairs",
    digits=3,
    doubtful="low",
    unit="0 to 1",
    per="class",
    quality=True,
    detects=True,
    kind="uncertainty",
    reason="members disagree on {complement} of {part}",
    from_regions=lambda total, k: total.class_dices[k],
)
CLASS_DICE_MINIMUM = Score(
    name="pairwise_dice_min",
    label="minimum pairwise Dice",
    meaning="the lowest Dice of any two members for one class",
    digits=3,
    doubtful="low",
    unit="0 to 1",
    per="class",
    reason="two members disagree on {complement} of {part}",
    from_regions=lambda total, k: min(total.dices[k], default=None),
)
AREA_FRACTION = Score(
    name="area_fraction",
    label="area fraction",
    meaning="predicted pixels of the class divided by all pixels",
    digits=3,
    doubtful="both",
    unit="0 to 1",
    per="class",
    listed=True,
    detects=True,
    kind="prior",
    by_group=True,
    reason="{part} covers {percent} of the image, {away}",
    former="foreground_fraction",
    from_regions=lambda total, k: total.sums.class_pixels[k] / total.sums.pixels,
)
AREA_VARIATION = Score(
    name="area_cv",
    label="area coefficient of variation",
    meaning="standard deviation of the members' own areas of the class divided by their mean, the relative error bar "
    "of its area (CV_s of Roy et al., NeuroImage 195:11, 2019); null with one member, and where none found the class",
    digits=3,
    doubtful="high",
    unit="0 or more",
    per="class",
    reason="members' areas of {part} vary by {percent}, {away}",
    from_regions=_area_variation,
)
FLOW_VARIANCE = Score(
    name="flow_variance",
    label="flow variance",
    meaning="mean circular variance of the flows' directions over the predicted foreground; of ensembles with flows",
    digits=4,
    doubtful="high",
    unit="0 to 1",
    detects=True,
    kind="uncertainty",
    reason="disagreement about the flows' directions {value:.3f}, {away}",
    from_regions=lambda total, _: None if total.sums.flow_variance is None else total.mean(total.sums.flow_variance),
)
RAY_VARIATION = Score(
    name="ray_variation",
    label="ray variation",
    meaning="mean coefficient of variation of the rays' lengths over the predicted foreground; of ensembles with rays",
    digits=4,
    doubtful="high",
    unit="0 or more",
    detects=True,
    kind="uncertainty",
    reason="disagreement about the outlines of objects {value:.3f}, {away}",
    from_regions=lambda total, _: total.disagreement("ray_variation"),
)
BOUNDARY_EPISTEMIC = Score(
    name="boundary_epistemic",
    label="boundary variance",
    meaning="mean variance between samples of the boundary's probability over the predicted foreground; of ensembles "
    "with boundaries",
    digits=4,
    doubtful="high",
    unit="0 to 0.25",
    detects=True,
    kind="uncertainty",
    reason="disagreement about boundaries {value:.3f}, {away}",
    from_regions=lambda total, _: total.disagreement("boundary_epistemic"),
)
AFFINITY_VARIANCE = Score(
    name="affinity_variance",
    label="affinity variance",
    meaning="mean variance between samples of the affinities over the predicted foreground; of ensembles with "
    "affinities",
    digits=4,
    doubtful="high",
    unit="0 to 0.25",
    detects=True,
    kind="uncertainty",
    reason="disagreement about which pixels are of one object {value:.3f}, {away}",
    from_regions=lambda total, _: total.disagreement("affinity_variance"),
)

REGION_SCORES = (
    UNCERTAINTY,
    EPISTEMIC,
    ALEATORIC,
    ENTROPY,
    PATCH_MAXIMUM,
    PAIRWISE_DICE,
    PAIRWISE_DICE_MINIMUM,
    CLASS_DICE,
    CLASS_DICE_MINIMUM,
    AREA_FRACTION,
    AREA_VARIATION,
    FLOW_VARIANCE,
    RAY_VARIATION,
    BOUNDARY_EPISTEMIC,
    AFFINITY_VARIANCE,
)
