"""How far experts agree, with an estimate of the truth and with each other, and who agrees with nobody."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALONE = 0.5
"""A drawing agrees with nobody where its best Dice with another expert is below this share of the others' median."""
APART = 0.8
"""An expert stands apart where the median over images of its Dice, as a share of the others', is below this."""
# So few images say nothing of an expert.
_LEAST_IMAGES = 3
# It takes two others to know how well others agree.
_LEAST_EXPERTS = 3


@dataclass(frozen=True, slots=True)
class ExpertAgreement:
    """Of the experts of one image.

    Attributes
    ----------
    dice : per expert, with the estimate; mean over the foreground classes, 0 to 1; 1 where both are empty
    sensitivity, specificity : per expert, the share of the estimate's pixels of a class that it found, and of the
        others that it left out; means over the foreground classes; None where there are no such pixels
    pairwise : (experts, experts) float64, Dice of every two; the diagonal is 1
    """

    dice: tuple[float, ...]
    sensitivity: tuple[float | None, ...]
    specificity: tuple[float | None, ...]
    pairwise: NDArray[np.float64]


def expert_agreement(
    votes: NDArray[np.integer], estimate: NDArray[np.integer], counts: NDArray[np.int64], classes: int
) -> ExpertAgreement:
    """Agreement from counted patterns, so exact for an image of any size.

    Parameters
    ----------
    votes : (experts, patterns) what each expert says
    estimate : (patterns,) the label of each pattern
    counts : (patterns,) int64, pixels
    """
    overlaps = np.array([_overlaps(votes, estimate, counts, label) for label in range(1, classes)])
    pixels = int(counts.sum())
    sizes = np.diagonal(overlaps, axis1=1, axis2=2)
    total = sizes[:, :, np.newaxis] + sizes[:, np.newaxis, :]
    dice = np.where(total > 0, 2 * overlaps / np.maximum(total, 1), 1.0).mean(axis=0)
    sensitivity, specificity = [], []
    for expert in range(len(votes)):
        found, drawn, true = overlaps[:, expert, -1], sizes[:, expert], sizes[:, -1]
        sensitivity.append(_mean_share(found, true))
        specificity.append(_mean_share(pixels - true - drawn + found, pixels - true))
    return ExpertAgreement(tuple(map(float, dice[:-1, -1])), tuple(sensitivity), tuple(specificity), dice[:-1, :-1])


def with_others(pairwise: NDArray[np.float64]) -> list[float | None]:
    """Each expert's mean Dice with the others, None for a single expert."""
    count = len(pairwise)
    if count < 2:
        return [None] * count
    return [float((row.sum() - row[expert]) / (count - 1)) for expert, row in enumerate(pairwise)]


def among_others(pairwise: NDArray[np.float64], expert: int) -> float | None:
    """Median Dice of the pairs that `expert` is not part of; None where there are no two others."""
    others = [index for index in range(len(pairwise)) if index != expert]
    pairs = [pairwise[a, b] for a, b in itertools.combinations(others, 2)]
    return float(np.median(pairs)) if pairs else None


def alone(pairwise: NDArray[np.float64]) -> list[bool]:
    """Whose drawing agrees with nobody, as one of another image does.

    It is so where even its best Dice with another expert is below `ALONE` times the median Dice of the pairs among
    the others. The best, so that two who agree on something unusual are not alone; the median of the others,
    so that neither one careless pair nor a difficult image, on which nobody agrees, decides it.
    """
    found = []
    for expert in range(len(pairwise)):
        others = among_others(pairwise, expert)
        best = np.delete(pairwise[expert], expert).max(initial=0.0)
        found.append(others is not None and len(pairwise) >= _LEAST_EXPERTS and bool(best < ALONE * others))
    return found


def apart(images: Iterable[tuple[Sequence[str], NDArray[np.float64]]]) -> dict[str, float]:
    """Experts who stand apart over all images, and the median share by which they do.

    On each image an expert's mean Dice with the others is divided by the median Dice of the pairs among the others.
    An expert stands apart where the median of this over at least three images is below `APART`.

    Parameters
    ----------
    images : names of the experts of an image, and their pairwise Dice
    """
    shares: dict[str, list[float]] = {}
    for names, pairwise in images:
        means = with_others(pairwise)
        for expert, name in enumerate(names):
            mean, others = means[expert], among_others(pairwise, expert)
            if mean is not None and others:
                shares.setdefault(name, []).append(mean / others)
    medians = {name: float(np.median(found)) for name, found in shares.items() if len(found) >= _LEAST_IMAGES}
    return {name: share for name, share in sorted(medians.items()) if share < APART}


def mean_pairwise(images: Iterable[tuple[Sequence[str], NDArray[np.float64]]]) -> Mapping[tuple[str, str], float]:
    """Mean Dice of every two experts over the images that both drew, by their names in order."""
    found: dict[tuple[str, str], list[float]] = {}
    for names, pairwise in images:
        for a, b in itertools.combinations(range(len(names)), 2):
            found.setdefault((names[a], names[b]), []).append(float(pairwise[a, b]))
    return {pair: float(np.mean(values)) for pair, values in sorted(found.items())}


def _overlaps(
    votes: NDArray[np.integer], estimate: NDArray[np.integer], counts: NDArray[np.int64], label: int
) -> NDArray[np.int64]:
    """Pixels that every two of (the experts, the estimate) give to a class, (experts + 1, experts + 1) int64."""
    masks = np.vstack([votes, estimate[np.newaxis]]) == label
    return np.array([[counts[a & b].sum() for b in masks] for a in masks], np.int64)


def _mean_share(parts: NDArray[np.int64], wholes: NDArray[np.int64]) -> float | None:
    known = wholes > 0
    return float((parts[known] / wholes[known]).mean()) if known.any() else None
