"""The reliability diagram: how often pixels are what they were said to be, over the probability that was said."""

from __future__ import annotations

from chorus.pipeline.metrics.calibration_error import PixelCalibration
from chorus.pipeline.report.curves import Curve, Panel, draw_curves


def draw_reliability(pixels: PixelCalibration) -> str:
    """SVG with a panel per class, and one of the predicted class; on the diagonal probabilities are right."""
    panels = [
        Panel(
            f"{name}: error {pixels.error[name]:.3f}, temperature {pixels.temperature[name]:.2f}",
            "probability that was said",
            [
                Curve("share that is so", [(said, found) for said, found, _ in points]),
                Curve("if it were right", [(0.0, 0.0), (1.0, 1.0)]),
            ],
            (0.0, 1.0),
        )
        for name, points in pixels.reliability.items()
    ]
    return draw_curves(panels, f"Reliability of the probabilities of {pixels.pixels} pixels")
