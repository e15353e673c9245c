"""Loss curves: an SVG that is well-formed, and whose points are where the numbers say."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from chorus.pipeline.report.curves import Curve, Panel, draw_curves

SVG = "{http://www.w3.org/2000/svg}"


def points(svg: str) -> list[list[tuple[float, float]]]:
    lines = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    return [[tuple(map(float, p.split(","))) for p in line.attrib["points"].split()] for line in lines]


def test_points_are_proportional_to_the_numbers_and_upwards_is_more() -> None:
    panel = Panel("Dice", "step", [Curve("fold <0>", [(0, 0.0), (50, 0.25), (100, 1.0)])], (0.0, 1.0))
    svg = draw_curves([panel], "a & b")
    ((a, b, c),) = points(svg)
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert (a[1] - b[1]) * 4 == pytest.approx(a[1] - c[1], abs=0.4)
    texts = [t.text for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert {"fold <0>", "0.2", "100", "step"} <= set(texts)


@pytest.mark.parametrize("values", [[], [(1, 0.5)], [(1, 2.0), (2, 2.0)], [(1, math.nan), (2, 1.0), (3, 3.0)]])
def test_any_numbers_can_be_drawn(values: list[tuple[float, float]]) -> None:
    svg = draw_curves([Panel("Loss", "step", [Curve("fold 0", values)])], "loss")
    finite = sum(math.isfinite(y) for _, y in values)
    assert sum(map(len, points(svg))) == (finite if finite > 1 else 0)
    assert "nan" not in svg
