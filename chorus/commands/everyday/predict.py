"""``chorus predict``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from chorus.commands.everyday.plan import print_forecast
from chorus.console.format import print_json, summary_lines
from chorus.console.options import RUNNING, ClusterFileOption, Json, Objects, RequestOptions, with_options

err = Console(stderr=True)


@with_options(RequestOptions)
def predict(
    options: RequestOptions,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop, as `chorus plan`.")] = False,
    report: Annotated[
        bool, typer.Option(help="Write report/index.html at the end, and thumbnails for it on the way.")
    ] = True,
    objects: Objects = "auto",
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65534,
            help="Port for Prometheus while the run goes on; a local Ray takes the next one.",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    cluster: ClusterFileOption = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Keep when what was done, for `chorus profile OUT`.", rich_help_panel=RUNNING),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read all results of earlier sessions and do anew what differs from its checksum, not only its size.",
            rich_help_panel=RUNNING,
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Segment OME-Zarr images with an ensemble; the same command again resumes.

    Leaves posteriors, labels and objects as OME-Zarr, `scores.parquet`, `objects.parquet` and `run.json` in OUT, and
    `flags.parquet` (expected Dice, what is out of distribution and why) if the ensemble has a reference set. Exit code
    0: all done, 1: finished with failed images, 2: refused, 3: interrupted, resumable.

    **Examples**

    `chorus predict plate.ome.zarr --ensemble nuclei/ --out results/`

    `chorus predict 's3://bucket/screen/*.zarr' -e s3://bucket/ensemble.yaml -o s3://bucket/out --address auto`

    `chorus predict slide.zarr -e tumour/ -o out/ --channel HE --save probability,epistemic --region 4096`
    """
    request = options.request().model_copy(update={"objects": objects})
    if dry_run:
        print_forecast(request, cluster, None, as_json=as_json)
        return
    from chorus.cluster import predict as reprocess
    from chorus.cluster.planning.devices.cluster_file import read_cluster
    from chorus.cluster.state.output import read_run
    from chorus.cluster.telemetry.logs import about_run
    from chorus.cluster.telemetry.metrics import run_label
    from chorus.console.progress import ConsoleReporter
    from chorus.pipeline.core.run_document import PredictDocument
    from chorus.pipeline.io import storage
    from chorus.pipeline.report.page import write_report

    about_run(run_label(storage.normalise(request.out)))
    prices = None if cluster is None else read_cluster(cluster)
    carried_out = {"thumbnails": report, "metrics_port": metrics_port, "cluster": prices, "profile": profile}
    carried_out["verify"] = verify
    request = request.model_copy(update={"run": request.run.model_copy(update=carried_out)})
    of_objects = ConsoleReporter(err, units="steps", devices="cores")
    outcome = reprocess.predict(request, ConsoleReporter(err), of_objects)
    if report and outcome.state != "interrupted":
        write_report(outcome.out)
    if as_json:
        ended = {name: getattr(outcome, name) for name in ("out", "state", "message")}
        print_json(ended | {"summary": outcome.summary.model_dump(mode="json")})
    for line in summary_lines(outcome, with_report=report, judging=read_run(outcome.out, PredictDocument).judging):
        err.print(line, highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(outcome.exit_code)
