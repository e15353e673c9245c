"""Plots of curves, such as those of training: an SVG that any browser opens; equal numbers give equal bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

from chorus.pipeline.ensembles.ensemble import COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Sizes of a panel and of a row of the legend in inches, names per row of the legend and panel, and panels side by side.
_WIDTH, _HEIGHT, _LEGEND_ROW, _NAMES, _ACROSS = 4.8, 3.2, 0.22, 3, 4
# Yellow is not visible on white.
_COLORS = tuple(color for color in COLORS if color != "#ffff33")
_STYLE = {"svg.hashsalt": "chorus", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}


@dataclass(frozen=True, slots=True)
class Curve:
    """A line: `name` is in the legend once, however many panels have it; points that are not finite are left out.

    Attributes
    ----------
    points : (x, y), x ascending
    """

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves over the same axes.

    Attributes
    ----------
    title, x_label : for display
    y_range : of the vertical axis; None takes that of the points
    """

    title: str
    x_label: str
    curves: Sequence[Curve]
    y_range: tuple[float, float] | None = None


def draw_curves(panels: Sequence[Panel], description: str) -> str:
    """Draw the panels, four side by side, with one legend below, as the text of an SVG file with this `description`."""
    from matplotlib import rc_context

    with rc_context(_STYLE):  # type: ignore[arg-type]
        buffer = StringIO()
        curve_figure(panels).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    head, root, rest = svg.partition("<svg ")
    start, end, content = rest.partition(">")
    return f'{head}{root}role="img" {start}{end}<title>{escape(description)}</title>{content}'


def curve_figure(panels: Sequence[Panel]) -> Figure:
    """Return the figure: axes for each panel, a line for each curve that has points."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    colors = {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(names)}
    columns = min(max(1, len(panels)), _ACROSS)
    down = max(1, -(-len(panels) // columns))
    rows = -(-len(names) // (_NAMES * columns))
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * down + _LEGEND_ROW * rows), layout="constrained")
    places = figure.subplots(down, columns, squeeze=False).ravel()
    for unused in places[len(panels) :]:
        unused.set_axis_off()
    for panel, axes in zip(panels, places, strict=False):
        axes.set(title=panel.title, xlabel=panel.x_label)
        if panel.y_range is not None:
            axes.set_ylim(*panel.y_range)
        axes.grid(color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        for curve in panel.curves:
            points = [point for point in curve.points if all(map(math.isfinite, point))]
            if points:  # a line of one point would not be visible
                axes.plot(*zip(*points, strict=True), color=colors[curve.name], marker="." if len(points) == 1 else "")
    legend = [Line2D([], [], color=colors[name], label=name) for name in names]
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=_NAMES * columns, frameon=False)
    return figure
