"""Who agrees with whom: numbers as counted pixel by pixel, and whom the rules single out."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from chorus.pipeline.consensus.agreement import alone, apart, expert_agreement, mean_pairwise, with_others
from chorus.pipeline.consensus.agreement_plot import agreement_matrix, draw_agreement
from chorus.pipeline.consensus.agreement_table import agreement_table, summarise, warnings
from chorus.pipeline.consensus.ground_truth import ExpertRow, ImageTruth
from chorus.pipeline.consensus.vote_patterns import VotePatterns
from chorus.pipeline.consensus.votes import majority


def matrix(*rows: list[float]) -> np.ndarray:
    """A symmetric matrix of the values above the diagonal."""
    count = len(rows) + 1
    found = np.eye(count)
    for index, row in enumerate(rows):
        found[index, index + 1 :] = found[index + 1 :, index] = row
    return found


def image(name: str, pairwise: np.ndarray, missing: list[str] | None = None) -> ImageTruth:
    means, flags = with_others(pairwise), alone(pairwise)
    rows = [
        ExpertRow(
            expert=f"e{index}",
            status="alone" if flags[index] else "drawn",
            dice=0.9 if not flags[index] else 0.1,
            sensitivity=0.8,
            specificity=1.0,
            dice_others=means[index],
            among_others=0.8,
        )
        for index in range(len(pairwise))
    ]
    return ImageTruth(
        name=name,
        file=f"{name}.tif",
        pixels=100,
        foreground=0.1,
        experts=rows,
        pairwise=pairwise.tolist(),
        missing=missing or [],
        notes=[],
    )


LOST = matrix([0.05, 0.06, 0.04], [0.8, 0.7], [0.75])
GOOD = matrix([0.8, 0.7, 0.75], [0.8, 0.7], [0.75])


@pytest.mark.parametrize("classes", [2, 4])
def test_numbers_are_those_of_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels = [rng.integers(0, classes, (30, 31)).astype(np.uint8) for _ in range(4)]
    patterns = VotePatterns.count(labels, classes)
    estimate = majority(patterns)
    found = expert_agreement(patterns.votes, estimate.labels, patterns.counts, classes)
    truth = estimate.apply(labels).ravel()
    foreground = list(range(1, classes))
    for index, one in enumerate(labels):
        drawn = one.ravel()
        assert found.dice[index] == pytest.approx(f1_score(truth, drawn, labels=foreground, average="macro"))
        expected = recall_score(truth, drawn, labels=foreground, average="macro")
        assert found.sensitivity[index] == pytest.approx(expected)
        specificity = np.mean([(drawn != k)[truth != k].mean() for k in foreground])
        assert found.specificity[index] == pytest.approx(specificity)
        for other, second in enumerate(labels):
            value = f1_score(second.ravel(), drawn, labels=foreground, average="macro")
            assert found.pairwise[index, other] == pytest.approx(value)


def test_empty_drawings_agree_with_each_other_and_shares_of_nothing_are_none() -> None:
    patterns = VotePatterns.count([np.zeros((3, 3), np.uint8)] * 2, 2)
    found = expert_agreement(patterns.votes, np.zeros(1, np.uint8), patterns.counts, 2)
    assert (found.dice, found.sensitivity, found.specificity) == ((1.0, 1.0), (None, None), (1.0, 1.0))
    assert (found.pairwise == 1).all()


def test_a_drawing_of_another_image_agrees_with_nobody() -> None:
    assert alone(LOST) == [True, False, False, False]


@pytest.mark.parametrize(
    "pairwise",
    [
        GOOD,
        matrix([0.5, 0.45, 0.5], [0.8, 0.7], [0.75]),  # draws less than the others, of the same image
        matrix([0.9, 0.1, 0.1], [0.1, 0.1], [0.8]),  # two and two
        matrix([0.1, 0.2, 0.1], [0.2, 0.1], [0.15]),  # a difficult image: nobody agrees
        matrix([0.02]),  # of two nobody can say which one it is
        matrix(),
        np.ones((4, 4)),
    ],
)
def test_nobody_is_called_alone_without_others_who_agree(pairwise: np.ndarray) -> None:
    assert not any(alone(pairwise))


def test_an_expert_stands_apart_who_does_so_on_most_images() -> None:
    names = ["a", "b", "c", "d"]
    strict = matrix([0.5, 0.45, 0.5], [0.8, 0.7], [0.75])
    assert apart([(names, strict)] * 2) == {}  # too few images
    assert set(apart([(names, strict)] * 3)) == {"a"}
    assert apart([(names, GOOD), (names, strict), (names, GOOD)]) == {}
    # one drawing of another image does not make an expert who stands apart
    assert apart([(names, GOOD), (names, LOST), (names, GOOD)]) == {}


def test_pairs_are_averaged_over_the_images_that_both_drew() -> None:
    images = [(["a", "b"], matrix([0.4])), (["a", "b", "c"], matrix([0.8, 0.5], [0.1]))]
    assert mean_pairwise(images) == {("a", "b"): pytest.approx(0.6), ("a", "c"): 0.5, ("b", "c"): 0.1}


def test_the_table_has_a_row_per_image_and_expert_and_the_missing() -> None:
    truths = [image("one", LOST), image("two", GOOD[:3, :3], ["e3"])]
    table = agreement_table(truths)
    assert table[["image", "expert", "status"]].to_numpy().tolist()[:2] == [
        ["one", "e0", "alone"],
        ["one", "e1", "drawn"],
    ]
    assert table.iloc[-1][["image", "expert", "status"]].tolist() == ["two", "e3", "missing"]
    assert np.isnan(table.iloc[-1]["dice"])
    assert "ap50" not in table
    summaries = summarise(truths, ["e0", "e1", "e2", "e3"])
    assert [(one.images, one.missing) for one in summaries] == [(2, 0), (2, 0), (2, 0), (1, 1)]
    assert summaries[0].minimum_dice == 0.1
    (said,) = warnings(truths, summaries)
    assert said.startswith("one: the drawing of e0 agrees with nobody (Dice 0.05 with the others, who have 0.80")


def test_the_picture_is_the_same_for_the_same_input_and_names_who_is_alone(tmp_path: Path) -> None:
    truths = [image("one", LOST), image("two", GOOD[:3, :3], ["e3"])]
    experts = ["e0", "e1", "e2", "e3", "nobody-saw"]
    found = agreement_matrix(truths, experts)
    assert found[0, 1] == pytest.approx((0.05 + 0.8) / 2)
    assert found[0, -1] == pytest.approx(0.5)
    assert np.isnan(found[4, :4]).all()
    picture = draw_agreement(truths, experts)
    assert picture == draw_agreement(truths, experts)
    ElementTree.fromstring(picture)
    assert b"e0: agrees with nobody" in picture


def test_a_picture_of_a_single_expert_is_drawn_too() -> None:
    ElementTree.fromstring(draw_agreement([image("one", matrix())], ["e0"]))
