"""Plots of the page: SVG by matplotlib, inline, in the colours of the page, for both light and dark mode."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 30
# More points would overlap each other, and take megabytes.
MOST_POINTS = 2_000
# Placeholder colours for matplotlib, and the variables of the page that replace them.
_INK, _LINE, _RUN, _REFERENCE = "#010101", "#020202", "#030303", "#040404"
_COLORS = {_INK: "--soft", _LINE: "--line", _RUN: "--accent", _REFERENCE: "--reference"}


def histogram(run: NDArray[np.float64], reference: NDArray[np.float64], label: str) -> str:
    """Plot the distribution of a score over the run's images (bars) and the reference's (line), as inline SVG.

    Parameters
    ----------
    run, reference : (images,) float64, finite; either may be empty, not both
    label : of the score
    """
    edges = np.histogram_bin_edges(np.concatenate([run, reference]), bins=_BINS)

    def draw(axes: Axes) -> None:
        if run.size:
            axes.stairs(_shares(run, edges), edges, fill=True, color=_RUN, alpha=0.75)
        if reference.size:
            axes.stairs(_shares(reference, edges), edges, color=_REFERENCE, linewidth=1.6)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("% of images")

    return _svg(draw, "", describe(run, reference, label))


def scatter(x: NDArray[np.float64], y: NDArray[np.float64], x_label: str, y_label: str, *, diagonal: bool) -> str:
    """Plot a point per image as inline SVG; evenly spaced ones if there are more than `MOST_POINTS`.

    Parameters
    ----------
    x, y : (images,) float64, finite
    x_label, y_label : of the axes
    diagonal : whether to draw the line of equality
    """
    step = -(-len(x) // MOST_POINTS)

    def draw(axes: Axes) -> None:
        if diagonal:
            axes.plot([0, 1], [0, 1], color=_LINE, linewidth=1.2)
        # Lines of zero length with round caps: one path, where markers would be an element of 100 bytes each.
        points = [np.repeat(values[::step], 3) for values in (x, y)]
        points[0][2::3] = np.nan
        axes.plot(*points, color=_RUN, alpha=0.5, linewidth=4, solid_capstyle="round")
        axes.set_ylabel(y_label)
        axes.set_ylim(0, 1.02)
        if diagonal:
            axes.set_xlim(0, 1.02)

    return _svg(draw, x_label, f"{y_label} against {x_label} of {len(x)} images")


def describe(run: NDArray[np.float64], reference: NDArray[np.float64], label: str) -> str:
    """Return a description of a histogram.

    Parameters
    ----------
    run, reference : (images,) float64, finite; either may be empty
    label : of the score
    """
    parts = [
        f"{whose} median {np.median(values):.4g}, 5 % to 95 % from {np.percentile(values, 5):.4g} to "
        f"{np.percentile(values, 95):.4g}, {len(values)} images"
        for whose, values in (("this run:", run), ("reference:", reference))
        if values.size
    ]
    return f"{label}; {'; '.join(parts)}"


def _shares(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of values per bin, in percent."""
    return 100 * np.histogram(values, edges)[0] / len(values)


def _svg(draw: Callable[[Axes], None], x_label: str, description: str) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {
        "svg.hashsalt": "chorus",
        "svg.fonttype": "none",
        "path.simplify": False,
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.edgecolor": _LINE,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "text.color": _INK,
    }
    with rc_context(style):
        figure = Figure(figsize=(3.4, 2.3))
        # Fixed: matplotlib's automatic layout takes longer than the drawing.
        figure.subplots_adjust(left=0.15, right=0.98, top=0.96, bottom=0.2 if x_label else 0.11)
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0)
        axes.locator_params(nbins=5)
        draw(axes)
        axes.set_xlabel(x_label)
        for artist in axes.get_children():
            artist.set_clip_on(False)
        buffer = BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue().decode(), escape(description))


def _inline(svg: str, description: str) -> str:
    """Return an SVG file as part of a page.

    It loses what only a file needs, gets a description, and takes the colours of the page.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]+"', svg)
    head = f'<svg {box.group() if box else ""} role="img" aria-label="{description}">'
    svg = head + svg[svg.index(">") + 1 :]
    for color, name in _COLORS.items():
        svg = svg.replace(color, f"var({name})")
    # Ids are the same in every plot and not needed; the font is the page's.
    return re.sub(r"\s+", " ", re.sub(r' id="[^"]*"|font-family:[^;"]*;', "", svg)).strip()
