"""Distances from the reference images: of encoder features, and of all scores together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chorus.pipeline.errors import RefusedError

_MOST_COMPONENTS = 32
# Images per principal component, so that a covariance can be distinguished from noise.
_IMAGES_PER_COMPONENT = 3


@dataclass(frozen=True)
class Ellipsoid:
    """A mean and a precision (inverse covariance) shrunk towards a sphere.

    Attributes
    ----------
    location : (d,) float64
    precision : (d, d) float64

    References
    ----------
    Ledoit and Wolf, Journal of Multivariate Analysis 88:365 (2004).
    """

    location: NDArray[np.float64]
    precision: NDArray[np.float64]

    @classmethod
    def fit(cls, points: NDArray[np.float64]) -> Ellipsoid:
        """Of (images, d) points."""
        from sklearn.covariance import LedoitWolf  # takes a second to import

        covariance = LedoitWolf().fit(points)
        return cls(np.asarray(covariance.location_, np.float64), np.asarray(covariance.precision_, np.float64))

    def distances(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return Mahalanobis distances.

        Parameters
        ----------
        points : (images, d) float64

        Returns
        -------
        NDArray[np.float64]
            (images,); NaN for points with NaN.
        """
        away = points - self.location
        squares = np.einsum("ni,ij,nj->n", away, self.precision, away)
        return np.asarray(np.sqrt(np.maximum(squares, 0)), np.float64)


@dataclass(frozen=True)
class FeatureSpace:
    """Distribution of the features of reference images: a subspace, and an ellipsoid within it.

    Attributes
    ----------
    mean, scale : (d,) float64, of each feature; a feature that never changes has scale 1
    components : (r, d) float64, orthonormal principal components of the standardised features
    ellipsoid : of the r coordinates
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    components: NDArray[np.float64]
    ellipsoid: Ellipsoid

    @classmethod
    def fit(cls, features: NDArray[np.float64], components: int) -> FeatureSpace:
        """Fit the subspace and the ellipsoid.

        Parameters
        ----------
        features : (images, d) float64, without NaN
        components : number of principal components; see `components_of`
        """
        mean, scale = features.mean(axis=0), features.std(axis=0)
        scale = np.where(scale > 1e-9 * np.maximum(np.abs(mean), 1e-3), scale, 1.0)
        standardised = (features - mean) / scale
        from sklearn.decomposition import PCA  # takes a second to import

        pca = PCA(n_components=components, svd_solver="full").fit(standardised)
        axes = np.asarray(pca.components_, np.float64)
        return cls(mean, scale, axes, Ellipsoid.fit(standardised @ axes.T))

    def distances(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the distances from the centre, within the subspace, and from the subspace.

        The first is a Mahalanobis distance. The second is the norm of the residual outside of the components: images
        out of distribution often differ in directions in which reference images do not vary.

        Parameters
        ----------
        features : (images, d) float64

        Returns
        -------
        NDArray[np.float64]
            (images, 2); NaN for images with NaN.

        References
        ----------
        Lee et al., NeurIPS 2018; Kamoi and Kobayashi 2020; Wang et al., ViM, CVPR 2022.
        """
        standardised = (features - self.mean) / self.scale
        # `einsum` and not a matrix product, whose last bits depend on how many images there are.
        inside = np.einsum("nd,rd->nr", standardised, self.components)
        outside = standardised - np.einsum("nr,rd->nd", inside, self.components)
        return np.stack([self.ellipsoid.distances(inside), np.linalg.norm(outside, axis=1)], axis=1)

    def arrays(self, prefix: str) -> dict[str, NDArray[np.float64]]:
        """Return all of it, under names that begin with `prefix`."""
        own = {"mean": self.mean, "scale": self.scale, "components": self.components}
        own |= {"location": self.ellipsoid.location, "precision": self.ellipsoid.precision}
        return {f"{prefix}_{name}": array for name, array in own.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], prefix: str) -> FeatureSpace | None:
        """Return the space of the result of `arrays`; None if it is not among them.

        Raises
        ------
        KeyError
            If some are missing.
        """
        if f"{prefix}_mean" not in arrays:
            return None
        names = ("mean", "scale", "components", "location", "precision")
        mean, scale, components, location, precision = (arrays[f"{prefix}_{name}"] for name in names)
        return cls(mean, scale, components, Ellipsoid(location, precision))


def components_of(images: int, width: int) -> int:
    """Return the number of principal components of `width` features: one per three images, at most 32."""
    return min(width, _MOST_COMPONENTS, max(images // _IMAGES_PER_COMPONENT, 1))


def feature_matrix(
    features: pd.DataFrame | None, names: list[str], width: int | None = None
) -> NDArray[np.float64] | None:
    """Return the features of the images `names` from ``features.parquet``.

    Parameters
    ----------
    features : columns ``name`` and ``features``
    names : of the images
    width : number of features that is required, if any

    Returns
    -------
    NDArray[np.float64] or None
        (images, d), NaN in the rows of images without features; None if no image has any.

    Raises
    ------
    RefusedError
        If images differ in the number of features, or do not have the `width` of the reference set.
    """
    if features is None or not len(features):
        return None
    by_name = dict(zip(features["name"], features["features"], strict=True))
    rows = [np.asarray([] if (row := by_name.get(name)) is None else row, np.float64).reshape(-1) for name in names]
    widths = sorted({len(row) for row in rows if len(row)})
    if not widths:
        return None
    if len(widths) > 1 or width not in (None, widths[0]):
        known_widths = " or ".join(str(one) for one in widths)
        wanted = f", the reference set has {width}" if width is not None else ""
        raise RefusedError(
            f"features.parquet: images have {known_widths} features{wanted}; run `chorus predict` and "
            f"`chorus calibrate` with the same version of Chorus"
        )
    return np.stack([row if len(row) else np.full(widths[0], np.nan) for row in rows])
