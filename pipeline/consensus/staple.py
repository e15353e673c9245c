"""STAPLE: ground truth and annotator performance estimated together, by expectation maximisation on vote patterns.

The true label T of a pixel is hidden; annotator k assigns j if the truth is c with probability theta_k(j | c), and
pixels are independent given these. With prior pi(c), the steps of Warfield et al. (their binary and multi-category
forms) are

    E    W_p(c) = pi(c) prod_k theta_k(d_pk | c) / sum_c' pi(c') prod_k theta_k(d_pk | c')
    M    theta_k(j | c) = sum_p n_p W_p(c) [d_pk = j] / sum_p n_p W_p(c)

where d_pk is the label of annotator k in pattern p and n_p the number of pixels of the pattern. Pixels of one pattern
have equal terms, so this is the sum over all pixels without approximation.

What the papers leave open is as in ITK, so that SimpleITK gives the same result: two classes begin with W, the mean of
the annotators' masks, use its mean over the image as the prior, and end when no sensitivity or specificity changes by
more than 1e-7; several classes begin with the confusion of each annotator with the vote, use the annotators' own shares
of the classes as the prior, and end when no entry changes by 1e-5.

References
----------
Warfield, Zou, Wells: Simultaneous truth and performance level estimation (STAPLE). IEEE Transactions on Medical Imaging
23:903 (2004). Rohlfing, Russakoff, Maurer: Performance-based classifier combination in atlas-based image segmentation
using expectation-maximization parameter estimation. IEEE Transactions on Medical Imaging 23:983 (2004).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.consensus.vote_patterns import PatternLabels, VotePatterns
from chorus.pipeline.consensus.votes import Ties, winners

_BINARY_UPDATE = 1e-7
_CLASSES_UPDATE = 1e-5
# The updates shrink steadily; a few hundred rounds are usual.
_MOST_ROUNDS = 100_000
# Log-probabilities that differ by less are equal up to rounding: a tie.
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Staple:
    """Result of STAPLE.

    Attributes
    ----------
    estimate : the most probable label of every pattern
    probability : (classes, patterns) float64, W; sums to 1, or is 0 if no class explains a pattern
    confusion : (experts, assigned classes, true classes) float64, theta; a column of a class without pixels is 0
    rounds : of expectation and maximisation
    converged : whether the updates became small enough
    """

    estimate: PatternLabels
    probability: NDArray[np.float64]
    confusion: NDArray[np.float64]
    rounds: int
    converged: bool


def staple(patterns: VotePatterns, ties: Ties = "background") -> Staple:
    """Estimate the ground truth by STAPLE of two classes, or of several; see the module.

    Parameters
    ----------
    patterns : of an image
    ties : what becomes of patterns on which classes are equally likely
    """
    return _binary(patterns, ties) if patterns.classes == 2 else _several(patterns, ties)


def _binary(patterns: VotePatterns, ties: Ties) -> Staple:
    votes, counts = patterns.votes, patterns.counts.astype(np.float64)
    mean = votes.mean(axis=0)
    foreground = float((mean * counts).sum() / counts.sum())
    prior = np.array([1 - foreground, foreground])
    weights = np.array([1 - mean, mean])
    if foreground in (0.0, 1.0):  # there is only one pattern, and one class
        return Staple(PatternLabels.of(patterns, votes[0]), weights, _confusion(votes, counts, weights), 0, True)
    # An initial value that no probability is close to, so that one round is never enough.
    before = np.full((patterns.experts, 2, 2), -10.0)
    rounds, moved = 0, np.inf
    while moved > _BINARY_UPDATE and rounds < _MOST_ROUNDS:
        confusion = _confusion(votes, counts, weights)
        weights = _expected(votes, prior, confusion)
        moved = float(abs(confusion - before).max())
        before, rounds = confusion, rounds + 1
    return _result(patterns, prior, before, ties, rounds, moved <= _BINARY_UPDATE)


def _several(patterns: VotePatterns, ties: Ties) -> Staple:
    votes, counts = patterns.votes, patterns.counts.astype(np.float64)
    prior = (patterns.votes_per_class * counts).sum(axis=1) / (counts.sum() * patterns.experts)
    confusion = _confusion_with_vote(patterns)
    rounds, moved = 0, np.inf
    while moved >= _CLASSES_UPDATE and rounds < _MOST_ROUNDS:
        updated = _confusion(votes, counts, _expected(votes, prior, confusion))
        moved = float(abs(updated - confusion).max())
        confusion, rounds = updated, rounds + 1
    return _result(patterns, prior, confusion, ties, rounds, moved < _CLASSES_UPDATE)


def _confusion_with_vote(patterns: VotePatterns) -> NDArray[np.float64]:
    """Return the initial confusion of several classes, (experts, assigned classes, voted classes).

    As in ITK these are shares of the vote given an annotator's label, not the reverse. Pixels on which the vote is tied
    are left out; ITK 5.4 intends to, but adds them to the background of the next class (it writes one column too far),
    which newer versions have corrected. It matters only if the likelihood has several maxima.
    """
    per_class = patterns.votes_per_class
    decided = (per_class == per_class.max(axis=0)).sum(axis=0) == 1
    voted = decided & (np.arange(patterns.classes)[:, np.newaxis] == per_class.argmax(axis=0))
    return _share(_sums(patterns.votes, patterns.counts.astype(np.float64), voted.astype(np.float64)), axis=2)


def _result(
    patterns: VotePatterns,
    prior: NDArray[np.float64],
    confusion: NDArray[np.float64],
    ties: Ties,
    rounds: int,
    converged: bool,
) -> Staple:
    likelihood = _log_likelihood(patterns.votes, prior, confusion)
    explained = np.isfinite(likelihood.max(axis=0))
    # A pattern that no class explains is one whose vote is tied.
    labels = np.where(
        explained,
        winners(np.where(explained, likelihood, 0.0), ties, _SAME),
        winners(patterns.votes_per_class, ties),
    )
    weights = _expected(patterns.votes, prior, confusion)
    return Staple(PatternLabels.of(patterns, labels), weights, confusion, rounds, converged)


def _log_likelihood(
    votes: NDArray[np.int64], prior: NDArray[np.float64], confusion: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return log pi(c) + sum_k log theta_k(d_pk | c), (classes, patterns); -inf where it is impossible."""
    with np.errstate(divide="ignore"):
        total = np.repeat(np.log(prior)[:, np.newaxis], votes.shape[1], axis=1)
        for expert_votes, theta in zip(votes, np.log(confusion), strict=True):
            total += theta[expert_votes].T
    return total


def _expected(
    votes: NDArray[np.int64], prior: NDArray[np.float64], confusion: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return W, (classes, patterns); 0 for all classes if none explains a pattern."""
    total = _log_likelihood(votes, prior, confusion)
    highest = total.max(axis=0)
    scaled = np.exp(total - np.where(np.isfinite(highest), highest, 0.0))
    return _share(scaled, axis=0)


def _confusion(
    votes: NDArray[np.int64], counts: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return theta, (experts, assigned classes, true classes)."""
    return _share(_sums(votes, counts, weights), axis=1)


def _sums(votes: NDArray[np.int64], counts: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return pixels by each annotator's label and by the expected truth, (experts, assigned classes, true classes)."""
    classes = len(weights)
    expected = (counts * weights).T
    sums = np.zeros((len(votes), classes, classes))
    for table, expert_votes in zip(sums, votes, strict=True):
        np.add.at(table, expert_votes, expected)
    return sums


def _share(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Divide `values` by their sum along an axis; 0 where that is 0."""
    total = values.sum(axis=axis, keepdims=True)
    shares: NDArray[np.float64] = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    return shares
