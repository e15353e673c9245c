"""Curves: an SVG that is well-formed and the same every time, whose lines go where the numbers say."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from chorus.pipeline.report.curves import Curve, Panel, curve_figure, draw_curves

SVG = "{http://www.w3.org/2000/svg}"


def test_the_file_is_xml_says_what_it_shows_and_is_the_same_every_time() -> None:
    panels = [
        Panel("Loss", "step", [Curve("fold <0>", [(0, 1), (10, 0.5), (20, 0)])], (0, 1)),
        Panel("Dice", "step", []),
    ]
    svg = draw_curves(panels, "a & b")
    root = ElementTree.fromstring(svg)
    assert root.find(f"{SVG}title").text == "a & b"  # type: ignore[union-attr]
    texts = ["".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")]
    assert {"Loss", "Dice", "step", "fold <0>"} <= set(texts)
    assert draw_curves(panels, "a & b") == svg


@pytest.mark.parametrize(
    "values", [[], [(0, 1.0)], [(0, float("nan"))], [(0, float("inf")), (1, 2.0)], [(0, 3.0), (1, 3.0)]]
)
def test_lines_go_through_the_points_that_are_finite(values: list[tuple[float, float]]) -> None:
    figure = curve_figure([Panel("Loss", "step", [Curve("fold 0", values)])])
    finite = [point for point in values if np.isfinite(point).all()]
    lines = [list(zip(*line.get_data(), strict=True)) for line in figure.axes[0].lines]
    assert lines == ([finite] if finite else [])
    assert "nan" not in draw_curves([Panel("Loss", "step", [Curve("fold 0", values)])], "loss")


def test_a_curve_has_one_colour_and_one_entry_in_the_legend_in_all_panels() -> None:
    curves = [Curve("fold 0", [(0, 1.0), (1, 2.0)]), Curve("fold 1", [(0, 2.0), (1, 3.0)])]
    figure = curve_figure([Panel("Loss", "step", curves), Panel("Dice", "step", curves[::-1])])
    first, second = ([line.get_color() for line in axes.lines] for axes in figure.axes)
    assert first == second[::-1]
    assert len(set(first)) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fold 0", "fold 1"]
