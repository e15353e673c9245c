"""Images out of distribution: familiar ones get no small p-values, others are found, each detector by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from scipy.stats import binom, norm
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from chorus.pipeline.reference.distances import Ellipsoid, FeatureSpace, feature_matrix
from chorus.pipeline.reference.marginals import Marginal, all_scores, log_p, side_of
from chorus.pipeline.reference.ood import Detectors
from tests.support.simulated import Tables, simulated


def fitted(tables: Tables, *, features: bool = True) -> Detectors:
    empty = (tables.scores["status"] == "empty").to_numpy()
    matrix = feature_matrix(tables.features, list(tables.scores["name"])) if features else None
    return Detectors.fit(tables.scores, all_scores(tables.scores), empty, matrix)


def p_and_ood_scores(detectors: Detectors, tables: Tables, *, features: bool = True) -> tuple[np.ndarray, np.ndarray]:
    empty = (tables.scores["status"] == "empty").to_numpy()
    matrix = feature_matrix(tables.features, list(tables.scores["name"])) if features else None
    sigmas = detectors.measure(tables.scores, empty, matrix)
    return detectors.p_values(sigmas), detectors.ood_scores(sigmas)


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("images", [20, 60])
def test_p_values_of_familiar_images_are_not_too_small(images: int, features: bool) -> None:
    """Over many reference sets; within a set they depend on each other, so the error is that of the sets' means."""
    shares = []
    for seed in range(25):
        detectors = fitted(simulated(images, seed=seed), features=features)
        found, _ = p_and_ood_scores(detectors, simulated(100, seed=1000 + seed), features=features)
        shares.append([np.mean(found <= level) for level in (0.05, 0.1, 0.2, 0.5)])
    mean, error = np.mean(shares, axis=0), np.std(shares, axis=0) / np.sqrt(len(shares))
    assert (mean <= np.array([0.05, 0.1, 0.2, 0.5]) + 2.5 * error).all(), mean
    assert mean[3] > 0.3  # nor are they all large


def test_with_empty_images_p_values_are_not_too_small_either() -> None:
    found = []
    for seed in range(25):
        detectors = fitted(simulated(40, seed=seed, empty=4))
        found.append(p_and_ood_scores(detectors, simulated(50, seed=1000 + seed, empty=5))[0])
    for level in (0.1, 0.2):
        assert np.mean(np.concatenate(found) <= level) <= level + 0.02


def test_images_with_unfamiliar_features_are_found_and_harder_ones_by_their_scores() -> None:
    detectors = fitted(simulated(80, seed=0))
    familiar = p_and_ood_scores(detectors, simulated(100, seed=1))[1]
    for unfamiliar in (simulated(50, seed=2, feature_shift=2.0), simulated(50, seed=3, difficulty=8)):
        p_values, scores = p_and_ood_scores(detectors, unfamiliar)
        truth = np.repeat([0, 1], [100, 50])
        assert roc_auc_score(truth, np.concatenate([familiar, scores])) > 0.99
        assert np.mean(p_values <= 0.05) > 0.95
        assert p_values.min() == 1 / 81  # the least that 80 images can give


def test_ood_scores_tell_images_apart_that_are_more_unusual_than_every_reference_image() -> None:
    detectors = fitted(simulated(50, seed=0))
    means = [
        p_and_ood_scores(detectors, simulated(20, seed=1, feature_shift=shift))[1].mean() for shift in (2, 4, 8, 1e4)
    ]
    assert np.isfinite(means).all()
    assert all(np.diff(means) > 1)


def test_an_image_is_judged_by_the_detectors_that_it_has() -> None:
    detectors = fitted(simulated(60, seed=0))
    new = simulated(200, seed=1)
    without, _ = p_and_ood_scores(detectors, new, features=False)
    assert np.mean(without <= 0.1) <= 0.15
    new.scores[["uncertainty", "epistemic", "aleatoric", "pairwise_dice", "area_fraction:nucleus"]] = np.nan
    assert np.isnan(p_and_ood_scores(detectors, new, features=False)[0]).all()


def test_the_order_of_the_new_images_and_their_companions_change_nothing() -> None:
    detectors, new = fitted(simulated(40, seed=0)), simulated(30, seed=1)
    whole, _ = p_and_ood_scores(detectors, new)
    order = np.random.default_rng(0).permutation(30)
    part = Tables(new.scores.iloc[order[:7]].reset_index(drop=True), new.evaluation, new.features)
    np.testing.assert_array_equal(p_and_ood_scores(detectors, part)[0], whole[order[:7]])


def test_constant_scores_and_features_are_no_detectors() -> None:
    tables = simulated(30, seed=0)
    tables.scores["epistemic"] = 0.01
    tables.features["features"] = [np.ones(5)] * 30
    names = fitted(tables).names
    assert "epistemic" not in names
    assert "features" not in names
    assert "uncertainty" in names


@given(points=st.integers(5, 40), width=st.integers(1, 6), seed=st.integers(0, 99))
def test_distances_are_those_of_scipy_with_the_covariance_of_scikit_learn(points: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    known, new = rng.normal(size=(points, width)), rng.normal(size=(3, width))
    covariance = LedoitWolf().fit(known)
    expected = [mahalanobis(row, covariance.location_, np.linalg.inv(covariance.covariance_)) for row in new]
    assert Ellipsoid.fit(known).distances(new) == pytest.approx(expected)


def test_the_second_distance_is_what_the_components_leave_over() -> None:
    rng = np.random.default_rng(0)
    loading = rng.normal(size=(3, 40))
    known = rng.normal(size=(60, 3)) @ loading + 0.05 * rng.normal(size=(60, 40))
    space = FeatureSpace.fit(known, 20)
    assert space.components.shape == (20, 40)
    away = np.linalg.svd(loading)[2][-1]  # at right angles to all that the features do
    new = rng.normal(size=(5, 3)) @ loading + 2 * away
    standardised = (new - known.mean(axis=0)) / known.std(axis=0)
    left = standardised.T - space.components.T @ np.linalg.lstsq(space.components.T, standardised.T)[0]
    assert space.distances(new)[:, 1] == pytest.approx(np.linalg.norm(left, axis=0))
    assert space.distances(new)[:, 1].min() > 2 * space.distances(known)[:, 1].max()


def test_features_that_fill_their_space_have_no_second_distance() -> None:
    tables = simulated(60, seed=0)
    tables.features["features"] = [row[:1] for row in tables.features["features"]]
    detectors = fitted(tables)
    assert "features" in detectors.names
    assert "features_residual" not in detectors.names
    assert np.isfinite(p_and_ood_scores(detectors, tables)[0]).all()


def test_features_of_another_number_are_refused_and_missing_ones_are_none() -> None:
    features = simulated(3, seed=0).features
    names = ["image-0000", "image-0002", "other"]
    found = feature_matrix(features, names)
    assert found is not None
    np.testing.assert_array_equal(found[0], features["features"][0])
    assert np.isnan(found[2]).all()
    assert feature_matrix(None, names) is None
    assert feature_matrix(features.assign(features=[[], [], []]), names) is None
    with pytest.raises(Exception, match="24 features, the reference set has 8"):
        feature_matrix(features, names, width=8)


@given(values=st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=40), seed=st.integers(0, 9))
def test_sigmas_never_fall_with_the_value_and_the_median_has_none(values: list[float], seed: int) -> None:
    marginal = Marginal.of(np.array(values))
    asked = np.sort(np.random.default_rng(seed).uniform(-20, 20, 50))
    assert (np.diff(marginal(asked)) >= -1e-9).all()
    assert np.isnan(marginal(np.array([np.nan]))[0])


def test_sigmas_of_a_normal_score_are_its_own_also_beyond_the_reference() -> None:
    marginal = Marginal.of(norm.ppf((np.arange(200) + 0.5) / 200) * 3 + 7)
    assert marginal(np.array([7.0, 10.0, 1.0, 37.0])) == pytest.approx([0, 1, -2, 10], abs=0.05)


def test_tails_are_the_normal_ones_far_out_too() -> None:
    sigmas = np.array([-1.0, 0.0, 3.0])
    np.testing.assert_allclose(np.exp(log_p(sigmas, "high")), norm.sf(sigmas))
    np.testing.assert_allclose(np.exp(log_p(sigmas, "low")), norm.cdf(sigmas))
    np.testing.assert_allclose(np.exp(log_p(sigmas, "both")), 2 * norm.sf(np.abs(sigmas)))
    assert log_p(np.array([500.0]), "high")[0] == pytest.approx(norm.logsf(500.0))


def test_p_values_by_rank_are_binomially_fair_for_a_reference_of_one_detector() -> None:
    """With a single score the p-value is the rank of the score itself."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(100):
        tables = simulated(31, seed=int(rng.integers(1 << 30)))
        tables.scores["uncertainty"] = rng.exponential(size=31)
        known = tables.scores[:30][["name", "status", "uncertainty"]]
        detectors = Detectors.fit(known, ["uncertainty"], np.zeros(30, bool))
        sigmas = detectors.measure(tables.scores[30:], np.zeros(1, bool))
        found.append(detectors.p_values(sigmas)[0])
    assert np.count_nonzero(np.array(found) <= 0.1) <= binom.ppf(0.999, 100, 0.1)


def test_texture_is_one_detector_and_weighs_as_its_scores() -> None:
    """Against the weighted harmonic mean by hand; images without texture are judged by what they have."""
    tables = simulated(60, seed=0)
    rng = np.random.default_rng(5)
    names = ["detail_1:dna", "diagonal_1:dna", "variation:dna"]
    tables.scores[names] = rng.multivariate_normal([0, 0, 0], [[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]], 60)
    detectors = fitted(tables, features=False)
    assert detectors.names[-1] == "texture"
    assert set(detectors.texture_names) == set(names)
    assert not set(names) & set(detectors.names)

    new = simulated(40, seed=1)
    new.scores[names] = rng.multivariate_normal([0, 0, 0], [[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]], 40)
    new.scores.loc[:9, ["detail_1:dna", "diagonal_1:dna"]] = 1.5, -1.5  # each usual, not so together
    new.scores.loc[39, "variation:dna"] = np.nan
    empty = (new.scores["status"] == "empty").to_numpy()
    sigmas = detectors.measure(new.scores, empty)
    assert (sigmas["texture"][:10] > 3).all()
    assert np.isnan(sigmas["texture"][39])
    found = detectors.ood_scores(sigmas)
    assert np.isfinite(found).all()
    for row in (0, 20, 39):
        known = sigmas.iloc[row].dropna()
        tails = [np.exp(log_p(np.array([value]), side_of(name)))[0] for name, value in known.items()]
        weights = [3 if name == "texture" else 1 for name in known.index]
        assert found[row] == pytest.approx(-np.log10(sum(weights) / np.sum(np.array(weights) / tails)))
    kept = Detectors.from_arrays(list(detectors.scores), list(detectors.names), detectors.arrays())
    np.testing.assert_array_equal(kept.ood_scores(kept.measure(new.scores, empty)), found)
