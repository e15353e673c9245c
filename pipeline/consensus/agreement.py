"""Agreement of annotators with an estimate of the ground truth and with each other, and outliers among them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALONE = 0.5
"""A drawing agrees with nobody if its best Dice with another one is below this share of the others' median."""
APART = 0.8
"""An annotator stands apart if the median over images of their Dice, as a share of the others', is below this."""
# Minimum number of images for a statement about an annotator.
_LEAST_IMAGES = 3
# It takes two others to measure how well the others agree.
_LEAST_EXPERTS = 3


@dataclass(frozen=True, slots=True)
class ExpertAgreement:
    """Agreement of the annotators of one image.

    Attributes
    ----------
    dice : per annotator, with the estimate; mean over the foreground classes, 0 to 1; 1 if both are empty
    sensitivity, specificity : per annotator, the share of the estimate's pixels of a class that the annotator marked,
        and the share of the other pixels left unmarked; means over the foreground classes; None if there are no such
        pixels
    pairwise : (experts, experts) float64, Dice of every two; the diagonal is 1
    """

    dice: tuple[float, ...]
    sensitivity: tuple[float | None, ...]
    specificity: tuple[float | None, ...]
    pairwise: NDArray[np.float64]


def expert_agreement(
    votes: NDArray[np.integer], estimate: NDArray[np.integer], counts: NDArray[np.int64], classes: int
) -> ExpertAgreement:
    """Compute agreement from counted patterns, exactly for an image of any size.

    Parameters
    ----------
    votes : (experts, patterns) integer, the class that each annotator assigns
    estimate : (patterns,) integer, the label of each pattern
    counts : (patterns,) int64, pixels
    classes : number of classes, including the background
    """
    overlaps = np.array([_overlaps(votes, estimate, counts, label) for label in range(1, classes)])
    pixels = int(counts.sum())
    sizes = np.diagonal(overlaps, axis1=1, axis2=2)
    total = sizes[:, :, np.newaxis] + sizes[:, np.newaxis, :]
    dice = np.where(total > 0, 2 * overlaps / np.maximum(total, 1), 1.0).mean(axis=0)
    sensitivity, specificity = [], []
    for expert in range(len(votes)):
        shared, drawn, true = overlaps[:, expert, -1], sizes[:, expert], sizes[:, -1]
        sensitivity.append(_mean_share(shared, true))
        specificity.append(_mean_share(pixels - true - drawn + shared, pixels - true))
    return ExpertAgreement(tuple(map(float, dice[:-1, -1])), tuple(sensitivity), tuple(specificity), dice[:-1, :-1])


def with_others(pairwise: NDArray[np.float64]) -> list[float | None]:
    """Return each annotator's mean Dice with the others; None for a single annotator.

    Parameters
    ----------
    pairwise : (experts, experts) float64, 0 to 1
    """
    count = len(pairwise)
    if count < 2:
        return [None] * count
    return [float((row.sum() - row[expert]) / (count - 1)) for expert, row in enumerate(pairwise)]


def among_others(pairwise: NDArray[np.float64], expert: int) -> float | None:
    """Return the median Dice of the pairs without `expert`; None if there are no two others.

    Parameters
    ----------
    pairwise : (experts, experts) float64, 0 to 1
    expert : index of the annotator
    """
    others = [index for index in range(len(pairwise)) if index != expert]
    pairs = [pairwise[a, b] for a, b in itertools.combinations(others, 2)]
    return float(np.median(pairs)) if pairs else None


def alone(pairwise: NDArray[np.float64]) -> list[bool]:
    """Return whose drawing agrees with nobody, as if it were of another image.

    That is a drawing whose best Dice with another annotator is below `ALONE` times the median Dice of the pairs among
    the others. The best, so that two who agree on something unusual are not alone; the median of the others, so that
    neither one careless pair nor a difficult image, on which nobody agrees, decides it.

    Parameters
    ----------
    pairwise : (experts, experts) float64, 0 to 1

    Returns
    -------
    list of bool
        One per annotator; all False with fewer than three.
    """
    isolated = []
    for expert in range(len(pairwise)):
        others = among_others(pairwise, expert)
        best = np.delete(pairwise[expert], expert).max(initial=0.0)
        isolated.append(others is not None and len(pairwise) >= _LEAST_EXPERTS and bool(best < ALONE * others))
    return isolated


def apart(images: Iterable[tuple[Sequence[str], NDArray[np.float64]]]) -> dict[str, float]:
    """Return the annotators who stand apart over all images, and the median share by which they do.

    On each image an annotator's mean Dice with the others is divided by the median Dice of the pairs among the others.
    An annotator stands apart if the median of this over at least three images is below `APART`.

    Parameters
    ----------
    images : names of the annotators of an image, and their pairwise Dice, (experts, experts) float64
    """
    shares: dict[str, list[float]] = {}
    for names, pairwise in images:
        means = with_others(pairwise)
        for expert, name in enumerate(names):
            mean, others = means[expert], among_others(pairwise, expert)
            if mean is not None and others:
                shares.setdefault(name, []).append(mean / others)
    medians = {name: float(np.median(values)) for name, values in shares.items() if len(values) >= _LEAST_IMAGES}
    return {name: share for name, share in sorted(medians.items()) if share < APART}


def mean_pairwise(images: Iterable[tuple[Sequence[str], NDArray[np.float64]]]) -> Mapping[tuple[str, str], float]:
    """Return the mean Dice of every two annotators over the images that both drew, by their names in order.

    Parameters
    ----------
    images : names of the annotators of an image, and their pairwise Dice, (experts, experts) float64
    """
    values_by_pair: dict[tuple[str, str], list[float]] = {}
    for names, pairwise in images:
        for a, b in itertools.combinations(range(len(names)), 2):
            values_by_pair.setdefault((names[a], names[b]), []).append(float(pairwise[a, b]))
    return {pair: float(np.mean(values)) for pair, values in sorted(values_by_pair.items())}


def _overlaps(
    votes: NDArray[np.integer], estimate: NDArray[np.integer], counts: NDArray[np.int64], label: int
) -> NDArray[np.int64]:
    """Return the pixels that every two of (annotators, estimate) assign to a class, (experts + 1, experts + 1)."""
    masks = np.vstack([votes, estimate[np.newaxis]]) == label
    return np.array([[counts[a & b].sum() for b in masks] for a in masks], np.int64)


def _mean_share(parts: NDArray[np.int64], wholes: NDArray[np.int64]) -> float | None:
    known = wholes > 0
    return float((parts[known] / wholes[known]).mean()) if known.any() else None
