"""``chorus plan``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from chorus.console.format import plan_table, print_json, some
from chorus.console.options import RUNNING, ClusterFileOption, Json, Objects, RequestOptions, with_options
from chorus.pipeline.errors import RefusedError

if TYPE_CHECKING:
    from chorus.cluster.planning.requests import PredictRequest

out_console = Console()


@with_options(RequestOptions)
def plan(
    options: RequestOptions,
    objects: Objects = "auto",
    cluster: ClusterFileOption = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Results of a run that measured this ensemble, for --cluster; by default it is tried here.",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what `chorus predict` would do and cost: images, regions, tiles, passes, bytes, memory, placement, time.

    With --cluster it simulates time and cost on nodes that need not be available; see docs/scale.md.

    **Examples**

    `chorus plan plate.ome.zarr --ensemble nuclei/ --out results/`

    `chorus plan 'gs://lab/screen/*.zarr' -e nuclei/ -o gs://lab/out --cluster infra/cost/cluster.yaml`

    `chorus plan 'gs://lab/screen/*.zarr' -e nuclei/ -o out/ --cluster cluster.yaml --calibration gs://lab/pilot`
    """
    from chorus.cluster.costs.accounting import calibration_device

    if calibration is not None:
        if cluster is None:
            raise RefusedError("--calibration is for --cluster; give both, or leave it out")
        options.device = calibration_device(calibration) if options.device == "auto" else options.device
    request = options.request().model_copy(update={"objects": objects})
    print_forecast(request, cluster, calibration, as_json=as_json)


def print_forecast(request: PredictRequest, cluster: str | None, calibration: str | None, *, as_json: bool) -> None:
    """Print the forecast of a run; where a cluster is described, its time and cost there."""
    from chorus.cluster import predict as reprocess
    from chorus.cluster.planning.devices.cluster_file import read_cluster
    from chorus.cluster.runtime.reporting import Silent

    if cluster is None:
        forecast = reprocess.forecast(request, Silent())
        if as_json:
            print_json(asdict(forecast))
            return
        out_console.print(plan_table(forecast))
        _print_failures(forecast.failures)
        for line in some("note", [f"{name}: {note}" for name, note in forecast.notes], "what --json prints"):
            out_console.print(line, highlight=False, soft_wrap=True, markup=False)
        if forecast.unjudged:
            out_console.print(forecast.unjudged, highlight=False, soft_wrap=True, markup=False)
        return
    from chorus.commands.cluster.cost import tables

    cost_forecast = reprocess.forecast_cost(request, read_cluster(cluster), calibration, Silent())
    if as_json:
        print_json(asdict(cost_forecast))
        return
    for part in tables(cost_forecast):
        out_console.print(part, highlight=False)
    _print_failures(cost_forecast.failures)


def _print_failures(failures: Sequence[tuple[str, str]]) -> None:
    for name, message in failures:
        out_console.print(f"cannot be done: {name}: {message}", highlight=False, soft_wrap=True, markup=False)
