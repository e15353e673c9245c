"""``chorus objects``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from chorus.console.format import SHOWN, counted, failures
from chorus.console.options import Address, Executor, Json, TrustCode, validated
from chorus.pipeline.ensembles.builtin import named_ensemble

if TYPE_CHECKING:
    from chorus.cluster.objects.run import ObjectsOutcome


def objects(
    out: Annotated[str, typer.Argument(help="Results of `chorus predict`.")],
    method: Annotated[
        Literal["auto", "flows", "stars", "watershed", "components"],
        typer.Option(
            help="flows: pixels follow the members' flows. stars: what the members' rays enclose. watershed: cut where "
            "the foreground is narrow, for round things. components: all that is joined, of any shape. auto: flows or "
            "stars where the run kept flows or rays, else watershed."
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
    cellprob_threshold: Annotated[
        float | None,
        typer.Option(
            help="Logit of the probability from which a pixel is foreground, of the map that the run kept; by default "
            "the labels decide, as with 0."
        ),
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

    `chorus objects gs://bucket/results --diameter 45 --minimum-size 100 --address auto`
    """
    from chorus.cluster.objects.inputs import ObjectsRequest
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
    request = validated(ObjectsRequest, content, "objects")
    outcome = find_objects(request, ConsoleReporter(err, units="steps", devices="cores"))
    if as_json:
        print(json.dumps(outcome.content))
    else:
        Console().print(_table(outcome))
    for line in _lines(outcome):
        err.print(line, highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(outcome.exit_code)


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
