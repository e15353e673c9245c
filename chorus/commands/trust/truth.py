"""``chorus truth``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chorus.console.format import counted, failures, some
from chorus.console.options import Address, Executor, Json, validated

if TYPE_CHECKING:
    from chorus.cluster.commands.truth import TruthRow, TruthSummary
    from chorus.cluster.state.outcome import Outcome

_WHERE = "run.json and agreement.csv"


def truth(
    experts: Annotated[str, typer.Argument(help="A folder with a folder of drawings per expert: EXPERT/IMAGE.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Gets the truth of each image: a folder or a URL.")],
    expert: Annotated[
        list[str] | None,
        typer.Option(help="Name or pattern (`expert_*`) of folders that are experts'; by default all of them."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="Name of the label image in each OME-Zarr; by default the OME-Zarrs are labels themselves."),
    ] = None,
    method: Annotated[
        Literal["staple", "vote", "union", "intersection"] | None,
        typer.Option(help="How drawings become one; by default staple, and vote for instances."),
    ] = None,
    ties: Annotated[
        Literal["background", "foreground"], typer.Option(help="What a pixel or object becomes on a draw.")
    ] = "background",
    classes: Annotated[int, typer.Option(help="Classes with background; of two, all that is not 0 is foreground.")] = 2,
    instances: Annotated[bool, typer.Option("--instances", help="Labels are objects, one value each.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of other settings.")] = False,
    executor: Executor = "auto",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Estimate one ground truth from several annotators' drawings, and their agreement; the same command resumes.

    TIFF and PNG become `OUT/<image>.tif`, which `chorus train IMAGES --labels OUT` takes; OME-Zarr becomes
    `OUT/<image>.ome.zarr`. Beside them `agreement.csv`, `agreement.parquet` and `agreement.svg`. Exit code 0: all done,
    1: finished with failed images, 2: refused, 3: interrupted, resumable.

    **Examples**

    `chorus truth drawings/ --out truth/`

    `chorus truth lab/ --out truth/ --expert 'expert_*' --method vote --ties foreground`

    `chorus truth tissue/ --out truth/ --classes 4`

    `chorus truth nuclei/ --out gs://bucket/truth --instances --address auto`
    """
    from chorus.cluster.commands import truth as run
    from chorus.console.progress import ConsoleReporter

    err = Console(stderr=True)
    settings = {"method": method, "ties": ties, "classes": classes, "instances": instances}
    content: dict[str, Any] = {
        "experts": experts,
        "out": out,
        "expert": expert or [],
        "label": label,
        "settings": settings,
    }
    content |= {"executor": executor, "address": address, "overwrite": overwrite}
    request = validated(run.TruthRequest, content, "truth")
    outcome = run.estimate(request, ConsoleReporter(err, units="images", devices="cores"))
    if as_json:
        print(json.dumps(outcome.content))
    if outcome.state != "interrupted":
        err.print(_table(outcome))
    for line in _lines(outcome):
        err.print(line, highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(outcome.exit_code)


def _table(outcome: Outcome[TruthRow, TruthSummary]) -> Table:
    """Return a table with a row per expert."""
    table = Table(title="Experts", title_justify="left")
    for name in ("expert", "images", "missing", "Dice with the truth", "minimum", "Dice with the others"):
        table.add_column(name, justify="left" if name == "expert" else "right")
    for one in outcome.summary.experts:
        numbers = [one.dice, one.minimum_dice, one.dice_others]
        texts = ["" if number is None else f"{number:.4f}" for number in numbers]
        table.add_row(escape(one.expert), str(one.images), str(one.missing), *texts)
    return table


def _lines(outcome: Outcome[TruthRow, TruthSummary]) -> list[str]:
    """Return how the command ended, what to look at, where the results are, and what to do next."""
    lines = [counted(outcome.summary)]
    missing = [f"{row.name} ({', '.join(row.missing)})" for row in outcome.rows if row.missing]
    lines += some("not drawn by all", missing, _WHERE)
    noted = [f"{row.name}: {row.message}" for row in outcome.rows if row.status == "done" and row.message]
    lines += some("note", noted, _WHERE)
    lines += failures(outcome.rows, _WHERE)
    lines += some("warning", outcome.summary.warnings, _WHERE)
    if outcome.state == "interrupted":
        return [*lines, f"cut short: {outcome.message}"]
    return [
        *lines,
        f"results  {outcome.out}",
        f"look at  {outcome.out}/agreement.svg",
        f"next     chorus train IMAGES --labels {outcome.out} --out ...",
    ]
