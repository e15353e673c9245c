"""Scores that `chorus flag` estimates from an image's scores and the reference set, or `chorus evaluate` measures."""

from __future__ import annotations

from chorus.pipeline.scores.score import Score

EXPECTED_DICE = Score(
    name="expected_dice",
    label="expected Dice",
    meaning="mean Dice of reference images with such scores; null where nothing was found",
    digits=2,
    doubtful="low",
    unit="0 to 1",
    table="flags",
    listed=True,
    believe="the image is not `ood`; for those that are it is a guess that may be far too high, though their order "
    "still tells much",
    reference="dice",
    is_dice=True,
)
DICE_BOUND = Score(
    name="dice_bound",
    label="Dice lower bound",
    meaning="Dice that is reached with probability 1 - alpha (0.9 unless calibrated otherwise); 0 for `ood` images, of "
    "which nothing can be promised",
    digits=2,
    doubtful="low",
    unit="0 to 1",
    table="flags",
    listed=True,
    believe="the image comes from the source of the reference images",
    is_dice=True,
)
RISK = Score(
    name="risk",
    label="risk",
    meaning="probability that Dice is below tau, rather too high than too low",
    digits=2,
    doubtful="high",
    unit="0 to 1",
    table="flags",
    listed=True,
    believe="as above",
)
MEASURED_DICE = Score(
    name="measured_dice",
    label="measured Dice",
    meaning="Dice against the truth, mean over foreground classes (column `dice` of `evaluation.parquet`)",
    digits=2,
    doubtful="low",
    unit="0 to 1",
    table="evaluation",
    listed=True,
    is_dice=True,
)
P_VALUE = Score(
    name="p_value",
    label="p-value",
    meaning="how often an image of the reference's source is at least as unusual",
    digits=3,
    doubtful="low",
    unit="0 to 1",
    table="flags",
    listed=True,
    believe="always: it is what tells you whether to believe the others",
)
FAILURE_SCORE = Score(
    name="failure_score",
    label="failure score",
    meaning="the loss of Dice that the most pessimistic score predicts",
    digits=3,
    doubtful="high",
    unit="unbounded",
    table="flags",
    believe="as a ranking",
    reference="failure_score",
)
OOD_SCORE = Score(
    name="ood_score",
    label="out-of-distribution score",
    meaning="the p-value without its minimum, -log10 of the combined tail: tells images apart that are more unusual "
    "than every reference image",
    digits=2,
    doubtful="high",
    unit="0 or more",
    table="flags",
    believe="as a ranking",
    former="strangeness",
)
SAMPLES = Score(
    name="samples",
    label="samples per tile",
    meaning="mean number of samples (members times augmentations) of a tile, with `--effort adaptive`",
    digits=1,
    doubtful="neither",
    table="run",
)
DIAMETER = Score(
    name="diameter_px",
    label="estimated diameter",
    meaning="median diameter of objects in pixels, by which the image was scaled, with `--diameter auto`",
    digits=1,
    doubtful="neither",
    table="run",
)
TILES = Score(
    name="tiles",
    label="tiles",
    meaning="number of tiles that were evaluated; those that two regions share count twice",
    digits=0,
    doubtful="neither",
    table="run",
)
TOGETHER = Score(
    name="scores_together",
    label="relation of the scores",
    meaning="the scores stand in an unusual relation: Mahalanobis distance of their sigmas",
    digits=2,
    doubtful="high",
    table="sigma",
    detects=True,
    reason="scores in an unusual relation, {sigma} from the reference set",
)
TEXTURE = Score(
    name="texture",
    label="texture",
    meaning="Mahalanobis distance of details, diagonals, bright details and variation of all channels together, "
    "covariance after Ledoit and Wolf (2004); of every ensemble, whatever its members are",
    digits=2,
    doubtful="high",
    table="sigma",
    detects=True,
    reason="texture {sigma} from the reference set",
)
FEATURES = Score(
    name="features",
    label="encoder features",
    meaning="Mahalanobis distance of the encoders' pooled features within their principal components (one per three "
    "images, at most 32), covariance after Ledoit and Wolf (2004)",
    digits=2,
    doubtful="high",
    table="sigma",
    detects=True,
    reason="features {sigma} from the reference set",
)
FEATURES_RESIDUAL = Score(
    name="features_residual",
    label="encoder features outside of the components",
    meaning="what the components leave over: images that are out of distribution often differ where the others do not "
    "differ at all",
    digits=2,
    doubtful="high",
    table="sigma",
    detects=True,
    reason="features {sigma} from the reference set",
    subject="features",
)
EMPTY = Score(
    name="empty",
    label="empty prediction",
    meaning="nothing was found",
    digits=2,
    doubtful="high",
    table="sigma",
    detects=True,
    kind="prior",
)

ESTIMATES = (EXPECTED_DICE, DICE_BOUND, RISK, MEASURED_DICE, P_VALUE)
"""In order of display, before all other scores."""
FURTHER = (FAILURE_SCORE, OOD_SCORE, SAMPLES, DIAMETER, TILES, TOGETHER, TEXTURE, FEATURES, FEATURES_RESIDUAL, EMPTY)
