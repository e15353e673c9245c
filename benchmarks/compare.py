"""What changed between two results of a benchmark: figures of the same rows beside each other, and their ratio."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

# What a row is of; all other numbers are what was measured.
KEYS = (
    "part",
    "what",
    "peer",
    "size",
    "count",
    "backend",
    "precision",
    "tile",
    "members",
    "augmentations",
    "images",
    "shape",
)
# As earlier results, which do not say so, were measured.
EARLIER = {"backend": "eager", "precision": "fp32"}
console = Console()


def main(
    old: Annotated[Path, typer.Argument(help="JSON of an earlier run, as in benchmarks/results.")],
    new: Annotated[Path, typer.Argument(help="JSON of a later run.")],
    threshold: Annotated[float, typer.Option(help="Show figures that changed by more than this share.")] = 0.05,
) -> None:
    """Print what changed: machine and versions, then every figure of the rows that both have.

    Example: `python benchmarks/compare.py benchmarks/results/20261120T214857Z.json benchmarks/results/NEW.json`
    """
    before, after = json.loads(old.read_text()), json.loads(new.read_text())
    for name in ("machine", "versions"):
        for key in sorted(before[name].keys() | after[name].keys()):
            if before[name].get(key) != after[name].get(key):
                console.print(f"{name} {key}: {before[name].get(key)} -> {after[name].get(key)}", highlight=False)
    rows = {row_name(row): row for row in before["rows"]}
    found = {row_name(row): row for row in after["rows"]}
    for name in rows.keys() ^ found.keys():
        console.print(f"only in {old if name in rows else new}: {name}", highlight=False)
    table = Table("row", "figure", "old", "new", "new / old")
    for name in [name for name in found if name in rows]:
        for figure, a, b in changes(rows[name], found[name], threshold):
            table.add_row(name, figure, f"{a:.4g}", f"{b:.4g}", f"{b / a:.3f}" if a else "")
            name = ""
    console.print(table if table.rows else f"no figure changed by more than {threshold:.0%}")


def row_name(row: dict[str, Any]) -> str:
    """What a row is of, in words."""
    given = EARLIER | row
    return ", ".join(f"{key} {given[key]}" for key in KEYS if key in given)


def changes(old: dict[str, Any], new: dict[str, Any], threshold: float) -> list[tuple[str, float, float]]:
    """Figures of both rows whose values differ by more than `threshold` of the larger one: name, old, new."""
    before, after = figures(old), figures(new)
    return [
        (name, before[name], after[name])
        for name in before
        if name in after and not math.isclose(before[name], after[name], rel_tol=threshold)
    ]


def figures(row: dict[str, Any]) -> dict[str, float]:
    """Numbers of a row by name; those of a table within it by both names, and lists by their mean."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if name in KEYS:
            continue
        if isinstance(value, dict):
            found |= {f"{name} {key}": number for key, number in figures(value).items()}
        elif isinstance(value, list) and value and all(isinstance(one, int | float) for one in value):
            found[name] = sum(value) / len(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found


if __name__ == "__main__":
    typer.run(main)
