"""Comparison of a network's outputs with the test outputs of its package: tolerances, differences, outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Status: TypeAlias = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Tolerance:
    """Tolerance of a package: elements that differ by more than absolute + relative * |expected| are mismatched.

    Attributes
    ----------
    mismatched : allowed number of such elements per million
    """

    relative: float
    absolute: float
    mismatched: float


@dataclass(frozen=True)
class ComparisonOutcome:
    """Result of one weight format in one way of running it.

    Attributes
    ----------
    reason : why it failed or was skipped
    absolute, relative : the largest differences from the test outputs, over all elements; None if nothing ran.
        The relative one is |given - expected| / (|expected| + 1e-6), as in bioimageio.core.
    mismatched : elements per million
    """

    status: Status
    reason: str = ""
    absolute: float | None = None
    relative: float | None = None
    mismatched: float | None = None
    seconds: float = 0.0


def tolerance(described: Any, format: str, output: str) -> Tolerance:
    """Return the tolerance as `bioimageio.core._resource_tests._get_tolerance` (0.11) chooses it, for format 0.5."""
    from bioimageio.spec.model.v0_5 import ReproducibilityTolerance

    settings = described.config.bioimageio
    chosen = ReproducibilityTolerance()
    older = (settings.model_extra or {}).get("test_kwargs", {}).get(format)
    if older is not None:
        names = ("relative_tolerance", "absolute_tolerance")
        chosen = ReproducibilityTolerance(**{name: older[name] for name in names if name in older})
    for one in settings.reproducibility_tolerance:
        ids = [str(name) for name in one.output_ids]
        if format in (one.weights_formats or [format]) and output in (ids or [output]):
            chosen = one
            break
    return Tolerance(chosen.relative_tolerance, chosen.absolute_tolerance, chosen.mismatched_elements_per_million)


def compare(given: NDArray[Any], expected: NDArray[Any], tolerance: Tolerance) -> ComparisonOutcome:
    """Compare an output with its expected values by the rule of the collection.

    Parameters
    ----------
    given, expected : any shape, any real dtype; compared as float32
    tolerance : of the package

    References
    ----------
    ``bioimageio.core._resource_tests.evaluate_mismatched_elements``, bioimageio.core 0.11.
    """
    if given.shape != expected.shape:
        return ComparisonOutcome("failed", f"gives shape {given.shape}, its test output has {expected.shape}")
    given, expected = given.astype(np.float32), expected.astype(np.float32)
    difference = np.abs(given - expected)
    if not np.isfinite(difference).all():
        return ComparisonOutcome("failed", "gives NaN or infinity, or its test output holds some")
    mismatched = difference > tolerance.absolute + tolerance.relative * np.abs(expected)
    million = float(mismatched.mean()) * 1e6
    relative = difference / (np.abs(expected) + 1e-6)
    passed = million <= tolerance.mismatched
    reason = "" if passed else f"{million:.0f} of a million elements differ by more than the tolerance"
    return ComparisonOutcome(
        "passed" if passed else "failed", reason, float(difference.max()), float(relative.max()), million
    )


def worst(outcomes: Sequence[ComparisonOutcome], seconds: float) -> ComparisonOutcome:
    """Combine the outcomes of a package's outputs: the worst status, the largest differences."""
    first = next((one for one in outcomes if one.status == "failed"), None)
    first = first or next((one for one in outcomes if one.status == "skipped"), outcomes[0])

    def most(name: str) -> float | None:
        return max((getattr(one, name) for one in outcomes if getattr(one, name) is not None), default=None)

    return ComparisonOutcome(
        first.status, first.reason, most("absolute"), most("relative"), most("mismatched"), seconds
    )
