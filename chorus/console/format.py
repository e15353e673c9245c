"""Formatting of numbers and tables for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Protocol

from rich.filesize import decimal
from rich.table import Table

from chorus.console.flags import flag_lines

if TYPE_CHECKING:
    from chorus.cluster.planning.requests import Forecast
    from chorus.cluster.state.documents import PredictOutcome
    from chorus.cluster.state.outcome import ItemRow
    from chorus.pipeline.core.run_document import ObjectCounts, SessionAccount


def print_json(content: object) -> None:
    """Print one JSON document on standard output."""
    print(
        json.dumps(content, default=lambda value: [value.start, value.stop] if isinstance(value, range) else str(value))
    )


def duration(seconds: float) -> str:
    """Format seconds as ``42 s``, ``3 min 20 s`` or ``5 h 12 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


SHOWN = 20
"""Maximum of printed lines of a list that may be very long."""
_HEADING = 12
"""Width of headings of tables of scores, in characters."""


def some(title: str, lines: Sequence[str], where: str) -> list[str]:
    """Return the first lines of `lines`, each with `title`, and how many more there are in `where`."""
    more = [f"  and {len(lines) - SHOWN} more; all are in {where}"] if len(lines) > SHOWN else []
    return [f"  {title}: {text}" for text in lines[:SHOWN]] + more


class Counted(Protocol):
    """A summary of a command over images."""

    @property
    def images(self) -> int:
        """Number of images."""
        ...

    @property
    def done(self) -> int:
        """Of these, how many are done."""
        ...

    @property
    def failed(self) -> int:
        """How many failed."""
        ...

    @property
    def open(self) -> int:
        """How many are not done yet."""
        ...

    @property
    def seconds(self) -> float:
        """Seconds since the first call began."""
        ...


def counted(summary: Counted) -> str:
    """Describe how many images of a command are done, failed and open, and the time since it began."""
    left = f", {summary.open} not yet" if summary.open else ""
    return (
        f"{summary.images} images: {summary.done} done, {summary.failed} failed{left}; "
        f"{duration(summary.seconds)} since the run was first begun"
    )


def failures(rows: Sequence[ItemRow], where: str) -> list[str]:
    """Return the messages of items that failed."""
    return some("failed", [row.message for row in rows if row.status == "failed"], where)


def plan_table(forecast: Forecast) -> Table:
    """Return a table of the work and cost of a planned run."""
    cost, memory, placement = forecast.cost, forecast.memory, forecast.placement
    twice = cost.tiles / cost.unique_tiles - 1 if cost.unique_tiles else 0
    where = "device" if placement.gpus_per_actor else "machine"
    groups = ", ".join(f"members {group.start} to {group.stop - 1}" for group in placement.groups)
    rows = {
        "images": f"{cost.images}"
        + (f" (and {len(forecast.failures)} that cannot be done)" if forecast.failures else ""),
        "regions": f"{cost.regions}",
        "tiles": f"{cost.tiles} ({twice:.0%} seen twice, at the borders of regions)",
        "forward passes": f"{cost.forward_passes}",
        "pixels": f"{cost.megapixels:.1f} megapixels",
        "read": decimal(cost.bytes_in) + " uncompressed",
        "written": decimal(cost.bytes_out) + " uncompressed, and a third more for pyramids",
        "memory per actor": f"{decimal(memory.total)} of {decimal(forecast.calibration.device_memory)} on the {where} "
        f"(weights {decimal(memory.weights)}, activations {decimal(memory.activations)}, "
        f"regions {decimal(memory.regions)}, process {decimal(memory.process)})",
        "placement": "in this process, without Ray"
        if forecast.executor == "serial"
        else f"{placement.kind}: {placement.actors_per_stage} actors of Ray each with {groups}",
        "expected time": f"{duration(forecast.seconds)} of forward passes "
        f"({forecast.calibration.seconds_per_tile * 1000:.0f} ms a tile on {forecast.calibration.device})",
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def score_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str], title: str) -> Table:
    """Return a table of rows of scores under their labels, numbers to four digits.

    Headings are narrow, so that names, which fold, have the rest of the line.
    """
    from chorus.pipeline.scores.registry import column_of, phrase_of

    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(fill(phrase_of(name), _HEADING), overflow="fold", no_wrap=column_of(name) is not None)
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in columns))
    return table


def summary_lines(outcome: PredictOutcome, *, with_report: bool, judging: str | None) -> list[str]:
    """Describe how a run ended, what is flagged (or why nothing is), where its results are, and what to do next."""
    summary = outcome.summary
    lines = [
        f"{summary.images} images: {summary.done} done, {summary.empty} without foreground, "
        f"{summary.failed} failed; {duration(summary.seconds or 0)} since the run was first begun"
    ]
    failed = [row for row in outcome.rows if row.status == "failed"]
    lines += [f"  failed: {row.name}: {row.message}" for row in failed[:20]]
    if len(failed) > 20:
        lines.append(f"  and {len(failed) - 20} more; all are in scores.parquet")
    notes = [f"{row.name}: {row.message}" for row in outcome.rows if row.status != "failed" and row.message]
    lines += some("note", notes, "scores.parquet")
    if summary.passes_saved is not None:
        lines.append(f"adaptive effort left out {summary.passes_saved:.0%} of the forward passes")
    lines += _expectation(summary)
    objects = summary.objects
    if objects is not None and objects.failed:
        lines.append(f"  failed: objects of {objects.failed} images; {outcome.out}/objects.json says why")
    if outcome.state == "interrupted":
        return [*lines, f"cut short: {outcome.message}"]
    judged = flag_lines(summary.flags) if summary.flags else []
    judged += [f"note     {judging}"] if judging else []
    return [
        *lines,
        *judged,
        f"results  {outcome.out}/images  (open in napari or any OME-Zarr viewer)",
        *([f"objects  {outcome.out}/objects.parquet  ({_objects(objects)})"] if objects else []),
        *([f"report   {outcome.out}/report/index.html"] if with_report else []),
        f"next     chorus rank {outcome.out}",
    ]


def _objects(objects: ObjectCounts) -> str:
    """Describe the number of objects of each class, and their method."""
    counts = ", ".join(f"{count} of {name}" for name, count in objects.counts.items())
    return f"{counts}, by {objects.method}"


def _expectation(account: SessionAccount) -> list[str]:
    """Compare the time of this session with the forecast, and state its cost."""
    parts = []
    if account.measured_over_predicted is not None:
        parts.append(
            f"regions took {duration(account.measured_seconds or 0)}, {account.measured_over_predicted:.2f} times the "
            f"{duration(account.predicted_seconds or 0)} that were expected; devices {account.device_busy or 0:.0%} "
            f"busy"
        )
    if account.cost is not None:
        parts.append(f"cost of this session {account.cost.amount:.2f} {account.cost.currency}")
    return ["; ".join(parts)] if parts else []


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return "" if value is None else str(value)
