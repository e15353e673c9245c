"""Detection of images out of distribution: several detectors, and one p-value that combines them.

A detector is a score (unusual on its doubtful side), a class's area fraction (unusual on both sides), all of these
together (a Mahalanobis distance), the image's texture, two distances of encoder features, and an empty prediction.
Each becomes a number of sigmas and the normal tail beyond it. An image's tails are combined by their harmonic mean,
which is small if any of them is: images are out of distribution in different ways, and many detectors that see nothing
must not outvote one that does (Wilson, PNAS 116:1195 (2019)). Texture weighs as many as the scores that it is of, all
others one. The p-value of the combination is not derived from theory, which would require the dependence between
detectors, but from the rank among the reference images, each of which was measured by detectors fitted without it
(cross-conformal: Vovk, Annals of Mathematics and Artificial Intelligence 74:9 (2015)). So it holds for any dependence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtri

from chorus.pipeline.reference.conformal import conformal_p_values, fold_numbers
from chorus.pipeline.reference.distances import Ellipsoid, FeatureSpace, components_of
from chorus.pipeline.reference.marginals import Marginal, is_constant, log_p, numbers, side_of
from chorus.pipeline.scores.judgement_scores import EMPTY as NOTHING_FOUND
from chorus.pipeline.scores.judgement_scores import FEATURES as ENCODER
from chorus.pipeline.scores.judgement_scores import FEATURES_RESIDUAL as ENCODER_RESIDUAL
from chorus.pipeline.scores.judgement_scores import TEXTURE as DETAILS
from chorus.pipeline.scores.judgement_scores import TOGETHER as RELATION
from chorus.pipeline.scores.registry import columns_in

FEATURES, OUTSIDE, TOGETHER, EMPTY = (score.name for score in (ENCODER, ENCODER_RESIDUAL, RELATION, NOTHING_FOUND))
TEXTURE = DETAILS.name
_OF_FEATURES, _OF_TEXTURE, _COLUMNS = "features", "texture", "texture_columns"
# Minimum number of images of a reference set for a covariance.
_FEWEST = 5
_Measured = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Detectors:
    """Detectors with the reference set that they are measured against.

    Attributes
    ----------
    scores : names of the scores that are used
    together : of the sigmas of `scores`; None with a single score
    texture, texture_names : of the scores of these names; None and none without
    space : of the features; None without
    values : (images, detectors) float64, value of each detector for each reference image; distances are from a model
        fitted without the image
    sigmas : (images, detectors) float64, the same in sigmas, each relative to the other images
    names : of the detectors: `scores`, then the distances that distinguish images
    empty : (images,) bool, reference images with an empty prediction
    """

    scores: tuple[str, ...]
    together: Ellipsoid | None
    texture: FeatureSpace | None
    texture_names: tuple[str, ...]
    space: FeatureSpace | None
    values: NDArray[np.float64]
    sigmas: NDArray[np.float64]
    names: tuple[str, ...]
    empty: NDArray[np.bool_]

    @classmethod
    def fit(
        cls,
        scores: pd.DataFrame,
        names: list[str],
        empty: NDArray[np.bool_],
        features: NDArray[np.float64] | None = None,
    ) -> Detectors:
        """Fit detectors to a reference set.

        Parameters
        ----------
        scores : a row per image
        names : columns to use; those that are the same for all images are left out
        empty : (images,) bool, where the prediction is empty
        features : (images, d) float64; rows of NaN for images without
        """
        columns = numbers(scores, names)
        used = [index for index in range(len(names)) if not is_constant(columns[:, index])]
        values = columns[:, used]
        kept = [names[index] for index in used]
        folds = fold_numbers(len(scores))
        sigmas = _sigmas_of_others(values, folds)
        together, texture, space = None, None, None
        if len(kept) > 1 and _complete(sigmas).sum() >= _FEWEST:
            together = Ellipsoid.fit(sigmas[_complete(sigmas)])
            distances = _distances_of_others(
                sigmas, folds, lambda known, new: Ellipsoid.fit(known).distances(new)[:, None], 1
            )
            values, sigmas, kept = _append(values, sigmas, kept, folds, distances, [TOGETHER])
        columns_of_texture = tuple(column.key for column in columns_in(scores) if column.score.texture)
        if columns_of_texture and _tell_apart(looks := numbers(scores, list(columns_of_texture))):
            texture, distances = _space(looks, folds, len(columns_of_texture))
            values, sigmas, kept = _append(values, sigmas, kept, folds, distances[:, :1], [TEXTURE])
        if features is not None and _tell_apart(features):
            space, distances = _space(features, folds, components_of(_fewest(features, folds), features.shape[1]))
            values, sigmas, kept = _append(values, sigmas, kept, folds, distances, [FEATURES, OUTSIDE])
        if TOGETHER not in kept:
            together = None
        if TEXTURE not in kept:
            texture, columns_of_texture = None, ()
        if not {FEATURES, OUTSIDE} & set(kept):
            space = None
        scores_used = tuple(names[i] for i in used)
        return cls(scores_used, together, texture, columns_of_texture, space, values, sigmas, tuple(kept), empty)

    def measure(
        self, scores: pd.DataFrame, empty: NDArray[np.bool_], features: NDArray[np.float64] | None = None
    ) -> pd.DataFrame:
        """Return the sigmas of new images: a column per detector, and ``empty``; NaN for a detector without a value.

        Positive is above the reference's median, whichever side is the unusual one. ``empty`` has a value for empty
        predictions: the sigma of their share in the reference set.

        Parameters
        ----------
        scores : a row per image
        empty : (images,) bool, where the prediction is empty
        features : (images, d) float64; rows of NaN for images without
        """
        values = numbers(scores, list(self.scores))
        marginals = [Marginal.of(column) for column in self.values.T]
        sigmas = _by_marginals(values, marginals)
        if self.together is not None:
            sigmas = self._with(sigmas, self.together.distances(sigmas)[:, None], marginals)
        if self.texture is not None:
            away = self.texture.distances(numbers(scores, list(self.texture_names)))[:, :1]
            sigmas = self._with(sigmas, away, marginals)
        if self.space is not None:
            given = np.full((len(scores), 2), np.nan) if features is None else self.space.distances(features)
            wanted = [index for index, name in enumerate((FEATURES, OUTSIDE)) if name in self.names]
            sigmas = self._with(sigmas, given[:, wanted], marginals)
        share = (1 + np.count_nonzero(self.empty)) / (1 + len(self.empty))
        table = pd.DataFrame(sigmas, columns=list(self.names), index=scores.index)
        table[EMPTY] = np.where(empty, -ndtri(share), np.nan)
        return table

    def ood_scores(self, sigmas: pd.DataFrame) -> NDArray[np.float64]:
        """Return -log10 of the combined tail; it distinguishes images beyond the minimum p-value.

        Parameters
        ----------
        sigmas : result of `measure`

        Returns
        -------
        NDArray[np.float64]
            (images,), 0 or more.
        """
        return np.asarray(_combined(self._log_p(sigmas.to_numpy(np.float64)), self._weights) / np.log(10), np.float64)

    def p_values(self, sigmas: pd.DataFrame) -> NDArray[np.float64]:
        """Return the p-value of each image.

        An image is compared to the reference set by the detectors that it has: detectors that it lacks are left out
        there too.

        Parameters
        ----------
        sigmas : result of `measure`

        Returns
        -------
        NDArray[np.float64]
            (images,), above 0 and at most 1; NaN if no detector has a value.
        """
        tails = self._log_p(sigmas.to_numpy(np.float64))
        reference = self._log_p(np.column_stack([self.sigmas, self._empty_sigmas()]))
        p_values = np.full(len(tails), np.nan)
        patterns, of_image = np.unique(~np.isnan(tails), axis=0, return_inverse=True)
        weights = self._weights
        for index, there in enumerate(patterns):
            rows = of_image.reshape(-1) == index
            if there.any():
                known, own = (_combined(some[:, there], weights[there]) for some in (reference, tails[rows]))
                p_values[rows] = conformal_p_values(known, own)
        return p_values

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all of it but the names, for a ``.npz`` file.

        Returns
        -------
        dict
            Arrays by name; those of `together`, `texture` and `space` are missing if these are None.
        """
        arrays: dict[str, NDArray[Any]] = {"values": self.values, "sigmas": self.sigmas, "empty": self.empty}
        if self.together is not None:
            arrays |= {"together_location": self.together.location, "together_precision": self.together.precision}
        if self.texture is not None:
            arrays |= self.texture.arrays(_OF_TEXTURE) | {_COLUMNS: np.array(self.texture_names)}
        if self.space is not None:
            arrays |= self.space.arrays(_OF_FEATURES)
        return arrays

    @classmethod
    def from_arrays(cls, scores: list[str], names: list[str], arrays: Mapping[str, NDArray[Any]]) -> Detectors:
        """Return the detectors from the result of `arrays`.

        Parameters
        ----------
        scores, names : as the attributes
        arrays : by name, as returned by `arrays`

        Raises
        ------
        KeyError
            If an array is missing.
        """
        together = None
        if "together_location" in arrays:
            together = Ellipsoid(arrays["together_location"], arrays["together_precision"])
        texture, space = (FeatureSpace.from_arrays(arrays, name) for name in (_OF_TEXTURE, _OF_FEATURES))
        looks = () if texture is None else tuple(map(str, arrays[_COLUMNS]))
        values, sigmas = arrays["values"], arrays["sigmas"]
        return cls(tuple(scores), together, texture, looks, space, values, sigmas, tuple(names), arrays["empty"])

    def _with(
        self, sigmas: NDArray[np.float64], distances: NDArray[np.float64], marginals: list[Marginal]
    ) -> NDArray[np.float64]:
        done = sigmas.shape[1]
        more = _by_marginals(distances, marginals[done : done + distances.shape[1]])
        return np.concatenate([sigmas, more], axis=1)

    def _empty_sigmas(self) -> NDArray[np.float64]:
        """Return the sigma of an empty prediction for each reference image, NaN for images that are not empty."""
        return np.where(self.empty, -ndtri(np.count_nonzero(self.empty) / len(self.empty)), np.nan)

    @property
    def _weights(self) -> NDArray[np.float64]:
        """(detectors,) of each, and of the empty prediction as the last: texture counts for its scores."""
        counts = {TEXTURE: float(len(self.texture_names))}
        return np.array([counts.get(name, 1.0) for name in (*self.names, EMPTY)])

    def _log_p(self, sigmas: NDArray[np.float64]) -> NDArray[np.float64]:
        sides = [side_of(name) for name in (*self.names, EMPTY)]
        return np.stack([log_p(column, side) for column, side in zip(sigmas.T, sides, strict=True)], axis=1)


def _combined(tails: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return -log of the weighted harmonic mean of the known tails, (images,); 0 or more.

    In logarithms, so that images of 40 sigma and of 400 differ.

    Parameters
    ----------
    tails : (images, detectors) float64, logarithms; NaN where there is none
    weights : (detectors,) float64
    """
    there = ~np.isnan(tails)
    total = logsumexp(np.where(there, -tails, -np.inf), axis=1, b=weights)
    known = there @ weights
    return np.where(known > 0, total - np.log(np.where(known > 0, known, 1.0)), 0.0)


def _tell_apart(features: NDArray[np.float64]) -> bool:
    """Return whether enough images have features, and these are not all equal."""
    known = features[_complete(features)]
    return len(known) >= _FEWEST and bool(np.ptp(known, axis=0).any())


def _fewest(points: NDArray[np.float64], folds: NDArray[np.intp]) -> int:
    """Return how many images have points, without the largest fold of them."""
    complete = _complete(points)
    return int(complete.sum() - np.bincount(folds[complete]).max())


def _space(
    points: NDArray[np.float64], folds: NDArray[np.intp], components: int
) -> tuple[FeatureSpace, NDArray[np.float64]]:
    """Return the space of all reference images, and the distances of each from that of the other folds.

    `components` are the same for all folds and for all images together, so that their distances are comparable.
    """
    components = max(1, min(components, _fewest(points, folds)))
    distances = _distances_of_others(
        points, folds, lambda known, new: FeatureSpace.fit(known, components).distances(new), 2
    )
    return FeatureSpace.fit(points[_complete(points)], components), distances


def _complete(rows: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(rows).all(axis=1))


def _by_marginals(values: NDArray[np.float64], marginals: list[Marginal]) -> NDArray[np.float64]:
    tails = [marginal(column) for marginal, column in zip(marginals, values.T, strict=False)]
    return np.stack(tails, axis=1) if tails else np.empty((len(values), 0))


def _sigmas_of_others(values: NDArray[np.float64], folds: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return (images, detectors) sigmas, each by the marginals of the other folds; NaN if those have no value."""
    sigmas = np.full(values.shape, np.nan)
    for fold in np.unique(folds):
        held_out = folds == fold
        for index, column in enumerate(values.T):
            if np.isfinite(column[~held_out]).any():
                sigmas[held_out, index] = Marginal.of(column[~held_out])(column[held_out])
    return sigmas


def _distances_of_others(
    points: NDArray[np.float64], folds: NDArray[np.intp], measured: _Measured, count: int
) -> NDArray[np.float64]:
    """Return (images, count) distances of reference images from the other folds; NaN if these are too few."""
    complete = _complete(points)
    distances = np.full((len(points), count), np.nan)
    for fold in np.unique(folds):
        known = points[(folds != fold) & complete]
        if len(known) >= _FEWEST - 1:
            distances[folds == fold] = measured(known, points[folds == fold])
    return distances


def _append(
    values: NDArray[np.float64],
    sigmas: NDArray[np.float64],
    names: list[str],
    folds: NDArray[np.intp],
    distances: NDArray[np.float64],
    more: list[str],
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Append distances to the detectors, except those that are the same for all images."""
    told = [index for index in range(len(more)) if not is_constant(distances[:, index])]
    distances = distances[:, told]
    sigmas = np.concatenate([sigmas, _sigmas_of_others(distances, folds)], axis=1)
    return np.concatenate([values, distances], axis=1), sigmas, [*names, *(more[index] for index in told)]
