"""Parsers of options that are more than one number."""

from __future__ import annotations

from typing import Literal, TypeVar

import typer

Number = TypeVar("Number", int, float)


def edges(text: str) -> int | tuple[int, ...]:
    """Parse one whole number, or one for each of z, y, x; raise BadParameter for anything else."""
    return _per_axis(text, int, "16,48,48")


def fractions(text: str) -> float | tuple[float, ...]:
    """Parse one number, or one for each of z, y, x; raise BadParameter for anything else."""
    return _per_axis(text, float, "0.5,0.25,0.25")


def diameter(text: str) -> float | Literal["auto"]:
    """Parse a number or ``auto``; raise BadParameter for anything else."""
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: give a number of pixels, or auto") from error


def _per_axis(text: str, kind: type[Number], example: str) -> Number | tuple[Number, ...]:
    try:
        values = tuple(map(kind, text.split(",")))
    except ValueError:
        values = ()
    if len(values) not in (1, 3):
        raise typer.BadParameter(f"{text!r}: give a number, or three for z, y and x such as {example}")
    return values if len(values) == 3 else values[0]
