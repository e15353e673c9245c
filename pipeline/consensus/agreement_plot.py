"""A plot of the annotators' agreement: for every two of them, and for every image."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.consensus.agreement import mean_pairwise
from chorus.pipeline.consensus.agreement_table import matrix_of, names_of
from chorus.pipeline.consensus.ground_truth import ImageTruth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Number of images shown: those with the lowest agreement.
_SHOWN = 40
# Matrices of more experts have no room for numbers.
_NUMBERED = 12
_ALONE = "#e41a1c"
TRUTH = "truth"
"""Name of the estimate among the annotators."""


def draw_agreement(truths: Sequence[ImageTruth], experts: Sequence[str]) -> bytes:
    """Draw the plot as an SVG file; equal input gives equal bytes.

    On the left, mean Dice of every two annotators, and of each with the estimate, over the images that both drew. On
    the right, per image, each annotator's mean Dice with the others; drawings that agree with nobody are marked and
    named.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    chosen = _least_agreed(truths)
    edge = 2.4 + 0.45 * (len(experts) + 1)
    height = max(edge, 1.6 + 0.22 * len(chosen))
    with rc_context({"svg.hashsalt": "chorus", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(edge + 6, height), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[edge, 6])
        _draw_matrix(left, agreement_matrix(truths, experts), [*experts, TRUTH])
        _draw_images(right, chosen, len(truths), experts)
        buffer = BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def agreement_matrix(truths: Sequence[ImageTruth], experts: Sequence[str]) -> NDArray[np.float64]:
    """Return the mean Dice of every two of (the annotators, the estimate).

    Returns
    -------
    NDArray[np.float64]
        (experts + 1, experts + 1); NaN if no image has both, 1 on the diagonal.
    """
    count = len(experts)
    matrix = np.full((count + 1, count + 1), np.nan)
    np.fill_diagonal(matrix, 1.0)
    row_of = {expert: index for index, expert in enumerate(experts)}
    for (one, other), dice in mean_pairwise((names_of(truth), matrix_of(truth)) for truth in truths).items():
        matrix[row_of[one], row_of[other]] = matrix[row_of[other], row_of[one]] = dice
    for expert, index in row_of.items():
        dices = [row.dice for truth in truths for row in truth.experts if row.expert == expert]
        if dices:
            matrix[index, count] = matrix[count, index] = float(np.mean(dices))
    return matrix


def _least_agreed(truths: Sequence[ImageTruth]) -> list[ImageTruth]:
    """Return the images of several annotators on which one agrees least with the others, lowest agreement first."""
    several = [truth for truth in truths if len(truth.experts) > 1]
    return sorted(several, key=lambda truth: (min(row.dice_others or 0.0 for row in truth.experts), truth.name))[
        :_SHOWN
    ]


def _draw_matrix(axes: Axes, matrix: NDArray[np.float64], names: Sequence[str]) -> None:
    picture = axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
    places = range(len(names))
    axes.set_xticks(places, names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, names)
    if len(names) <= _NUMBERED + 1:
        for row in places:
            for column in places:
                value = matrix[row, column]
                if row != column and np.isfinite(value):
                    ink = "black" if value > 0.6 else "white"
                    axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink)
    axes.set_title("Mean Dice of every two")
    axes.figure.colorbar(picture, ax=axes, shrink=0.6)


def _draw_images(axes: Axes, truths: Sequence[ImageTruth], total: int, experts: Sequence[str]) -> None:
    from matplotlib import colormaps

    colors = colormaps["tab10"].colors  # type: ignore[attr-defined]
    for index, expert in enumerate(experts):
        points = [
            (row.dice_others, position, row.status == "alone")
            for position, truth in enumerate(truths)
            for row in truth.experts
            if row.expert == expert and row.dice_others is not None
        ]
        axes.scatter(
            [dice for dice, _, _ in points],
            [position for _, position, _ in points],
            color=colors[index % len(colors)],
            s=30,
            label=expert,
            zorder=2,
        )
        for dice, position, alone in points:
            if alone:
                axes.scatter([dice], [position], s=90, facecolors="none", edgecolors=_ALONE, linewidths=1.6)
                axes.annotate(f"{expert}: agrees with nobody", (dice, position), (0, 8), textcoords="offset points")
    axes.set_yticks(range(len(truths)), [truth.name for truth in truths])
    axes.set_ylim(max(1, len(truths)) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(color="#dddddd", zorder=0)
    axes.set_xlabel("mean Dice with the other experts")
    more = f" (the {len(truths)} of {total} with least agreement)" if len(truths) < total else ""
    axes.set_title(f"Images{more}")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
