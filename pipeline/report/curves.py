"""Loss curves as a picture: an SVG that any browser opens, made from numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as Xml

from chorus.pipeline.ensembles.ensemble import COLORS

PANEL_WIDTH, PANEL_HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 34, 44
_LEGEND_ROW = 20
_LEGEND_COLUMN = 150
_TICKS = 5
# Yellow is not seen on white.
_COLORS = tuple(color for color in COLORS if color != "#ffff33")
_INK, _GRID = "#222222", "#dddddd"


@dataclass(frozen=True, slots=True)
class Curve:
    """A line: `name` stands in the legend once, however many panels have it; points that are not finite are left out.

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
    title, x_label : in words
    y_range : of the vertical axis; None takes that of the points
    """

    title: str
    x_label: str
    curves: Sequence[Curve]
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class _Axis:
    """From values to pixels, with round values for ticks."""

    low: float
    high: float
    start: float
    stop: float

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.stop - self.start)

    @property
    def ticks(self) -> list[float]:
        step = _round_step((self.high - self.low) / _TICKS)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def draw_curves(panels: Sequence[Panel], description: str) -> str:
    """The panels side by side with one legend below, as the text of an SVG file; `description` says it in words."""
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    width = PANEL_WIDTH * max(1, len(panels))
    per_row = max(1, (width - _LEFT) // _LEGEND_COLUMN)
    height = PANEL_HEIGHT + _LEGEND_ROW * -(-len(names) // per_row) + 8
    size = {"width": str(width), "height": str(height), "viewBox": f"0 0 {width} {height}"}
    root = Xml.Element("svg", size | {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "font-size": "12"})
    root.set("font-family", "system-ui, sans-serif")
    Xml.SubElement(root, "title").text = description
    Xml.SubElement(root, "rect", {"width": "100%", "height": "100%", "fill": "#ffffff"})
    colors = {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(names)}
    for index, panel in enumerate(panels):
        _draw_panel(Xml.SubElement(root, "g", {"transform": f"translate({index * PANEL_WIDTH} 0)"}), panel, colors)
    for index, name in enumerate(names):
        row, column = divmod(index, per_row)
        x, y = _LEFT + column * _LEGEND_COLUMN, PANEL_HEIGHT + row * _LEGEND_ROW + 8
        _line(root, (x, y), (x + 22, y), colors[name], 2.5)
        _text(root, x + 28, y + 4, name, "start")
    return Xml.tostring(root, encoding="unicode") + "\n"


def _draw_panel(group: Xml.Element, panel: Panel, colors: dict[str, str]) -> None:
    right, bottom = PANEL_WIDTH - _RIGHT, PANEL_HEIGHT - _BOTTOM
    drawn = [(curve, [p for p in curve.points if all(map(math.isfinite, p))]) for curve in panel.curves]
    points = [point for _, kept in drawn for point in kept]
    x_axis = _Axis(*_span([0.0, *(x for x, _ in points)]), _LEFT, right)
    y_axis = _Axis(*(panel.y_range or _span([y for _, y in points])), bottom, _TOP)
    _text(group, (_LEFT + right) / 2, 20, panel.title, "middle").set("font-weight", "bold")
    _text(group, (_LEFT + right) / 2, PANEL_HEIGHT - 8, panel.x_label, "middle")
    for value in x_axis.ticks:
        _line(group, (x_axis.place(value), _TOP), (x_axis.place(value), bottom), _GRID, 1)
        _text(group, x_axis.place(value), bottom + 17, f"{value:g}", "middle")
    for value in y_axis.ticks:
        _line(group, (_LEFT, y_axis.place(value)), (right, y_axis.place(value)), _GRID, 1)
        _text(group, _LEFT - 6, y_axis.place(value) + 4, f"{value:.4g}", "end")
    for curve, kept in drawn:
        placed = [(x_axis.place(x), y_axis.place(y)) for x, y in kept]
        if len(placed) == 1:  # a line of one point would not be seen
            x, y = (f"{value:.1f}" for value in placed[0])
            Xml.SubElement(group, "circle", {"cx": x, "cy": y, "r": "3", "fill": colors[curve.name]})
        elif placed:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
            line = {"points": path, "fill": "none", "stroke": colors[curve.name], "stroke-width": "1.8"}
            Xml.SubElement(group, "polyline", line)


def _line(parent: Xml.Element, start: tuple[float, float], stop: tuple[float, float], color: str, width: float) -> None:
    ends = {"x1": start[0], "y1": start[1], "x2": stop[0], "y2": stop[1]}
    attributes = {name: f"{value:.1f}" for name, value in ends.items()}
    Xml.SubElement(parent, "line", attributes | {"stroke": color, "stroke-width": f"{width:g}"})


def _text(parent: Xml.Element, x: float, y: float, text: str, anchor: str) -> Xml.Element:
    element = Xml.SubElement(parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "fill": _INK})
    element.text = text
    return element


def _span(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest value, never of no length."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if high > low else (low, low + max(1.0, abs(low)))


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= step * (1 - 1e-9))
