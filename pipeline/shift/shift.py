"""Compare a whole run with the reference set of its ensemble: does the reference set still represent its images.

Covariate shift: images look different (intensity, noise, sharpness, object size, encoder features), or the members
are less certain. Prior shift: there is more or less of a class. Confounders: scores depend on the plate, on the
position on it, or on a column of a table. A shift is reported if it is significant and not negligible.
"""

from __future__ import annotations

from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.reference.marginals import numbers
from chorus.pipeline.reference.reference import Reference
from chorus.pipeline.scores.registry import columns_in, phrase_of
from chorus.pipeline.shift.batch_effects import RHO, GroupTest, PlateMap, group_tests, plate_maps
from chorus.pipeline.shift.hypothesis_tests import EMPTY, FEATURES, ShiftTest, kind_of, shift_tests
from chorus.pipeline.shift.two_samples import NEGLIGIBLE, detectable, draw, magnitude

FORMAT: Literal["chorus-shift/1"] = "chorus-shift/1"
_SHOWN = 3


class Shift(BaseModel):
    """Content of ``shift.json``.

    Attributes
    ----------
    reference_images, images : number of images compared; failed ones are left out
    alpha : level of the tests
    tests : of run against reference
    groups : between groups of the run's images
    plates : scores over the wells
    sentences : the outcome in words, the important first
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["chorus-shift/1"] = FORMAT
    reference_images: int
    images: int
    alpha: float
    tests: list[ShiftTest]
    groups: list[GroupTest]
    plates: list[PlateMap]
    sentences: list[str]

    @property
    def found(self) -> bool:
        """Whether the run differs from the reference."""
        return any(test.shifted for test in self.tests)


def find_shift(
    scores: pd.DataFrame,
    reference: Reference,
    features: pd.DataFrame | None = None,
    metadata: pd.DataFrame | None = None,
    *,
    alpha: float = 0.05,
) -> Shift:
    """Compare a run with the reference set; the order of the rows has no effect.

    Parameters
    ----------
    scores : rows of ``scores.parquet``
    reference : of the ensemble
    features : columns ``name`` and ``features``, at least of the images of `feature_images`, if there are any
    metadata : of `chorus.pipeline.shift.metadata.read_metadata`
    alpha : share of runs without any shift in which one may be reported, 0 to 1

    Raises
    ------
    RefusedError
        If no image has a result, `alpha` is out of range, or the table fits no image.
    """
    if not 0 < alpha < 1:
        raise RefusedError(f"--alpha {alpha:g}: give a number between 0 and 1, such as 0.05")
    table = _usable(scores)
    if not len(table):
        raise RefusedError("no image of the run has a result; look at `message` in scores.parquet")
    tests = shift_tests(table, reference, features, alpha)
    tested = {column.key for column in columns_in(table) if column.score.by_group}
    names = [name for name in map(str, table.columns) if name in tested]
    values = pd.DataFrame(numbers(table, names), columns=names)
    values.insert(0, "name", table["name"])
    groups, notes = group_tests(values, names, metadata, alpha=alpha)
    failed = len(scores) - len(table)
    notes += [f"{failed} images failed and are left out"] if failed else []
    notes += _left_out(table, reference, features)
    return Shift(
        reference_images=reference.images,
        images=len(table),
        alpha=alpha,
        tests=tests,
        groups=groups,
        plates=plate_maps(values, names),
        sentences=[*_words(tests, reference.images, len(table), alpha), *_group_words(groups), *notes],
    )


def feature_images(scores: pd.DataFrame) -> list[str]:
    """Return the names of the images whose features `find_shift` uses: a fixed draw of 1000 if there are more."""
    names = _usable(scores)["name"].to_numpy()
    return [str(name) for name in names[draw(len(names))]]


def _usable(scores: pd.DataFrame) -> pd.DataFrame:
    return scores[scores["status"].isin(["done", "empty"])].sort_values("name").reset_index(drop=True)


def _words(tests: list[ShiftTest], known: int, images: int, alpha: float) -> list[str]:
    """Return sentences on the comparison with the reference, and on shifts that it could not have detected."""
    shifted = sorted((test for test in tests if test.shifted), key=lambda test: (-abs(test.effect), test.name))
    sentences = []
    for kind in dict.fromkeys(test.kind for test in shifted):
        first, *more = (test for test in shifted if test.kind == kind)
        others = f"; so are {len(more)} more of this kind" if more else ""
        sentences.append(f"{_title(kind)}: {_difference(first)}{others}")
    if shifted:
        sentences.append(
            "the run is not like the reference images: expected Dice, bounds and risks of `chorus flag` are guesses "
            "for it; look at some of its images, and run `chorus calibrate` with such images if they are to come again"
        )
    else:
        sentences.append(
            f"no shift found: the run's {images} images are like the {known} reference images in {len(tests)} "
            f"comparisons (alpha {alpha:g})"
        )
    slight = sum(test.p_adjusted <= alpha and not test.shifted for test in tests)
    if slight:
        sentences.append(f"{slight} differences are no chance and yet negligible (Cliff's delta below {NEGLIGIBLE})")
    least = detectable(known, images, alpha / max(len(tests), 1))
    if least > 1:
        sentences.append(
            f"{images} images are too few to find any shift against {known} reference images; give more of either"
        )
    elif least > NEGLIGIBLE:
        sentences.append(
            f"with {images} images and {known} reference images only a shift of Cliff's delta {least:.2f} "
            f"({magnitude(least)}) or more is found four times in five; smaller ones may be there"
        )
    return sentences


def _title(kind: str) -> str:
    return "prior shift" if kind == "prior" else f"shift in {kind}"


def _difference(test: ShiftTest) -> str:
    basis = f"Cliff's delta {test.effect:.2f}"
    if test.low is not None:
        basis += f", 95 % interval {test.low:.2f} to {test.high:.2f}"
    basis += f", {magnitude(test.effect)}, p = {test.p_adjusted:.1g}"
    if test.name == FEATURES:
        return f"encoders see other images than those of the reference ({basis})"
    what = "the fraction of images in which nothing was found" if test.name == EMPTY else phrase_of(test.name)
    way = "higher" if test.effect > 0 else "lower"
    return f"{what} is {way}, {test.run_median:.3g} instead of {test.reference_median:.3g} ({basis})"


def _group_words(groups: list[GroupTest]) -> list[str]:
    """Return sentences on dependences on groups or numbers, the strongest first.

    Strength is epsilon squared, or the square of rho.
    """

    def strength(test: GroupTest) -> float:
        return test.effect**2 if test.measure == RHO else test.effect

    sentences = []
    for test in sorted((one for one in groups if one.shifted), key=lambda one: (-strength(one), one.by, one.score)):
        basis = f"{test.measure} {test.effect:.2f}, p = {test.p_adjusted:.1g}"
        if test.measure == RHO:
            sentences.append(
                f"{phrase_of(test.score)} {'rises' if test.effect > 0 else 'falls'} with {test.by} ({basis})"
            )
            continue
        ordered = sorted(test.levels, key=lambda level: level.median)
        ends = f"{ordered[-1].median:.3g} in {ordered[-1].name}, {ordered[0].median:.3g} in {ordered[0].name}"
        sentences.append(f"{phrase_of(test.score)} depends on {test.by}: {ends} ({basis})")
    return sentences


def _left_out(table: pd.DataFrame, reference: Reference, features: pd.DataFrame | None) -> list[str]:
    """Return a sentence on scores that are not compared since the reference lacks them."""
    looks = [name for name in map(str, table.columns) if kind_of(name) not in (None, "uncertainty")]
    missing = sorted(name for name in looks if name not in reference.scores and table[name].notna().any())
    if features is not None and reference.features is None:
        missing.append(FEATURES)
    if not missing:
        return []
    shown = ", ".join(map(phrase_of, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
    return [f"not compared, as the reference set lacks them: {shown}; run `chorus calibrate` again"]
