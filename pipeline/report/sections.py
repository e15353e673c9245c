"""Sections of the page: counts, distributions, what is known about the ensemble."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup

from chorus.pipeline.core.provenance import About
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import ChorusError
from chorus.pipeline.reference.reference import Reference
from chorus.pipeline.reference.storage import find_reference
from chorus.pipeline.report import plots
from chorus.pipeline.report.documents import Evaluation
from chorus.pipeline.report.rows import Images
from chorus.pipeline.scores.flag_registry import FLAGS
from chorus.pipeline.scores.judgement_scores import EXPECTED_DICE, MEASURED_DICE
from chorus.pipeline.scores.region_scores import UNCERTAINTY
from chorus.pipeline.shift.batch_effects import GroupLevel, GroupTest
from chorus.pipeline.shift.hypothesis_tests import ShiftTest
from chorus.pipeline.shift.shift import Shift

# Maximum number of lines of a table, and of levels of a group, within the page.
_MOST = 40
_LEVELS = 12
# Histograms of fewer images say no more than the table.
_FEWEST = 3


@dataclass(frozen=True)
class Known:
    """Information about the ensemble of a run; None and empty if it cannot be read."""

    about: About
    kinds: frozenset[str]
    reference: Reference | None


@dataclass(frozen=True)
class Plot:
    """A plot, its title, and a line of text that summarises it."""

    title: str
    svg: Markup
    text: str


@dataclass(frozen=True)
class Raised:
    """A flag, how many images have it, and their share."""

    name: str
    label: str
    images: int
    share: float
    meaning: str


def known_of(url: str | None, digest: str | None, notes: list[str]) -> Known:
    """Return the information about the ensemble at `url`, if it still has the hash `digest`."""
    nothing = Known(About(), frozenset(), None)
    if not url:
        return nothing
    try:
        ensemble = read_ensemble(url)
        if ensemble.hash != digest:
            notes.append(f"{url}: changed since this run was made with it, so that nothing of it is shown")
            return nothing
        known = Known(ensemble.spec.about, frozenset(member.kind for member in ensemble.spec.members), None)
    except ChorusError as error:
        notes.append(f"nothing is known of the ensemble ({error})")
        return nothing
    found = find_reference(ensemble)
    if found.absent is not None and found.absent not in notes:
        notes.append(found.absent)
    return replace(known, reference=found.reference)


def flags_raised(images: Images) -> list[Raised]:
    """Return every flag that some image has, in the order of the flags."""
    counts = images.table["flags"].explode().value_counts()
    raised = [(flag, int(counts.get(flag.name, 0))) for flag in FLAGS]
    return [Raised(flag.name, flag.label, count, count / len(images), flag.meaning) for flag, count in raised if count]


def distributions(images: Images, reference: Reference | None) -> list[Plot]:
    """Return a histogram per score, of the run and of the reference; none of a few images without a reference."""
    if reference is None and len(images) < _FEWEST:
        return []
    frame = None if reference is None else reference.frame()
    histograms = []
    for quantity in images.quantities:
        key = quantity.in_reference
        if key is None or quantity.score.texture:  # the parts of texture say nothing by themselves
            continue
        theirs = np.empty(0)
        if frame is not None and key in frame:
            theirs = frame[key].to_numpy(np.float64, na_value=np.nan)
        theirs = theirs[np.isfinite(theirs)]
        own = images.values(quantity.key)
        what = "measured in the reference" if key == "dice" else "reference"
        svg = Markup(plots.histogram(own, theirs, quantity.label))
        histograms.append(Plot(quantity.label, svg, _medians(own, theirs, what)))
    return histograms


def measured_plots(images: Images) -> list[Plot]:
    """Plot measured Dice against expected Dice and uncertainty; none without an evaluation."""
    scatters = []
    for column in (EXPECTED_DICE.column(), UNCERTAINTY.column()):
        if not images.measured or column.key not in images.table:
            continue
        names = (column.key, MEASURED_DICE.name)
        x, y = (images.table[name].to_numpy(np.float64, na_value=np.nan) for name in names)
        both = np.isfinite(x) & np.isfinite(y)
        if both.any():
            measured = MEASURED_DICE.column().label
            svg = plots.scatter(x[both], y[both], column.label, measured, diagonal=column.score.is_dice)
            scatters.append(
                Plot(f"{measured} by {column.label}", Markup(svg), f"{int(both.sum())} images with a truth")
            )
    return scatters


def shifted_first(shift: Shift) -> list[ShiftTest]:
    """Return the tests, significant ones first, then the strongest effects; at most 40."""
    return sorted(shift.tests, key=lambda one: (not one.shifted, -abs(one.effect), one.name))[:_MOST]


def groups_first(shift: Shift) -> list[GroupTest]:
    """Return the tests of groups as `shifted_first` does, each with at most 12 levels.

    These are the levels with the lowest and the highest medians.
    """
    ordered = sorted(shift.groups, key=lambda one: (not one.shifted, -abs(one.effect), one.by, one.score))
    return [group.model_copy(update={"levels": _extremes(group)}) for group in ordered[:_MOST]]


def _extremes(group: GroupTest) -> list[GroupLevel]:
    levels = group.levels
    if len(levels) <= _LEVELS:
        return levels
    ranked = sorted(levels, key=lambda level: level.median)
    return ranked[: _LEVELS // 2] + ranked[-_LEVELS // 2 :]


def metrics_shown(evaluation: Evaluation) -> list[tuple[str, str, int]]:
    """Return name, formatted mean with its interval, and number of images of each metric."""
    words = {
        "dice": "Dice",
        "ap50": "AP at IoU 0.5",
        "map": "mAP",
        "panoptic_quality": "Panoptic quality",
        "baseline_dice": "Dice of a simple baseline",
        "expert_dice_mean": "Dice of the experts",
    }
    shown = []
    for name, label in words.items():
        if (one := evaluation.metrics.get(name)) is not None:
            interval = "" if one.low is None or one.high is None else f" ({one.low:.3f} to {one.high:.3f})"
            shown.append((label, f"{one.mean:.3f}{interval}", one.images))
    return shown


def _medians(own: np.ndarray, theirs: np.ndarray, what: str) -> str:
    words = f"median {np.median(own):.3g}" if own.size else "no image has it"
    return f"{words}, {what} {np.median(theirs):.3g}" if theirs.size else words
