"""STAPLE on vote patterns: what SimpleITK gives, what EM pixel by pixel gives, and nothing about how it was cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from chorus.pipeline.consensus.staple import staple
from chorus.pipeline.consensus.vote_patterns import PatternLabels, VotePatterns
from chorus.pipeline.errors import ImageError

SHAPE = (40, 50)


def drawings(seed: int, experts: int = 4, classes: int = 2, error: float = 0.1) -> list[np.ndarray]:
    """A truth of blobs that every expert gives with mistakes of its own kind and number."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    truth = gaussian_filter(rng.normal(size=(classes, *SHAPE)), (0, 4, 4)).argmax(axis=0)
    found = []
    for expert in range(experts):
        wrong = rng.random(SHAPE) < error * (1 + expert)
        found.append(np.where(wrong, rng.integers(0, classes, SHAPE), truth).astype(np.uint8))
    return found


def estimate(labels: Sequence[np.ndarray], classes: int = 2) -> np.ndarray:
    return staple(VotePatterns.count(labels, classes)).estimate.apply(labels)


def plain_em(masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Binary STAPLE over pixels in plain products, until nothing changes: W, sensitivity, specificity."""
    votes = np.array([mask.ravel() for mask in masks], dtype=np.float64)
    weight = votes.mean(axis=0)
    prior = weight.mean()
    for _ in range(5000):
        p = (votes * weight).sum(axis=1) / weight.sum()
        q = ((1 - votes) * (1 - weight)).sum(axis=1) / (1 - weight).sum()
        a = prior * np.prod(np.where(votes == 1, p[:, None], 1 - p[:, None]), axis=0)
        b = (1 - prior) * np.prod(np.where(votes == 1, 1 - q[:, None], q[:, None]), axis=0)
        before, weight = weight, a / (a + b)
        if abs(before - weight).max() < 1e-12:
            break
    return weight.reshape(masks[0].shape), p, q


@pytest.mark.parametrize("experts", [2, 3, 5, 9])
@pytest.mark.parametrize("seed", range(4))
def test_two_classes_are_those_of_simpleitk(seed: int, experts: int) -> None:
    masks = drawings(seed, experts, error=0.06)
    oracle = SimpleITK.STAPLEImageFilter()
    oracle.SetForegroundValue(1)
    expected = SimpleITK.GetArrayFromImage(oracle.Execute([SimpleITK.GetImageFromArray(mask) for mask in masks]))
    patterns = VotePatterns.count(masks, 2)
    found = staple(patterns)
    probability = PatternLabels(patterns, found.probability[1]).apply(masks)
    assert np.allclose(probability, expected, atol=1e-9)
    assert np.allclose(found.confusion[:, 1, 1], oracle.GetSensitivity(), atol=1e-9)
    assert np.allclose(found.confusion[:, 0, 0], oracle.GetSpecificity(), atol=1e-9)
    clear = abs(expected - 0.5) > 1e-6
    assert np.array_equal(found.estimate.apply(masks)[clear], (expected > 0.5)[clear])


@pytest.mark.parametrize("seed", range(6))
def test_two_classes_are_those_of_em_over_pixels(seed: int) -> None:
    masks = drawings(seed)
    weight, sensitivity, specificity = plain_em(masks)
    found = staple(VotePatterns.count(masks, 2))
    assert np.array_equal(found.estimate.apply(masks), weight > 0.5)
    assert found.confusion[:, 1, 1] == pytest.approx(sensitivity, abs=1e-4)
    assert found.confusion[:, 0, 0] == pytest.approx(specificity, abs=1e-4)


def as_itk_5_4_begins(patterns: VotePatterns) -> np.ndarray:
    """Confusion with the vote, but for tied pixels, which ITK 5.4 counts one column beyond the table's row."""
    classes, votes = patterns.classes, patterns.votes_per_class
    tied = (votes == votes.max(axis=0)).sum(axis=0) > 1
    voted = np.where(tied, classes, votes.argmax(axis=0))
    tables = []
    for said in patterns.votes:
        memory = np.zeros((classes + 1) * classes + 1)
        np.add.at(memory, said * classes + voted, patterns.counts)
        table = memory[:-1].reshape(classes + 1, classes)
        tables.append((table / np.maximum(table.sum(axis=1, keepdims=True), 1))[:classes])
    return np.array(tables)


@pytest.mark.parametrize(("experts", "classes"), [(2, 3), (3, 3), (4, 5), (6, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_several_classes_are_those_of_simpleitk(
    seed: int, experts: int, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chorus.pipeline.consensus.staple._confusion_with_vote", as_itk_5_4_begins)
    labels = drawings(seed, experts, classes, error=0.05)
    oracle = SimpleITK.MultiLabelSTAPLEImageFilter()
    oracle.SetLabelForUndecidedPixels(0)
    expected = SimpleITK.GetArrayFromImage(oracle.Execute([SimpleITK.GetImageFromArray(one) for one in labels]))
    patterns = VotePatterns.count(labels, classes)
    found = staple(patterns)
    for expert in range(experts):
        table = np.reshape(oracle.GetConfusionMatrix(expert), (classes + 1, classes))[:classes]
        assert np.allclose(found.confusion[expert], table, atol=1e-4)  # ITK's are of single precision
    sure = np.sort(found.probability, axis=0)
    clear = PatternLabels(patterns, sure[-1] - sure[-2] > 1e-3).apply(labels)
    assert clear.mean() > 0.8
    assert np.array_equal(found.estimate.apply(labels)[clear], expected[clear])


@pytest.mark.parametrize("seed", range(3))
def test_several_classes_are_those_of_simpleitk_where_there_is_one_maximum(seed: int) -> None:
    labels = drawings(seed, 5, 3, error=0.04)
    images = [SimpleITK.GetImageFromArray(one) for one in labels]
    assert np.array_equal(estimate(labels, 3), SimpleITK.GetArrayFromImage(SimpleITK.MultiLabelSTAPLE(images, 0)))


def plain_em_of_classes(labels: Sequence[np.ndarray], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """STAPLE of several classes over pixels, expert by expert and class by class: labels and confusion."""
    said = np.array([one.ravel() for one in labels])
    counts = np.array([(said == c).sum(axis=0) for c in range(classes)])
    sure = (counts == counts.max(axis=0)).sum(axis=0) == 1
    weight = np.array([sure & (counts.argmax(axis=0) == c) for c in range(classes)], dtype=np.float64)
    prior = [(said == c).mean() for c in range(classes)]
    theta = np.zeros((len(said), classes, classes))
    for k, j, c in np.ndindex(theta.shape):
        theta[k, j, c] = weight[c][said[k] == j].sum() / max(1, sure[said[k] == j].sum())
    for _ in range(200):
        weight = np.array(
            [prior[c] * np.prod([theta[k, said[k], c] for k in range(len(said))], axis=0) for c in range(classes)]
        )
        weight /= np.maximum(weight.sum(axis=0), 1e-300)
        for k, j, c in np.ndindex(theta.shape):
            theta[k, j, c] = weight[c][said[k] == j].sum() / weight[c].sum()
    return weight.argmax(axis=0).reshape(labels[0].shape), theta


@pytest.mark.parametrize("seed", range(3))
def test_several_classes_are_those_of_em_over_pixels(seed: int) -> None:
    labels = drawings(seed, 5, 4, error=0.06)
    expected, theta = plain_em_of_classes(labels, 4)
    found = staple(VotePatterns.count(labels, 4))
    assert np.allclose(found.confusion, theta, atol=1e-3)
    assert (found.estimate.apply(labels) == expected).mean() > 0.999


def test_a_class_that_nobody_gives_changes_nothing() -> None:
    labels = drawings(3, 4, 3)
    assert np.array_equal(estimate(labels, 3), estimate(labels, 7))


@settings(max_examples=60)
@given(
    masks=arrays(np.uint8, (4, 13, 11), elements=st.integers(0, 2)),
    rows=st.integers(1, 13),
    columns=st.integers(1, 11),
)
def test_no_cut_into_blocks_changes_a_bit(masks: np.ndarray, rows: int, columns: int) -> None:
    parts = [
        VotePatterns.count(masks[:, y : y + rows, x : x + columns], 3)
        for y in range(0, 13, rows)
        for x in range(0, 11, columns)
    ]
    total = parts[-1]
    for part in parts[:-1]:
        total = part + total
    whole = VotePatterns.count(masks, 3)
    assert np.array_equal(total.keys, whole.keys)
    assert np.array_equal(total.counts, whole.counts)
    one, other = staple(total), staple(whole)
    assert one.probability.tobytes() == other.probability.tobytes()
    assert one.estimate.apply(masks).tobytes() == other.estimate.apply(masks).tobytes()


@settings(max_examples=60)
@given(masks=arrays(np.uint8, (3, 6, 7), elements=st.integers(0, 1)))
def test_probabilities_are_probabilities_whatever_is_drawn(masks: np.ndarray) -> None:
    found = staple(VotePatterns.count(masks, 2))
    assert np.isfinite(found.probability).all()
    assert found.probability.sum(axis=0) == pytest.approx(1.0)
    assert found.converged


@pytest.mark.parametrize("value", [0, 1])
def test_where_all_experts_say_the_same_everywhere_that_is_the_truth(value: int) -> None:
    masks = [np.full(SHAPE, value, np.uint8)] * 3
    assert (estimate(masks) == value).all()
    assert (estimate(masks, 4) == value).all()


def test_equal_drawings_and_a_single_one_are_the_truth() -> None:
    for classes in (2, 4):
        (first, *_) = drawings(1, 1, classes)
        for count in (1, 2, 5):
            assert np.array_equal(estimate([first] * count, classes), first)


def test_two_experts_who_contradict_each_other_alike_are_a_tie() -> None:
    first = np.zeros((4, 4), np.uint8)
    first[:, :2] = 1
    patterns = VotePatterns.count([first, first[:, ::-1]], 2)
    assert not staple(patterns, "background").estimate.labels.any()
    assert staple(patterns, "foreground").estimate.labels.all()


def test_thirty_experts_do_not_underflow() -> None:
    masks = drawings(5, 30, error=0.015)
    weight, _, _ = plain_em(masks)
    assert np.array_equal(estimate(masks), weight > 0.5)


def test_more_patterns_than_can_be_counted_are_refused_in_a_sentence() -> None:
    with pytest.raises(ImageError, match="63 experts with 2 classes are too many to count; take fewer with --expert"):
        VotePatterns.count([np.zeros((2, 2), np.uint8)] * 63, 2)


def test_on_real_drawings_it_is_simpleitk_pixel_by_pixel(shared_data: Path) -> None:
    lab = shared_data / "multi_expert" / "lab-mue"
    for name in ("1049", "1051", "1057"):
        files = sorted(lab.glob(f"expert_*/{name}.png"))
        masks = [(np.asarray(Image.open(file)) > 0).astype(np.uint8) for file in files]
        expected = SimpleITK.GetArrayFromImage(SimpleITK.STAPLE([SimpleITK.GetImageFromArray(mask) for mask in masks]))
        assert np.array_equal(estimate(masks), expected > 0.5)
