"""How well a score separates poor segmentations from good ones, and images out of distribution from familiar ones.

Every score is oriented so that a higher value means more uncertainty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Values = NDArray[np.float64]


def aurc(uncertainty: Values, risk: Values) -> float:
    """Return the area under the risk-coverage curve: mean risk of the k least doubtful images, averaged over k.

    Lower is better. Images of equal uncertainty count as if in random order.

    Parameters
    ----------
    uncertainty : (images,) float64, the higher the worse
    risk : (images,) float64, the loss, such as 1 - Dice

    References
    ----------
    Geifman, Uziel and El-Yaniv, ICLR (2019); Jaeger et al., ICLR (2023).
    """
    cumulated = _cumulated_risk(uncertainty, risk)
    return float((cumulated / np.arange(1, len(risk) + 1)).mean())


def augrc(uncertainty: Values, risk: Values) -> float:
    """Return the area under the generalised risk-coverage curve: undetected loss, averaged over k.

    The k least doubtful images are accepted; their risks are summed and divided by the number of all images. Lower is
    better; an uninformative score gives half the mean risk. Unlike `aurc` it does not give the first images the largest
    weight.

    Parameters
    ----------
    uncertainty : (images,) float64, the higher the worse
    risk : (images,) float64, the loss, such as 1 - Dice

    References
    ----------
    Traub et al., Overcoming common flaws in the evaluation of selective classification systems, NeurIPS (2024).
    """
    return float(_cumulated_risk(uncertainty, risk).mean() / len(risk))


def excess(area: Callable[[Values, Values], float], uncertainty: Values, risk: Values) -> float:
    """Return by how much an area exceeds that of the oracle, which knows the risk: 0 is the best.

    Parameters
    ----------
    area : `aurc` or `augrc`
    uncertainty : (images,) float64, the higher the worse
    risk : (images,) float64, the loss
    """
    return area(uncertainty, risk) - area(risk, risk)


def spearman(uncertainty: Values, risk: Values) -> float:
    """Return the rank correlation of uncertainty and risk, 1 is the best; NaN if either is the same for all images.

    Parameters
    ----------
    uncertainty : (images,) float64, the higher the worse
    risk : (images,) float64, the loss
    """
    from scipy.stats import rankdata

    ranks = rankdata(uncertainty), rankdata(risk)
    if np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def auroc(uncertainty: Values, positive: NDArray[np.bool_]) -> float:
    """Return the probability that a positive (failed, out of distribution) image has the higher uncertainty.

    Parameters
    ----------
    uncertainty : (images,) float64, the higher the worse
    positive : (images,) bool

    Returns
    -------
    float
        0 to 1; NaN if all images are positive or all are negative.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, uncertainty)) if len(np.unique(positive)) == 2 else float("nan")


def fpr_at_tpr(uncertainty: Values, positive: NDArray[np.bool_], tpr: float = 0.95) -> float:
    """Return the share of negative images that are flagged when at least `tpr` of the positive images are.

    Parameters
    ----------
    uncertainty : (images,) float64, the higher the worse
    positive : (images,) bool
    tpr : true positive rate, 0 to 1

    Returns
    -------
    float
        0 to 1; NaN if all images are positive or all are negative.
    """
    from sklearn.metrics import roc_curve

    if len(np.unique(positive)) < 2:
        return float("nan")
    false_rates, true_rates, _ = roc_curve(positive, uncertainty, drop_intermediate=False)
    return float(false_rates[true_rates >= tpr - 1e-12][0])


def failure_table(
    scores: Mapping[str, Values],
    dice: Values,
    tau: float,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Return every measure of every score with its bootstrap interval.

    The same resamples serve all scores, so that differences between scores are those of the same images.

    Parameters
    ----------
    scores : (images,) float64 by name, the higher the worse, without NaN
    dice : (images,) float64, 0 to 1
    tau : images with a Dice below it count as failed, for AUROC and FPR
    resamples : number of bootstrap resamples
    confidence : of the intervals, 0 to 1
    seed : of the resampling

    Returns
    -------
    pandas.DataFrame
        A row per score and measure: ``score``, ``measure``, ``value``, ``low`` and ``high``, the ends of the percentile
        interval.

    References
    ----------
    Efron, Annals of Statistics 7:1 (1979).
    """
    risk, failed = 1 - dice, dice < tau
    measures: dict[str, Callable[[Values, NDArray[np.intp]], float]] = {
        "aurc": lambda uncertainty, rows: aurc(uncertainty[rows], risk[rows]),
        "excess_aurc": lambda uncertainty, rows: excess(aurc, uncertainty[rows], risk[rows]),
        "augrc": lambda uncertainty, rows: augrc(uncertainty[rows], risk[rows]),
        "excess_augrc": lambda uncertainty, rows: excess(augrc, uncertainty[rows], risk[rows]),
        "spearman": lambda uncertainty, rows: spearman(uncertainty[rows], risk[rows]),
        "auroc": lambda uncertainty, rows: auroc(uncertainty[rows], failed[rows]),
        "fpr_at_95_tpr": lambda uncertainty, rows: fpr_at_tpr(uncertainty[rows], failed[rows]),
    }
    everything = np.arange(len(dice))
    drawn = np.random.default_rng(seed).integers(0, len(dice), (resamples, len(dice)))
    rows = []
    for name, uncertainty in scores.items():
        for measure, value in measures.items():
            statistics = np.array([value(uncertainty, sample) for sample in drawn])
            known = statistics[~np.isnan(statistics)]  # a resample may hold no failed image
            tails = (1 - confidence) / 2, (1 + confidence) / 2
            low, high = np.quantile(known, tails) if len(known) else (np.nan, np.nan)
            rows.append((name, measure, value(uncertainty, everything), float(low), float(high)))
    return pd.DataFrame(rows, columns=["score", "measure", "value", "low", "high"])


def _cumulated_risk(uncertainty: Values, risk: Values) -> Values:
    """Return the summed risk of the k least doubtful, k = 1 to n, (images,), in expectation over the order of ties."""
    _, group, size = np.unique(uncertainty, return_inverse=True, return_counts=True)
    mean = np.bincount(group, weights=risk) / size
    return np.asarray(np.cumsum(np.repeat(mean, size)), np.float64)
