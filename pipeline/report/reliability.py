"""The reliability diagram: the observed share of a class over its predicted probability."""

from __future__ import annotations

from chorus.pipeline.metrics.calibration_error import PixelCalibration
from chorus.pipeline.report.curves import Curve, Panel, draw_curves


def draw_reliability(pixels: PixelCalibration) -> str:
    """Draw SVG with a panel per class, and one of the predicted class; calibrated probabilities lie on the diagonal."""
    panels = [
        Panel(
            f"{name}: error {pixels.error[name]:.3f}, temperature {pixels.temperature[name]:.2f}",
            "probability that was said",
            [
                Curve("share that is so", [(stated, observed) for stated, observed, _ in points]),
                Curve("if it were right", [(0.0, 0.0), (1.0, 1.0)]),
            ],
            (0.0, 1.0),
        )
        for name, points in pixels.reliability.items()
    ]
    return draw_curves(panels, f"Reliability of the probabilities of {pixels.pixels} pixels")
