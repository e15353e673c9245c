"""Calibration of probabilities: of pixels with probability 0.7, seven in ten should be of the class.

Everything is derived from histograms of integers, which add up over regions, images and workers in any order.
"""

from __future__ import annotations

import functools
from operator import add

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.scores.image_scores import FIXED_POINT

BINS = 15
# Logits are binned from -12 to 12 in steps of 0.1: probabilities of 6e-6 and more, which 16-bit maps still resolve.
_LOGIT_LIMIT = 12.0
_LOGIT_BINS = 240
# Temperatures are searched between these: members' probabilities are neither step functions nor constants.
_TEMPERATURES = (0.05, 20.0)

_BAND = 1 << 20

Counts = NDArray[np.int64]


class PixelHistogram(BaseModel):
    """Counts of pixels by the predicted probability of a class. All fields are exact integers.

    Attributes
    ----------
    names : of the rows of all other fields: classes, then possibly others such as the predicted class
    count : (rows, 15) pixels in bins of probability of equal width
    hits : (rows, 15) of these, pixels that are of the class
    confidence : (rows, 15) sums of the probability in units of 2^-32
    logit_count, logit_hits : (rows, 240) the same counts in bins of log(p / (1 - p)), -12 to 12
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: list[str]
    count: list[list[int]]
    hits: list[list[int]]
    confidence: list[list[int]]
    logit_count: list[list[int]]
    logit_hits: list[list[int]]

    def __add__(self, other: PixelHistogram) -> PixelHistogram:
        if self.names != other.names:
            raise ValueError(f"histograms of {self.names} and of {other.names} do not add up")
        fields = [name for name in type(self).model_fields if name != "names"]
        sums = {name: _sum(getattr(self, name), getattr(other, name)) for name in fields}
        return PixelHistogram.model_validate({"names": self.names} | sums)


class PixelCalibration(BaseModel):
    """Calibration derived from a histogram; dictionaries are keyed by `PixelHistogram.names`.

    Attributes
    ----------
    pixels : number of pixels counted
    error : expected calibration error, 0 to 1
    temperature : above 1 if probabilities are overconfident, below 1 if they are underconfident
    reliability : per bin that has pixels, the mean predicted probability, the observed share, and the number of pixels
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pixels: int
    error: dict[str, float]
    temperature: dict[str, float]
    reliability: dict[str, list[tuple[float, float, int]]]

    @classmethod
    def of(cls, histogram: PixelHistogram) -> PixelCalibration | None:
        """Return the calibration of a histogram; None if it has no pixels."""
        if not (pixels := sum(histogram.count[-1])):
            return None
        table, diagram = reliability(histogram), {}
        for name, rows in table.groupby("name", sort=False):
            columns = rows["confidence"], rows["accuracy"], rows["pixels"].astype(int)
            diagram[str(name)] = list(zip(*(column.tolist() for column in columns), strict=True))
        error, temperature = expected_calibration_error(histogram), temperatures(histogram)
        return cls(pixels=pixels, error=error, temperature=temperature, reliability=diagram)


def pixel_histogram(probability: NDArray[np.floating], truth: NDArray[np.integer], names: list[str]) -> PixelHistogram:
    """Return the histogram of a window with one class per pixel.

    The last row is ``predicted``, the most probable class of each pixel.

    Parameters
    ----------
    probability : (classes, y, x) of any floating dtype, 0 to 1
    truth : (y, x) integer, index of the class; pixels of any other value are left out
    names : of the classes
    """
    rows = max(1, _BAND // truth.shape[1])  # bounds the memory of float64 copies
    bands = [slice(start, start + rows) for start in range(0, len(truth), rows)]
    return functools.reduce(add, [_band_histogram(probability[:, band], truth[band], names) for band in bands])


def _band_histogram(probability: NDArray[np.floating], truth: NDArray[np.integer], names: list[str]) -> PixelHistogram:
    known = (truth >= 0) & (truth < len(names))
    values = probability[:, known].astype(np.float64)
    classes = truth[known]
    hits = classes[None] == np.arange(len(names))[:, None]
    best = values.argmax(axis=0)
    confidence = np.take_along_axis(values, best[None], axis=0)
    return histogram_of(
        np.concatenate([values, confidence]), np.concatenate([hits, (best == classes)[None]]), [*names, "predicted"]
    )


def histogram_of(probability: NDArray[np.floating], hits: NDArray[np.bool_], names: list[str]) -> PixelHistogram:
    """Return the histogram of any probabilistic statements.

    Parameters
    ----------
    probability : (rows, pixels) of any floating dtype, predicted probability of each statement; clipped to 0 to 1
    hits : (rows, pixels) bool, whether the statement is true
    names : of the rows
    """
    values = np.clip(probability.astype(np.float64), 0, 1)
    bins = np.minimum((values * BINS).astype(np.int64), BINS - 1)
    with np.errstate(divide="ignore"):
        logits = np.log(values) - np.log1p(-values)
    step = 2 * _LOGIT_LIMIT / _LOGIT_BINS
    logit_bins = np.clip(np.floor((logits + _LOGIT_LIMIT) / step), 0, _LOGIT_BINS - 1).astype(np.int64)
    fixed = np.rint(values * FIXED_POINT).astype(np.int64)
    content: dict[str, list[list[int]]] = {name: [] for name in PixelHistogram.model_fields if name != "names"}
    for row in range(len(names)):
        content["count"].append(np.bincount(bins[row], minlength=BINS).tolist())
        content["hits"].append(np.bincount(bins[row][hits[row]], minlength=BINS).tolist())
        content["confidence"].append(_sums(bins[row], fixed[row]))
        content["logit_count"].append(np.bincount(logit_bins[row], minlength=_LOGIT_BINS).tolist())
        content["logit_hits"].append(np.bincount(logit_bins[row][hits[row]], minlength=_LOGIT_BINS).tolist())
    return PixelHistogram(names=names, **content)


def reliability(histogram: PixelHistogram) -> pd.DataFrame:
    """Return the reliability diagram: a row per name and bin that has pixels.

    Columns: ``name``, ``bin``, ``pixels``, ``confidence`` (mean predicted probability) and ``accuracy`` (observed
    share).
    """
    rows = []
    for index, name in enumerate(histogram.names):
        for bin_index in range(BINS):
            pixels = histogram.count[index][bin_index]
            if pixels:
                confidence = histogram.confidence[index][bin_index] / FIXED_POINT / pixels
                rows.append((name, bin_index, pixels, confidence, histogram.hits[index][bin_index] / pixels))
    return pd.DataFrame(rows, columns=["name", "bin", "pixels", "confidence", "accuracy"])


def expected_calibration_error(histogram: PixelHistogram) -> dict[str, float]:
    """Return, by name, the mean over pixels of |accuracy - confidence| of their bin, 0 to 1; NaN without pixels.

    References
    ----------
    Naeini, Cooper and Hauskrecht, AAAI (2015); Guo et al., ICML (2017), Eq. 3: with 15 bins.
    """
    table = reliability(histogram)
    errors = {}
    for name in histogram.names:
        own = table[table["name"] == name]
        gap = (own["accuracy"] - own["confidence"]).abs() * own["pixels"]
        errors[name] = float(gap.sum() / own["pixels"].sum()) if len(own) else float("nan")
    return errors


def temperatures(histogram: PixelHistogram) -> dict[str, float]:
    """Return, by name, the temperature T for which sigmoid(logit / T) has the highest likelihood.

    It is above 1 if probabilities are overconfident. It is 1 if all or none of the pixels are of the class: then there
    is no maximum.

    References
    ----------
    Guo et al., ICML (2017), Section 4.2, for one class against all others; from logits in bins of 0.1.
    """
    from scipy.optimize import minimize_scalar

    step = 2 * _LOGIT_LIMIT / _LOGIT_BINS
    middles = -_LOGIT_LIMIT + step * (np.arange(_LOGIT_BINS) + 0.5)
    values = {}
    for name, counts, positives in zip(histogram.names, histogram.logit_count, histogram.logit_hits, strict=True):
        count, hits = np.asarray(counts, np.float64), np.asarray(positives, np.float64)
        if not 0 < hits.sum() < count.sum():
            values[name] = 1.0
            continue

        def loss(log_temperature: float, count: NDArray[np.float64] = count, hits: NDArray[np.float64] = hits) -> float:
            scaled = middles / np.exp(log_temperature)
            return float(
                (hits * np.logaddexp(0, -scaled) + (count - hits) * np.logaddexp(0, scaled)).sum() / count.sum()
            )

        bounds = tuple(np.log(_TEMPERATURES))
        values[name] = float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
    return values


def _sums(bins: Counts, fixed: Counts) -> list[int]:
    """Return exact sums by bin, in two halves: float64 adds integers exactly up to 2^53, so of 2^36 pixels at once."""
    high = np.bincount(bins, weights=fixed >> 16, minlength=BINS)
    low = np.bincount(bins, weights=fixed & 0xFFFF, minlength=BINS)
    return [(int(upper) << 16) + int(lower) for upper, lower in zip(high, low, strict=True)]


def _sum(first: list[list[int]], second: list[list[int]]) -> list[list[int]]:
    return [[a + b for a, b in zip(left, right, strict=True)] for left, right in zip(first, second, strict=True)]
