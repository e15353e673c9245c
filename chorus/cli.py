"""What a person types: ``chorus predict``, ``plan``, ``convert``, ``rank``, ``report``, ``train``, ``ensemble``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from chorus.cluster.runtime.signals import resumable
from chorus.cluster.runtime.versions import require_submitter
from chorus.cluster.telemetry.logs import about_run, is_structured, log, structured
from chorus.commands.cluster import cost as costs
from chorus.commands.cluster import jobs
from chorus.commands.cluster import serve as servers
from chorus.commands.cluster.profile import profile
from chorus.commands.ensembles import bench, models
from chorus.commands.ensembles import ensemble as ensembles
from chorus.commands.ensembles.train import train
from chorus.commands.everyday import export as exports
from chorus.commands.everyday.convert import convert
from chorus.commands.everyday.objects import objects
from chorus.commands.everyday.review import review
from chorus.commands.trust.calibrate import calibrate
from chorus.commands.trust.evaluate import compare, evaluate
from chorus.commands.trust.flag import flag
from chorus.commands.trust.shift import shift
from chorus.commands.trust.truth import truth
from chorus.console import format as layout
from chorus.console.options import ClusterFileOption, Json, Objects, RequestOptions, with_options
from chorus.console.progress import ConsoleReporter
from chorus.pipeline.errors import ChorusError, CutShortError, RefusedError

if TYPE_CHECKING:
    import pandas as pd

    from chorus.cluster.planning.requests import PredictRequest

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False, add_completion=False
)
app.add_typer(ensembles.app, name="ensemble", help="Look at ensembles, check them, make and edit them.")
app.add_typer(bench.app, name="bench", help="Measure this machine: which backend carries out an ensemble fastest.")
app.add_typer(models.app, name="models", help="Test packages of trained networks.")
app.add_typer(jobs.app, name="jobs", help="Look at jobs of `chorus submit` on a Ray cluster, stop and resume them.")
app.add_typer(servers.app, name="serve", help="Answer images one by one over HTTP; `serve token` makes tokens.")
app.add_typer(exports.app, name="export", help="Write results for ImageJ and QuPath, as tables, as images to correct.")
err = Console(stderr=True)
out_console = Console()


@app.command()
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
            min=1, max=65534, help="Port for Prometheus while the run goes on; a local Ray takes the next one."
        ),
    ] = None,
    cluster: ClusterFileOption = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Keep when what was done, for `chorus profile OUT`.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Segment OME-Zarr images with an ensemble; the same command again goes on where it was cut short.

    Leaves posteriors, labels and objects as OME-Zarr, `scores.parquet`, `objects.parquet` and `run.json` in OUT. Exit
    code 0: all done, 1: finished with failed images, 2: refused, 3: cut short and resumable.

    **Examples**

    `chorus predict plate.ome.zarr --ensemble nuclei/ --out results/`

    `chorus predict 's3://bucket/screen/*.zarr' -e s3://bucket/ensemble.yaml -o s3://bucket/out --address auto`

    `chorus predict slide.zarr -e tumour/ -o out/ --channel HE --save probability,epistemic --region 4096`
    """
    request = options.request().model_copy(update={"objects": objects})
    if dry_run:
        _print_forecast(request, cluster, None, as_json=as_json)
        return
    from chorus.cluster import predict as reprocess
    from chorus.cluster.planning.cluster_file import read_cluster
    from chorus.cluster.telemetry.metrics import run_label
    from chorus.pipeline.io import storage
    from chorus.pipeline.report.page import write_report

    about_run(run_label(storage.normalise(request.out)))
    prices = None if cluster is None else read_cluster(cluster)
    carried_out = {"thumbnails": report, "metrics_port": metrics_port, "cluster": prices, "profile": profile}
    request = request.model_copy(update={"run": request.run.model_copy(update=carried_out)})
    of_objects = ConsoleReporter(err, units="steps", devices="cores")
    outcome = reprocess.predict(request, ConsoleReporter(err), of_objects)
    if report and outcome.state != "interrupted":
        write_report(outcome.out)
    if as_json:
        _print_json({name: getattr(outcome, name) for name in ("out", "state", "message", "summary")})
    for line in layout.summary_lines(outcome, with_report=report):
        err.print(line, highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(outcome.exit_code)


@app.command()
@with_options(RequestOptions)
def plan(
    options: RequestOptions,
    objects: Objects = "auto",
    cluster: ClusterFileOption = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Results of a run that measured this ensemble, for --cluster; by default it is tried here."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what `chorus predict` would do and cost: images, regions, tiles, passes, bytes, memory, placement, time.

    With --cluster it says time and cost on nodes that need not be at hand, by simulation; see docs/scale.md.

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
    _print_forecast(request, cluster, calibration, as_json=as_json)


def _print_forecast(request: PredictRequest, cluster: str | None, calibration: str | None, *, as_json: bool) -> None:
    """What a run would do; where a cluster is described, what it would take and cost there."""
    if cluster is None:
        _print_plan(request, as_json=as_json)
        return
    from chorus.cluster import predict as reprocess
    from chorus.cluster.planning.cluster_file import read_cluster
    from chorus.cluster.runtime.reporting import Silent

    found = reprocess.forecast_cost(request, read_cluster(cluster), calibration, Silent())
    if as_json:
        _print_json(asdict(found))
        return
    for part in costs.tables(found):
        out_console.print(part, highlight=False)
    _print_failures(found.failures)


def _print_plan(request: PredictRequest, *, as_json: bool) -> None:
    from chorus.cluster import predict as reprocess
    from chorus.cluster.runtime.reporting import Silent

    forecast = reprocess.forecast(request, Silent())
    if as_json:
        _print_json(asdict(forecast))
        return
    out_console.print(layout.plan_table(forecast))
    _print_failures(forecast.failures)


def _print_failures(failures: Sequence[tuple[str, str]]) -> None:
    for name, message in failures:
        out_console.print(f"cannot be done: {name}: {message}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def rank(
    out: Annotated[str, typer.Argument(help="Results of `chorus predict`.")],
    by: Annotated[str, typer.Option(help="Score to rank by, a numeric column of scores.parquet.")] = "uncertainty",
    above: Annotated[
        float | None,
        typer.Option(help="Flag images beyond this value (below, for scores of which low values are doubtful)."),
    ] = None,
    top: Annotated[int, typer.Option(help="Rows to print; 0 prints all.")] = 20,
    export: Annotated[str | None, typer.Option(help="Write the ranking to a .csv, .parquet or .json file.")] = None,
    as_json: Json = False,
) -> None:
    """List the images, the most doubtful first; empty predictions and failures stand apart.

    **Examples**

    `chorus rank results/`

    `chorus rank results/ --by pairwise_dice --above 0.8 --export look-at-these.csv`
    """
    from chorus.cluster.state.scores import read_scores
    from chorus.pipeline.scores.ranking import rank as order
    from chorus.pipeline.scores.registry import IMAGE_TABLE, phrase_of

    ranking = order(read_scores(out), by, above)
    if export:
        _export(ranking.ranked, export)
    if as_json:
        frames = {"ranked": ranking.ranked, "empty": ranking.empty, "failed": ranking.failed}
        _print_json({name: json.loads(frame.to_json(orient="records")) for name, frame in frames.items()})
        return
    beside = [score.name for score in IMAGE_TABLE if score.listed and score.per == "image"]
    columns = ["rank", "name", ranking.score, *(name for name in beside if name != ranking.score)]
    shown = ranking.ranked.head(top) if top else ranking.ranked
    extra = ["flagged"] if above is not None else []
    title = f"{len(ranking.ranked)} images by {phrase_of(ranking.score)}, worst first"
    out_console.print(layout.score_table(shown, columns + extra, title))
    if above is not None:
        out_console.print(f"{int(ranking.ranked['flagged'].sum())} images flagged")
    for title, frame in (("without a score (no foreground)", ranking.empty), ("failed", ranking.failed)):
        if len(frame):
            out_console.print(layout.score_table(frame, ["name", "message"], f"{len(frame)} {title}"))


@app.command()
def report(
    out: Annotated[str, typer.Argument(help="Results of `chorus predict`.")],
    top: Annotated[
        int, typer.Option(min=0, help="Images to show large of those to look at first; half of the last.")
    ] = 8,
    as_json: Json = False,
) -> None:
    """Write OUT/report/index.html anew, with what `chorus flag`, `evaluate` and `shift` have left since.

    Up to 60 images it is one file; of more, the list of all images loads from `report/data` and `report/thumbnails`
    beside it.

    **Examples**

    `chorus report results/`

    `chorus report gs://bucket/results --top 20`
    """
    from chorus.pipeline.report.page import write_report

    page = write_report(out, top=top)
    if as_json:
        _print_json({"page": page})
    else:
        out_console.print(page, highlight=False, soft_wrap=True)


app.command()(convert)
app.command()(calibrate)
app.command()(profile)
app.command()(flag)
app.command()(shift)
app.command()(train)
app.command()(truth)
app.command()(evaluate)
app.command()(compare)
app.command()(objects)
app.command()(review)
# What comes after the command's name is the command's.
app.command(context_settings={"allow_interspersed_args": False})(jobs.submit)


def main() -> None:
    """The command line: a `ChorusError` becomes one sentence and an exit code, anything else is a bug."""
    with _errors_as_sentences(), structured(), _errors_as_sentences(), resumable():
        require_submitter()
        app()


@contextmanager
def _errors_as_sentences() -> Iterator[None]:
    """End the process with an exit code; outside of what is structured for the one error that is about that itself."""
    try:
        yield
    except CutShortError as error:
        _say(error)
        sys.exit(3)
    except ChorusError as error:
        _say(error)
        sys.exit(2)


def _say(error: Exception) -> None:
    if is_structured():
        log.error("%s", error)
        return
    err.print(f"chorus: {error}", style="bold red", highlight=False, soft_wrap=True, markup=False)


def _export(frame: pd.DataFrame, path: str) -> None:
    from chorus.pipeline.errors import OutputError
    from chorus.pipeline.exports.tables import write_table
    from chorus.pipeline.io import storage

    if storage.scheme(path) == "file" and not Path(path).absolute().parent.is_dir():
        raise RefusedError(f"--export {path}: there is no such folder; choose another place")
    try:
        write_table(frame, path)
    except OutputError as error:
        raise RefusedError(f"--export {error}") from error


def _print_json(content: object) -> None:
    print(
        json.dumps(content, default=lambda value: [value.start, value.stop] if isinstance(value, range) else str(value))
    )


if __name__ == "__main__":
    main()
