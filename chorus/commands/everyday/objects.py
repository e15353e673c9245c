"""``chorus objects``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from chorus.console.format import SHOWN, counted, failures
from chorus.console.options import Address, Executor, Json, TrustCode, validated
from chorus.pipeline.ensembles.builtin import named_ensemble
from chorus.pipeline.instances.methods import AnyMethod

if TYPE_CHECKING:
    from chorus.cluster.evaluation.tuning import TuningRecord
    from chorus.cluster.objects.run import ObjectsOutcome

# Panel of `--help`.
MAPS = "Objects of distances, boundaries and affinities"
_TRIED = 5


def objects(
    out: Annotated[str, typer.Argument(help="Results of `chorus predict`.")],
    method: Annotated[
        AnyMethod,
        typer.Option(
            help="flows: pixels follow the members' flows. stars: what the members' rays enclose. watershed: cut where "
            "the foreground is narrow, for round things. components: all that is joined, of any shape. distances: "
            "watershed from where centres are near, boundaries far (micro-SAM). boundaries: watershed from foreground "
            "without boundaries (torch-em). agglomeration: superpixels by boundaries, united where these are low "
            "(PlantSeg). affinities: mutex watershed. auto: what the maps that the run kept allow, else watershed."
        ),
    ] = "auto",
    diameter: Annotated[
        float | None,
        typer.Option(help="Typical object in pixels of the image; by default what the ensemble was trained on."),
    ] = None,
    minimum_size: Annotated[
        int, typer.Option("--minimum-size", "--min-size", help="Objects of fewer pixels are removed.")
    ] = 15,
    flow_error: Annotated[
        float | None,
        typer.Option(
            "--flow-error",
            "--flow-threshold",
            help="By flows: remove objects whose flow_error is larger; Cellpose takes 0.4 for its networks.",
        ),
    ] = None,
    foreground_threshold: Annotated[
        float | None,
        typer.Option(
            help="Objects are where the probability of the class, as the run kept it, is at least this; by default the "
            "labels decide."
        ),
    ] = None,
    cellprob_threshold: Annotated[
        float | None, typer.Option(help="Cellpose's form of --foreground-threshold: its logit; 0 is 0.5.")
    ] = None,
    flows_from: Annotated[
        str | None,
        typer.Option(
            metavar="ENSEMBLE",
            help="By flows of a second ensemble of one channel, which reads the probability of each class: for "
            "ensembles without flows, whose run kept its probabilities.",
        ),
    ] = None,
    prob_threshold: Annotated[
        float | None,
        typer.Option(help="By stars: an object's point must be more probable; by default as the ensemble has it."),
    ] = None,
    nms_threshold: Annotated[
        float | None,
        typer.Option(
            help="By stars: of two objects that share more than this part of the smaller one, the more probable one "
            "stays; by default as the ensemble has it."
        ),
    ] = None,
    center_distance_threshold: Annotated[
        float | None, typer.Option(help="By distances: seeds are nearer to a centre; 0.5.", rich_help_panel=MAPS)
    ] = None,
    boundary_distance_threshold: Annotated[
        float | None,
        typer.Option(
            help="By distances: seeds have a smaller inverted distance to the boundary; 0.5.", rich_help_panel=MAPS
        ),
    ] = None,
    distance_smoothing: Annotated[
        float | None,
        typer.Option(help="By distances: sigma of the Gaussian that smooths them, pixels; 1.6.", rich_help_panel=MAPS),
    ] = None,
    seed_threshold: Annotated[
        float | None,
        typer.Option(
            help="By boundaries: seeds are where foreground less boundary is more; 0.5.", rich_help_panel=MAPS
        ),
    ] = None,
    boundary_threshold: Annotated[
        float | None,
        typer.Option(
            help="By agglomeration: boundaries are where their probability is more; 0.5.", rich_help_panel=MAPS
        ),
    ] = None,
    sigma_seeds: Annotated[
        float | None,
        typer.Option(
            help="By agglomeration: smooths the distance whose maxima are seeds, pixels; 1.", rich_help_panel=MAPS
        ),
    ] = None,
    sigma_weights: Annotated[
        float | None,
        typer.Option(
            help="By agglomeration: smooths the boundaries that superpixels end at, pixels; 2.", rich_help_panel=MAPS
        ),
    ] = None,
    superpixel_size: Annotated[
        int | None,
        typer.Option(
            help="By agglomeration: smaller superpixels go to their neighbours, pixels; 100.", rich_help_panel=MAPS
        ),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            help="By agglomeration: unites superpixels between which the mean boundary is less; 0.5.",
            rich_help_panel=MAPS,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="By affinities: long ones are taken at every so many pixels; 1.", rich_help_panel=MAPS),
    ] = None,
    fragment_size: Annotated[
        int | None,
        typer.Option(help="By affinities: smaller fragments go to their neighbours, pixels; 50.", rich_help_panel=MAPS),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            metavar="TRUTH",
            help="Choose the options that are not given: those of the best mAP on the images that TRUTH, a folder of "
            "labels as for `chorus evaluate`, has labels of. Then label all images with them.",
        ),
    ] = None,
    tune_label: Annotated[
        str | None,
        typer.Option(help="The same by a label image of this name in each source OME-Zarr (of TRUTH, where given)."),
    ] = None,
    trust_code: TrustCode = False,
    executor: Executor = "auto",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Label the objects of every image and list them, again or by another method than in `chorus predict`.

    The same command again resumes.

    Leaves a label image `labels/<class>` beside each image's `labels/semantic`, and `objects.parquet` in OUT: a row per
    object with position, size, shape, intensities and uncertainty. Their bytes do not depend on the run's regions. Exit
    code 0: all done, 1: finished with failed images, 2: refused, 3: interrupted, resumable.

    **Examples**

    `chorus objects results/`

    `chorus objects vessels/ --method components --minimum-size 50`

    `chorus objects neurons/ --flows-from cellpose/ --diameter 22`

    `chorus objects results/ --tune masks/`

    `chorus objects gs://bucket/results --diameter 45 --minimum-size 100 --address auto`
    """
    from chorus.cluster.objects.request import ObjectsRequest
    from chorus.cluster.objects.run import find_objects
    from chorus.console.progress import ConsoleReporter

    err = Console(stderr=True)
    content = {"out": out, "method": method, "diameter": diameter, "minimum_size": minimum_size}
    content |= {
        "cellprob_threshold": cellprob_threshold,
        "flow_error": flow_error,
        "executor": executor,
        "address": address,
        "trust_code": trust_code,
    }
    content |= {"flows_from": named_ensemble(flows_from) if flows_from else None}
    content |= {"prob_threshold": prob_threshold, "nms_threshold": nms_threshold}
    content |= {"foreground_threshold": foreground_threshold, "seed_threshold": seed_threshold}
    content |= {"center_distance_threshold": center_distance_threshold, "distance_smoothing": distance_smoothing}
    content |= {"boundary_distance_threshold": boundary_distance_threshold, "boundary_threshold": boundary_threshold}
    content |= {"sigma_seeds": sigma_seeds, "sigma_weights": sigma_weights, "superpixel_size": superpixel_size}
    content |= {"beta": beta, "stride": stride, "fragment_size": fragment_size}
    request = validated(ObjectsRequest, content, "objects")
    tuning = None
    if tune is not None or tune_label is not None:
        from chorus.cluster.evaluation.tuning import TuneRequest, tune_objects

        asked = TuneRequest(objects=request, truth=tune, truth_label=tune_label)
        request, tuning = tune_objects(asked, ConsoleReporter(err, units="trials", devices="cores"))
    outcome = find_objects(request, ConsoleReporter(err, units="steps", devices="cores"))
    if as_json:
        more = {} if tuning is None else {"tuning": tuning.model_dump(mode="json")}
        print(json.dumps(outcome.content | more))
    else:
        if tuning is not None:
            Console().print(_tried_table(tuning))
            Console().print(_chosen(tuning), highlight=False, soft_wrap=True, markup=False)
        Console().print(_table(outcome))
    for line in _lines(outcome):
        err.print(line, highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(outcome.exit_code)


def _tried_table(tuning: TuningRecord) -> Table:
    """Return a table of the options that fit the truth best."""
    title = f"{len(tuning.tried)} sets of options tried on {len(tuning.images)} images, the best ones"
    table = Table(title=title, title_justify="left")
    table.add_column("options", overflow="fold")
    for name in ("mAP", "AP at IoU 0.5", "objects"):
        table.add_column(name, justify="right")
    for row in tuning.tried[:_TRIED]:
        numbers = f"{row.mean_precision:.4f}", f"{row.precision_50:.4f}", str(row.objects)
        table.add_row(_as_typed(row.options) or "none", *numbers)
    return table


def _chosen(tuning: TuningRecord) -> str:
    """Return what was chosen, and what to expect of it."""
    words = f"chosen   {_as_typed(tuning.chosen) or 'none'}: mAP {tuning.before:.4f} before"
    words += f", {tuning.tried[0].mean_precision:.4f} with it"
    if tuning.left_out is not None:
        words += f", {tuning.left_out:.4f} on images left out of the choice"
        words += "; more labelled images are needed to do better than before" * (tuning.left_out <= tuning.before)
    if tuning.failures:
        name, message = next(iter(tuning.failures.items()))
        words += f"\n{len(tuning.failures)} images could not be tried, such as {name}: {message}"
    return words


def _as_typed(options: Mapping[str, float]) -> str:
    """Return options as they are typed."""
    return " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in options.items())


def _table(outcome: ObjectsOutcome) -> Table:
    """Return a table of the objects per image and class."""
    summary = outcome.summary
    flows = f" of {summary.flows_from}" if summary.flows_from is not None else ""
    title = f"objects of {summary.done} images, by {summary.method}{flows}"
    table = Table(title=title, title_justify="left")
    table.add_column("image", overflow="fold")
    for name in summary.objects:
        table.add_column(name, justify="right")
    done = [row for row in outcome.rows if row.status == "done"]
    for row in done[:SHOWN]:
        table.add_row(row.name, *(str(row.objects[name]) for name in summary.objects))
    if len(done) > SHOWN:
        table.add_row(f"and {len(done) - SHOWN} more", *("" for _ in summary.objects))
    table.add_section()
    table.add_row("all", *(str(count) for count in summary.objects.values()))
    return table


def _lines(outcome: ObjectsOutcome) -> list[str]:
    """Return how the command ended, where the results are, and what to do next."""
    lines = [counted(outcome.summary)]
    lines += failures(outcome.rows, "objects.json")
    if outcome.state == "interrupted":
        return [*lines, f"cut short: {outcome.message}"]
    return [*lines, f"objects  {outcome.out}/objects.parquet", f"labels   {outcome.out}/images/.../labels"]
