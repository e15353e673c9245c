"""The output of ``chorus plan --cluster``: the work of the run, and node types side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.filesize import decimal
from rich.table import Table

from chorus.console.format import duration

if TYPE_CHECKING:
    from chorus.cluster.costs.forecast import CostForecast, DurationForecast


def tables(forecast: CostForecast) -> Iterator[RenderableType]:
    """Yield the work to be done, a row for each choice of nodes, the share of each, and the size of the output."""
    cost, measured = forecast.cost, forecast.calibration
    yield (
        f"{cost.images} images, {cost.regions} regions, {cost.tiles} tiles, {cost.megapixels / 1e3:.3g} gigapixels; "
        f"{measured.seconds_per_tile * 1000:.3g} ms a tile on {measured.device}"
    )
    table = Table(title=f"Predicted by simulation; prices in {forecast.currency} are yours", title_justify="left")
    table.add_column("nodes", overflow="fold")
    for name in ("devices", "time", "start, tail", "device hours", "busy", "repeated", "cost", "per gigapixel"):
        table.add_column(name, justify="right")
    for one in (*forecast.alone, *([forecast.together] if forecast.together else [])):
        if not one.problem:
            table.add_row(*_cells(one))
    yield table
    if forecast.together:
        yield _shares(forecast.together)
    for one in forecast.alone:
        if one.problem:
            yield f"{one.title}: {one.problem}"
    kept = f", {forecast.kept_per_month:.2f} {forecast.currency} a month" if forecast.kept_per_month else ""
    yield f"output {decimal(forecast.output_bytes)} before compression, pyramids included{kept}"


def _cells(one: DurationForecast) -> list[str]:
    return [
        one.title,
        f"{sum(nodes.devices for nodes in one.nodes)}",
        duration(one.seconds),
        f"{duration(one.start_seconds)}, {duration(one.tail_seconds + one.finish_seconds)}",
        f"{sum(nodes.device_hours for nodes in one.nodes):.3g}",
        f"{one.busy:.0%}",
        f"{one.repeated:.2%}",
        f"{one.cost:,.2f}",
        "" if one.per_gigapixel is None else f"{one.per_gigapixel:.4g}",
    ]


def _shares(together: DurationForecast) -> Table:
    """Return a table of each node type's share of the work and its cost."""
    table = Table(title="All together, by node type", title_justify="left")
    table.add_column("nodes", overflow="fold")
    for name in ("share of regions", "node hours", "taken away", "cost"):
        table.add_column(name, justify="right")
    regions = sum(nodes.regions for nodes in together.nodes)
    for nodes in together.nodes:
        table.add_row(
            f"{nodes.nodes} x {nodes.name}",
            f"{nodes.regions / regions:.1%}",
            f"{nodes.node_hours:.3g}",
            f"{nodes.preemptions:.2g}",
            f"{nodes.cost:,.2f}",
        )
    table.add_row("beside them", "", "", "", f"{together.beside:,.2f}")
    table.add_row("requests and reading", "", "", "", f"{together.requests + together.reading:,.2f}")
    return table
