"""Quality of an ensemble: its scores on labelled reference images, and what follows from them.

`calibrate_from` makes a `Reference` from tables; `chorus.pipeline.reference.storage` stores it beside
``ensemble.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, JsonValue

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.metrics.calibration_error import PixelCalibration
from chorus.pipeline.reference.conformal import ASSUMPTION, failure_probability, residual_quantile, split_for_bound
from chorus.pipeline.reference.distances import feature_matrix
from chorus.pipeline.reference.marginals import all_scores, numbers, quality_scores, side_of
from chorus.pipeline.reference.ood import Detectors
from chorus.pipeline.reference.quality import QualityModel, cross_fitted, fit_quality
from chorus.pipeline.reference.threshold import Threshold, threshold

FORMAT: Literal["chorus-reference/1"] = "chorus-reference/1"
FEWEST = 10
COMPARED = ("tile", "overlap", "augmentations", "effort")
"""Settings of a run on which its scores depend, besides the ensemble."""
_SHOWN = 5


class Bound(BaseModel):
    """A lower bound for Dice by split conformal prediction: what `model` expects, less `quantile`, at least 0.

    Attributes
    ----------
    alpha : share of images whose Dice may be below their bound
    model : fitted to one part of the reference images
    quantile : of its residuals (expected - true) on the other part; None with too few images; the bound is then 0
    images : number of images of the other part
    assumption : under which it holds
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float
    model: QualityModel
    quantile: float | None
    images: int
    assumption: str = ASSUMPTION

    def lower(self, scores: pd.DataFrame) -> NDArray[np.float64]:
        """Return the Dice that is reached with probability 1 - alpha at least.

        Parameters
        ----------
        scores : a row per image

        Returns
        -------
        NDArray[np.float64]
            (images,), 0 to 1; NaN without scores.
        """
        expected = self.model.expected_dice(scores)
        # Without a quantile the only bound is that Dice is not negative.
        return np.maximum(expected - (1.0 if self.quantile is None else self.quantile), 0.0)


class Reference(BaseModel):
    """Results of an ensemble on labelled images that it was not trained on; lists are in the order of `names`.

    Attributes
    ----------
    ensemble : hash of the ensemble that gave the scores
    tau : required Dice
    names : of the images, sorted
    dice : of each
    empty : whether nothing was predicted as foreground
    scores : by column of ``scores.parquet``; None if an image has none
    failure_scores, expected_dice : of models fitted without the image; None if the prediction is empty
    quality : model of failure scores and expected Dice of new images
    bound : for the Dice of new images
    thresholds : by score
    detector_scores, detector_names : of the detectors of images that are out of distribution
    notes : what a user should know about it, in sentences
    settings : of the run that gave the scores, those of `COMPARED`; empty in references of earlier versions
    pixels : calibration of the probabilities, and the temperature of each class that would correct them; None if the
        run kept no probabilities, and in references of earlier versions
    detectors : the detectors themselves, stored in a file of arrays
    features : (images, d) float32 encoder features, NaN for images without, stored there too; None without any, and in
        references of earlier versions
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["chorus-reference/1"] = FORMAT
    ensemble: str
    tau: float
    names: list[str]
    dice: list[float]
    empty: list[bool]
    scores: dict[str, list[float | None]]
    failure_scores: list[float | None]
    expected_dice: list[float | None]
    quality: QualityModel
    bound: Bound
    thresholds: dict[str, Threshold]
    detector_scores: list[str]
    detector_names: list[str]
    notes: list[str]
    settings: dict[str, JsonValue] = {}
    pixels: PixelCalibration | None = None
    detectors: InstanceOf[Detectors] = Field(exclude=True, repr=False)
    features: InstanceOf[np.ndarray] | None = Field(default=None, exclude=True, repr=False)

    @property
    def images(self) -> int:
        """Number of reference images."""
        return len(self.names)

    def frame(self) -> pd.DataFrame:
        """Return a row per image: ``name``, ``status``, ``dice``, ``failure_score``, ``expected_dice``, scores."""
        status = np.where(np.asarray(self.empty, bool), "empty", "done")
        content = {"name": self.names, "status": status, "dice": self.dice}
        frame = pd.DataFrame(content | {"failure_score": self.failure_scores, "expected_dice": self.expected_dice})
        given = pd.DataFrame({name: pd.to_numeric(pd.Series(values)) for name, values in self.scores.items()})
        return pd.concat([frame, given], axis=1)

    def risk(self, failure: NDArray[np.float64], empty: NDArray[np.bool_], tau: float) -> NDArray[np.float64]:
        """Return an upper estimate of the probability that Dice is below `tau`.

        Empty predictions get the share of failures among the empty predictions of the reference set, with one failure
        more.

        Parameters
        ----------
        failure : (images,) float64, failure scores
        empty : (images,) bool, where the prediction is empty
        tau : required Dice, 0 to 1

        Returns
        -------
        NDArray[np.float64]
            (images,), 0 to 1; NaN if the failure score is.
        """
        dice, nothing = np.asarray(self.dice), np.asarray(self.empty, bool)
        known = np.asarray([np.nan if score is None else score for score in self.failure_scores])[~nothing]
        probability = failure_probability(known, dice[~nothing] < tau, failure)
        of_empty = (1 + np.count_nonzero(dice[nothing] < tau)) / (1 + np.count_nonzero(nothing))
        return np.where(empty, of_empty, probability)

    def at_alpha(self, alpha: float) -> Reference:
        """Return the reference with the bound for another share of images whose Dice may be below it.

        Raises
        ------
        RefusedError
            If `alpha` is no such share.
        """
        if not 0 < alpha < 1:
            raise RefusedError(f"--alpha {alpha:g}: give a share of the images between 0 and 1, such as 0.1")
        known = self.frame()
        known = known[known["status"] == "done"].reset_index(drop=True)
        bound = fit_bound(known, known["dice"].to_numpy(np.float64), quality_scores(known), alpha)
        return self.model_copy(update={"bound": bound})

    def differs(self, settings: Mapping[str, JsonValue]) -> str | None:
        """Return a sentence on settings of a run that are not those of the reference; None if its scores compare."""
        other = [name for name, value in self.settings.items() if name in settings and settings[name] != value]
        if not other:
            return None
        said = (f"{name} {_words(settings[name])} instead of {_words(self.settings[name])}" for name in other)
        return f"judged by a reference set of other settings, flags and expected Dice may be off: {'; '.join(said)}"

    def minimum_p(self) -> float:
        """Return the smallest p-value that this number of images can give."""
        return 1 / (self.images + 1)


def calibrate_from(
    scores: pd.DataFrame,
    evaluation: pd.DataFrame,
    features: pd.DataFrame | None = None,
    *,
    ensemble: str,
    pixels: PixelCalibration | None = None,
    settings: Mapping[str, JsonValue] | None = None,
    tau: float = 0.8,
    alpha: float = 0.1,
    false_positive_rate: float = 0.05,
) -> Reference:
    """Calibrate an ensemble from its results on images with a ground truth that it was not trained on.

    Parameters
    ----------
    scores : rows of ``scores.parquet``; failed images are left out
    evaluation : columns ``name`` and ``dice``; images without Dice are left out
    features : columns ``name`` and ``features``, if there are any
    ensemble : hash of the ensemble
    pixels : of the same images, if probabilities were kept
    settings : of the run
    tau : required Dice, 0 to 1
    alpha : share of images whose Dice may be below their bound
    false_positive_rate : share of good images that the thresholds may flag

    Raises
    ------
    RefusedError
        With fewer than 10 images that have a Dice and predicted foreground, or settings out of range.
    """
    for name, value in (("tau", tau), ("alpha", alpha), ("false_positive_rate", false_positive_rate)):
        if not 0 < value < 1:
            raise RefusedError(f"{name} {value}: give a number between 0 and 1")
    table, notes = _joined(scores, evaluation)
    dice = table["dice"].to_numpy(np.float64)
    empty = (table["status"] == "empty").to_numpy(bool)
    _check_enough(len(table), int((~empty).sum()))
    with_foreground, of_quality = table[~empty], quality_scores(table)
    names = list(table["name"])
    matrix = feature_matrix(features, names)
    kept = all_scores(table)
    failure, expected = (_spread(values, ~empty) for values in cross_fitted(with_foreground, dice[~empty], of_quality))
    quality = fit_quality(with_foreground, dice[~empty], of_quality)
    bound = fit_bound(with_foreground, dice[~empty], of_quality, alpha)
    detectors = Detectors.fit(table, kept, empty, matrix)
    thresholds = _thresholds(with_foreground, dice[~empty], of_quality, tau, false_positive_rate)
    notes += _notes(of_quality, quality, bound, dice, tau, matrix)
    return Reference(
        ensemble=ensemble,
        tau=tau,
        names=names,
        dice=dice.tolist(),
        empty=empty.tolist(),
        scores={name: _optional(column) for name, column in zip(kept, numbers(table, kept).T, strict=True)},
        failure_scores=_optional(failure),
        expected_dice=_optional(expected),
        quality=quality,
        bound=bound,
        thresholds=thresholds,
        detector_scores=list(detectors.scores),
        detector_names=list(detectors.names),
        notes=notes,
        settings={name: value for name, value in (settings or {}).items() if name in COMPARED},
        pixels=pixels,
        detectors=detectors,
        features=None if matrix is None else matrix.astype(np.float32),
    )


def _joined(scores: pd.DataFrame, evaluation: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return rows of the images that have both scores and Dice, by name, and notes on those that were left out."""
    for title, frame in (("scores", scores), ("evaluation", evaluation)):
        twice = frame.loc[frame["name"].duplicated(), "name"]
        if len(twice):
            raise RefusedError(f"{title}: image {twice.iloc[0]} is there twice; give each reference image once")
    usable = scores[scores["status"].isin(["done", "empty"])].drop(columns="dice", errors="ignore")
    dice = evaluation[["name", "dice"]].assign(dice=pd.to_numeric(evaluation["dice"])).dropna()
    table = usable.merge(dice, on="name", how="inner").sort_values("name").reset_index(drop=True)
    notes = []
    for reason, names in (
        ("failed or have no scores", set(evaluation["name"]) - set(usable["name"])),
        ("have no truth", set(usable["name"]) - set(dice["name"])),
    ):
        if names:
            first = ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            notes.append(f"{len(names)} images {reason} and are left out: {first}")
    return table, notes


def _check_enough(images: int, with_foreground: int) -> None:
    if with_foreground < FEWEST:
        empty_images = (
            f" (and {images - with_foreground} in which nothing was found)" if images > with_foreground else ""
        )
        raise RefusedError(
            f"the reference set has {with_foreground} images with scores and truth{empty_images}; give at least "
            f"{FEWEST}, better 100, of the kind that the ensemble is for and that it was not trained on"
        )


def fit_bound(scores: pd.DataFrame, dice: NDArray[np.float64], names: list[str], alpha: float) -> Bound:
    """Fit a bound at `alpha` to reference images with foreground.

    Parameters
    ----------
    scores : a row per image
    dice : (images,) float64, 0 to 1
    names : columns of `scores` to use
    alpha : share of images whose Dice may be below their bound
    """
    fitted, calibrating = split_for_bound(len(dice), alpha)
    model = fit_quality(scores.iloc[fitted], dice[fitted], names)
    residuals = model.expected_dice(scores.iloc[calibrating]) - dice[calibrating]
    return Bound(alpha=alpha, model=model, quantile=residual_quantile(residuals, alpha), images=len(calibrating))


def _thresholds(
    scores: pd.DataFrame, dice: NDArray[np.float64], names: list[str], tau: float, false_positive_rate: float
) -> dict[str, Threshold]:
    thresholds = {}
    for name in names:
        values = numbers(scores, [name])[:, 0]
        there = np.isfinite(values)
        if there.any():
            low = side_of(name) == "low"
            thresholds[name] = threshold(
                values[there], dice[there], tau, low_is_bad=low, false_positive_rate=false_positive_rate
            )
    return thresholds


def _notes(
    names: list[str],
    quality: QualityModel,
    bound: Bound,
    dice: NDArray[np.float64],
    tau: float,
    features: NDArray[np.float64] | None,
) -> list[str]:
    """Return what a user should know about the reference set."""
    notes = []
    below = int((dice < tau).sum())
    if not below:
        notes.append(
            f"no reference image has a Dice below {tau:g}: U_min is not defined, and images that are more uncertain "
            f"than every reference image are flagged instead"
        )
    left_out = [name for name in names if name not in quality.scores]
    if left_out:
        notes.append(f"not used, as some images lack them or all have the same value: {', '.join(left_out)}")
    if not any(quality.slopes):
        notes.append("the scores say nothing of Dice in this reference set: every image is expected to have its mean")
    if bound.quantile is None:
        notes.append(
            f"{quality.images} images with foreground are too few for a bound at alpha {bound.alpha:g}: it is 0 for "
            f"every image; give more, or a larger alpha"
        )
    if features is None:
        notes.append(
            "there are no encoder features: images that are out of distribution are told by their scores alone"
        )
    return notes


def _words(value: JsonValue) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _spread(values: NDArray[np.float64], where: NDArray[np.bool_]) -> NDArray[np.float64]:
    spread = np.full(len(where), np.nan)
    spread[where] = values
    return spread


def _optional(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
