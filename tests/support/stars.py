"""Maps of stars that are made at random, and objects by stars written down as plainly as possible."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.instances.stars.candidates import StarMaps

Point = tuple[Fraction, Fraction]


def random_maps(seed: int, shape: tuple[int, int], rays: int = 8, radius: float = 4.0) -> StarMaps:
    """Return maps of a plane with smooth probabilities and rays that are rough, so that objects are of all shapes."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.normal(size=shape), 2)
    probability = 1 / (1 + np.exp(-3 * smooth / smooth.std()))
    rough = ndimage.gaussian_filter(
        random.normal(size=(rays, *shape)), (0.5, 2, 2), mode=("wrap", "reflect", "reflect")
    )
    lengths = radius * np.exp(0.6 * rough / rough.std())
    variation = random.random(shape, np.float32)
    return StarMaps(
        probability.astype(np.float16).astype(np.float32)[None],
        lengths.astype(np.float32),
        variation,
        Window.of(0, shape[0], 0, shape[1]),
    )


def cut(maps: StarMaps, window: Window) -> StarMaps:
    """Return the maps of a window of a plane."""
    at = window.y.slice, window.x.slice
    assert maps.variation is not None
    return StarMaps(maps.probability[(slice(None), *at)], maps.rays[(slice(None), *at)], maps.variation[at], window)


def plain_shared_area(a: NDArray[np.int32], b: NDArray[np.int32], apart: tuple[int, int]) -> Fraction:
    """Return the area that two polygons share, exactly: of all pairs of triangles between the point and an edge."""
    total = Fraction(0)
    for one, sign in _triangles(a, (0, 0)):
        for other, other_sign in _triangles(b, apart):
            total += sign * other_sign * _area(_clipped(one, other))
    return total


def plain_suppression(
    points: NDArray[np.int64], vertices: NDArray[np.int32], areas: NDArray[np.float64], threshold: float
) -> list[int]:
    """Return the candidates that are kept, by rank: every pair is compared."""
    kept: list[int] = []
    for j in range(len(points)):
        for i in kept:
            y, x = (points[j] - points[i]).tolist()
            shared = plain_shared_area(vertices[i], vertices[j], (y, x))
            if shared / (Fraction(float(min(areas[i], areas[j]))) + Fraction(1e-10)) > Fraction(threshold):
                break
        else:
            kept.append(j)
    return kept


def _triangles(vertices: NDArray[np.int32], at: tuple[int, int]) -> list[tuple[list[Point], int]]:
    """Return the triangles between the point and each edge, counter-clockwise, with the sign of their area."""
    corners = [(Fraction(int(y) + at[0]), Fraction(int(x) + at[1])) for y, x in vertices]
    middle = Fraction(at[0]), Fraction(at[1])
    triangles = []
    for k, corner in enumerate(corners):
        triangle = [middle, corner, corners[(k + 1) % len(corners)]]
        twice = _twice(triangle)
        if twice:
            triangles.append((triangle if twice > 0 else triangle[::-1], 1 if twice > 0 else -1))
    return triangles


def _twice(polygon: list[Point]) -> Fraction:
    pairs = zip(polygon, [*polygon[1:], *polygon[:1]], strict=True)
    return sum((x0 * y1 - y0 * x1 for (y0, x0), (y1, x1) in pairs), Fraction(0))


def _area(polygon: list[Point]) -> Fraction:
    return abs(_twice(polygon)) / 2 if polygon else Fraction(0)


def _clipped(polygon: list[Point], by: list[Point]) -> list[Point]:
    """Return the part of a convex polygon that is inside of another (Sutherland and Hodgman 1974)."""
    for (y0, x0), (y1, x1) in zip(by, [*by[1:], *by[:1]], strict=True):
        inside, previous = [], polygon[-1] if polygon else None
        for corner in polygon:
            assert previous is not None
            here = (x1 - x0) * (corner[0] - y0) - (y1 - y0) * (corner[1] - x0)
            before = (x1 - x0) * (previous[0] - y0) - (y1 - y0) * (previous[1] - x0)
            if (here >= 0) != (before >= 0):
                share = before / (before - here)
                inside.append(tuple(p + share * (c - p) for p, c in zip(previous, corner, strict=True)))
            if here >= 0:
                inside.append(corner)
            previous = corner
        polygon = inside  # type: ignore[assignment]
    return polygon
