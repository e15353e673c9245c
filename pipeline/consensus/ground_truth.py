"""The ground truth of one image from several annotators' drawings: counted, estimated, written, compared.

Pixels are read twice, in blocks: once to count the annotators' vote patterns, once to write the label that the estimate
assigns to each. So an OME-Zarr may be larger than memory; for raster files the estimate is held in memory, and for
instance labels the drawings are, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from chorus.pipeline.consensus.agreement import ExpertAgreement, alone, among_others, expert_agreement, with_others
from chorus.pipeline.consensus.annotations import DrawnImage, Labels, class_labels, open_drawing
from chorus.pipeline.consensus.instance_votes import vote_on_objects
from chorus.pipeline.consensus.staple import staple
from chorus.pipeline.consensus.vote_patterns import PatternLabels, VotePatterns
from chorus.pipeline.consensus.votes import Ties, intersection, majority, union
from chorus.pipeline.consensus.writer import places, write_objects, write_pixels
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io.inside import inside
from chorus.pipeline.metrics.objects import average_precision


class TruthSettings(BaseModel):
    """All settings, besides the drawings, on which a byte of the result depends.

    Attributes
    ----------
    method : by default ``staple``, and ``vote`` for instances
    ties : what becomes of a pixel (an object) on which classes are equally likely
    classes : of two, everything that is not 0 is foreground; of more, labels are 0 to `classes` - 1
    instances : whether labels are objects
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["staple", "vote", "union", "intersection"] = "staple"
    ties: Ties = "background"
    classes: int = Field(default=2, ge=2, le=256)
    instances: bool = False

    @model_validator(mode="before")
    @classmethod
    def _default(cls, given: Any) -> Any:
        """Fill in the default method."""
        if isinstance(given, dict) and given.get("method") is None:
            return given | {"method": "vote" if given.get("instances") else "staple"}
        return given

    @model_validator(mode="after")
    def _of_a_kind(self) -> TruthSettings:
        """Check that classes, instances and method fit together."""
        if self.instances and self.classes != 2:
            raise ValueError("instances have no classes; give --classes or --instances")
        if self.instances and self.method == "staple":
            raise ValueError("STAPLE is for pixels, not for objects; use --method vote with --instances")
        return self


class ExpertRow(BaseModel):
    """One annotator on one image; see `chorus.pipeline.consensus.agreement`.

    Attributes
    ----------
    status : ``alone`` if the drawing agrees with nobody
    dice, sensitivity, specificity : against the estimate
    dice_others : mean with the other annotators; None for a single one
    among_others : median of the others' pairs, None without two others
    ap50, mean_ap : for instances, average precision against the estimate at an IoU of 0.5, and its mean over 0.5 to
        0.95
    """

    model_config = ConfigDict(frozen=True)

    expert: str
    status: Literal["drawn", "alone"]
    dice: float
    sensitivity: float | None
    specificity: float | None
    dice_others: float | None
    among_others: float | None
    ap50: float | None = None
    mean_ap: float | None = None


class ImageTruth(BaseModel):
    """The estimated ground truth of an image.

    Attributes
    ----------
    file : path of the labels, relative to the output
    experts : annotators who drew it
    pairwise : Dice of every two of them
    foreground : share of the estimate that is not background
    notes : sentences on what is unusual
    """

    model_config = ConfigDict(frozen=True)

    name: str
    file: str
    pixels: int
    foreground: float
    experts: list[ExpertRow]
    pairwise: list[list[float]]
    missing: list[str]
    notes: list[str]


def truth_file(image: DrawnImage, settings: TruthSettings) -> str:
    """Return the path of an image's labels, relative to the output.

    It is an OME-Zarr if a drawing is one and labels are no instances, else a TIFF.
    """
    zarr = any(drawing.kind == "zarr" for drawing in image.drawings) and not settings.instances
    return image.name + (".ome.zarr" if zarr else ".tif")


def estimate_truth(image: DrawnImage, out: str, settings: TruthSettings) -> ImageTruth:
    """Estimate the ground truth of an image and write it below `out`; may be repeated.

    Raises
    ------
    ImageError
        If a drawing cannot be read, or has another size or other values.
    OutputError
        If storage does not accept the result.
    """
    with ExitStack() as stack:
        drawings = [stack.enter_context(open_drawing(drawing)) for drawing in image.drawings]
        _check_sizes(drawings)
        return (_objects if settings.instances else _pixels)(image, drawings, out, settings)


def decide(patterns: VotePatterns, settings: TruthSettings) -> tuple[PatternLabels, list[str]]:
    """Return the estimate, and sentences on what was unusual about it."""
    notes = []
    if settings.method == "staple":
        result = staple(patterns, settings.ties)
        estimate = result.estimate
        if not result.converged:
            notes.append(f"STAPLE was stopped after {result.rounds} rounds, before it had settled")
    elif settings.method == "vote":
        estimate = majority(patterns, settings.ties)
    else:
        estimate = union(patterns) if settings.method == "union" else intersection(patterns)
    return estimate, notes


def _pixels(image: DrawnImage, drawings: Sequence[Labels], out: str, settings: TruthSettings) -> ImageTruth:
    def read(t: int, z: int, window: Window) -> list[NDArray[np.integer]]:
        return [class_labels(one.read(t, z, window), settings.classes, one.url) for one in drawings]

    patterns: VotePatterns | None = None
    for position in places(drawings[0]):
        block = VotePatterns.count(read(*position), settings.classes)
        patterns = block if patterns is None else patterns + block
    assert patterns is not None  # an image has pixels
    estimate, notes = decide(patterns, settings)
    file = truth_file(image, settings)
    write_pixels(drawings, inside(out, file), settings.classes, lambda *position: estimate.apply(read(*position)))
    agreement = expert_agreement(patterns.votes, estimate.labels, patterns.counts, settings.classes)
    notes = [*_degenerate(image, patterns, estimate.labels), *notes]
    foreground = int(patterns.counts[estimate.labels != 0].sum()) / patterns.pixels
    return _result(image, file, patterns.pixels, foreground, agreement, notes, [None] * len(drawings))


def _objects(image: DrawnImage, drawings: Sequence[Labels], out: str, settings: TruthSettings) -> ImageTruth:
    lengths = drawings[0].lengths
    if lengths["t"] * lengths["z"] > 1:
        raise ImageError(f"{drawings[0].url}: --instances takes single planes; give each plane as an image of its own")
    whole = Window.of(0, lengths["y"], 0, lengths["x"])
    labels = [one.read(0, 0, whole) for one in drawings]
    for one, drawing in zip(labels, drawings, strict=True):
        if one.min() < 0:
            raise ImageError(f"{drawing.url}: labels go down to {one.min()}; 0 is background and objects count from 1")
    assert settings.method != "staple"  # as the settings have it
    estimate = vote_on_objects(labels, settings.method, settings.ties).labels
    file = truth_file(image, settings)
    write_objects(estimate, inside(out, file))
    patterns = VotePatterns.count([one != 0 for one in [*labels, estimate]], 2)
    votes = patterns.votes
    agreement = expert_agreement(votes[:-1], votes[-1], patterns.counts, 2)
    drawn = VotePatterns.count([one != 0 for one in labels], 2)
    notes = _degenerate(image, drawn, estimate.max(keepdims=True))
    precisions = [average_precision(estimate, one) for one in labels]
    return _result(image, file, estimate.size, float((estimate != 0).mean()), agreement, notes, precisions)


def _result(
    image: DrawnImage,
    file: str,
    pixels: int,
    foreground: float,
    agreement: ExpertAgreement,
    notes: list[str],
    precisions: Sequence[list[float] | None],
) -> ImageTruth:
    means, nobody = with_others(agreement.pairwise), alone(agreement.pairwise)
    rows = []
    for index, drawing in enumerate(image.drawings):
        precision = precisions[index]
        row = ExpertRow(
            expert=drawing.expert,
            status="alone" if nobody[index] else "drawn",
            dice=agreement.dice[index],
            sensitivity=agreement.sensitivity[index],
            specificity=agreement.specificity[index],
            dice_others=means[index],
            among_others=among_others(agreement.pairwise, index),
            ap50=None if precision is None else precision[0],
            mean_ap=None if precision is None else float(np.mean(precision)),
        )
        rows.append(row)
    return ImageTruth(
        name=image.name,
        file=file,
        pixels=pixels,
        foreground=foreground,
        experts=rows,
        pairwise=agreement.pairwise.tolist(),
        missing=list(image.missing),
        notes=notes,
    )


def _degenerate(image: DrawnImage, patterns: VotePatterns, labels: NDArray[np.integer]) -> list[str]:
    """Return a sentence if there was nothing to estimate."""
    votes = patterns.votes
    if len(votes) == 1:
        return [f"only {image.drawings[0].expert} drew it, and the drawing is taken for the truth"]
    if not votes.any():
        return ["no expert drew anything; the truth is empty"]
    if (votes == votes[0]).all():
        return ["all experts drew the same, which is taken for the truth"]
    return [] if labels.any() else ["the experts agree on nothing; the truth is empty"]


def _check_sizes(drawings: Sequence[Labels]) -> None:
    first = drawings[0]
    for other in drawings[1:]:
        if other.lengths != first.lengths:
            sizes = ["x".join(str(length) for length in one.lengths.values()) for one in (other, first)]
            raise ImageError(
                f"{other.url}: is {sizes[0]} (t, z, y, x), but {first.url} is {sizes[1]}; give drawings of one size"
            )
