"""What flags of images look like: a table, and lines at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from chorus.pipeline.core.run_document import FlagCounts


def print_judged(console: Console, rows: Sequence[Mapping[Any, Any]], more: Sequence[str], title: str) -> None:
    """Print a table with a row per image, its expected Dice and its flags; below it why images are flagged.

    Parameters
    ----------
    console : where to print
    rows : of images, with the columns of ``flags.parquet``
    more : further columns of numbers
    title : above the table
    """
    from chorus.pipeline.scores.flag_registry import flag_label
    from chorus.pipeline.scores.registry import STATED, column_of

    numbers = [*(score.name for score in STATED), *more]
    table = Table(title=title, title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("image", overflow="fold")
    for name in numbers:
        column = column_of(name)
        table.add_column(name if column is None else column.label, justify="right")
    table.add_column("flags", overflow="fold")
    for row in rows:
        cells = [escape(_cell(row[name])) for name in ("rank", "name", *numbers)]
        table.add_row(*cells, ", ".join(map(flag_label, row["flags"])))
    console.print(table)
    # Reasons are sentences, which no column of a terminal is wide enough for.
    for row in rows:
        if len(row["reasons"]):
            place = _cell(row["rank"]) or "-"
            text = f"{place} {row['name']}: {'; '.join(row['reasons'])}"
            console.print(text, highlight=False, soft_wrap=True, markup=False)


def flag_lines(counts: FlagCounts) -> list[str]:
    """Describe how many images of a run are flagged, and by how many reference images."""
    from chorus.pipeline.scores.flag_registry import flag_label

    named = ", ".join(f"{count} {flag_label(name)}" for name, count in counts.images.items()) or "none"
    return [f"flagged  {named}; {counts.look_at} to look at first, by {counts.reference_images} reference images"]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"
    return "" if value is None or str(value) == "<NA>" else str(value)
