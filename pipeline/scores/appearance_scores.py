"""Scores of an image's appearance, in stored values; `chorus.pipeline.scores.image_quality` computes their sums.

References
----------
Noise: Immerkær, Computer Vision and Image Understanding 64:300 (1996), Eq. 3. Sharpness: Pech-Pacheco et al., ICPR 2000
(LAPV). Details: see `chorus.pipeline.scores.texture`. Mean chord: Cauchy; Underwood, Quantitative Stereology (1970):
2 area / crossings, and pi r / 2 for discs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from chorus.pipeline.scores.score import Score
from chorus.pipeline.scores.texture import SCALES, Detail

if TYPE_CHECKING:
    from chorus.pipeline.scores.image_quality import AppearanceTotal

INTENSITY_MEAN = Score(
    name="intensity_mean",
    label="mean intensity",
    meaning="mean of all pixels",
    digits=4,
    doubtful="both",
    unit="stored values",
    per="channel",
    detects=True,
    kind="intensity",
    by_group=True,
    reason="mean intensity of {part} {value:.4g}, {away}",
    from_appearance=lambda total, c: total.pixels[c][0],
)
INTENSITY_STD = Score(
    name="intensity_std",
    label="intensity standard deviation",
    meaning="standard deviation of all pixels",
    digits=4,
    doubtful="both",
    unit="stored values",
    per="channel",
    detects=True,
    kind="intensity",
    reason="intensity standard deviation of {part} {value:.4g}, {away}",
    from_appearance=lambda total, c: total.pixels[c][1],
)
BACKGROUND = Score(
    name="background",
    label="background",
    meaning="mean of the pixels outside of the predicted foreground",
    digits=4,
    doubtful="both",
    unit="stored values",
    per="channel",
    detects=True,
    kind="intensity",
    reason="background of {part} {value:.4g}, {away}",
    from_appearance=lambda total, c: total.background[c][0],
)
CONTRAST = Score(
    name="contrast",
    label="contrast",
    meaning="mean of the predicted foreground less the background, divided by `intensity_std`",
    digits=4,
    doubtful="both",
    per="channel",
    detects=True,
    kind="intensity",
    reason="contrast of {part} {value:.4g}, {away}",
    from_appearance=lambda total, c: total.by_std(total.foreground_mean(c) - total.background[c][0], c),
)
NOISE = Score(
    name="noise",
    label="noise",
    meaning="standard deviation of the noise (Immerkær 1996)",
    digits=4,
    doubtful="both",
    unit="stored values",
    per="channel",
    detects=True,
    kind="noise",
    reason="noise of {part} {value:.4g}, {away}",
    from_appearance=lambda total, c: math.sqrt(math.pi / 2) / 6 * total.noise[c][0],
)
SHARPNESS = Score(
    name="sharpness",
    label="sharpness",
    meaning="standard deviation of the Laplacian divided by `intensity_std`",
    digits=4,
    doubtful="both",
    per="channel",
    detects=True,
    kind="sharpness",
    by_group=True,
    reason="sharpness of {part} {value:.4g}, {away}",
    from_appearance=lambda total, c: total.by_std(total.laplacian[c][1], c),
)
OBJECT_RADIUS = Score(
    name="object_radius",
    label="object radius",
    meaning="radius of discs with the same mean chord as the predicted class; larger where objects touch",
    digits=4,
    doubtful="both",
    unit="pixels",
    per="class",
    detects=True,
    kind="object size",
    by_group=True,
    reason="{part} of {value:.1f} pixels radius, {away}",
    from_appearance=lambda total, k: total.disc_radius(k),
)

VARIATION = Score(
    name="variation",
    label="variation",
    meaning="log2 of `intensity_std` divided by `intensity_mean`",
    digits=2,
    doubtful="both",
    per="channel",
    texture=True,
    from_appearance=lambda total, c: _log2(total.by_std(total.pixels[c][0], c), -1),
)


def _log2(value: float, factor: float = 1.0) -> float:
    return factor * math.log2(value) if value > 0 else math.nan


def _of_scale(scale: int) -> tuple[Score, ...]:
    """Return the scores of details at one scale."""

    def said(name: str, label: str, meaning: str, value: Callable[[Detail, AppearanceTotal, int], float]) -> Score:
        def of(total: AppearanceTotal, channel: int) -> float | None:
            found = total.detail(scale, channel)
            return None if found is None else value(found, total, channel)

        return Score(
            name=f"{name}_{scale}",
            label=f"{label} of {scale} px",
            meaning=meaning,
            digits=2,
            doubtful="both",
            per="channel",
            texture=True,
            from_appearance=of,
        )

    size = f"log2 of the root mean square of {{}} Haar details of {scale} px, divided by `intensity_std`"
    straight = "horizontal and vertical"
    return (
        said("detail", "detail", size.format(straight), lambda d, total, c: _log2(total.by_std(d.straight, c))),
        said("diagonal", "diagonal", size.format("diagonal"), lambda d, total, c: _log2(total.by_std(d.diagonal, c))),
        said(
            "bright_detail",
            "bright detail",
            f"correlation of the strength of `detail_{scale}` with brightness, -1 to 1",
            lambda d, total, c: d.brightness,
        ),
    )


TEXTURE_SCORES = (*(score for scale in SCALES for score in _of_scale(scale)), VARIATION)
APPEARANCE_SCORES = (
    INTENSITY_MEAN,
    INTENSITY_STD,
    BACKGROUND,
    CONTRAST,
    NOISE,
    SHARPNESS,
    *TEXTURE_SCORES,
    OBJECT_RADIUS,
)
