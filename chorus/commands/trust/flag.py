"""``chorus flag``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from chorus.console.flags import flag_lines, print_judged
from chorus.console.options import Json
from chorus.pipeline.ensembles.builtin import named_ensemble
from chorus.pipeline.errors import RefusedError

if TYPE_CHECKING:
    from chorus.cluster.runs.flagging import Flagged
    from chorus.pipeline.reference.reference import Reference


def flag(
    out: Annotated[str, typer.Argument(help="Results of `chorus predict`.")],
    ensemble: Annotated[
        str | None,
        typer.Option("--ensemble", "-e", help="The ensemble that made them; by default where it was then."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Folder of another reference set of the ensemble; by default the one beside it."),
    ] = None,
    budget: Annotated[float, typer.Option(help="Share of the images that you can look at.")] = 0.05,
    below: Annotated[
        float | None, typer.Option(help="Dice that is too low; by default that of `chorus calibrate`.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Share of images whose Dice may be below its bound; by default that of `chorus calibrate`."),
    ] = None,
    top: Annotated[int, typer.Option(help="Rows to print; 0 prints all.")] = 20,
    metrics_file: Annotated[
        str | None,
        typer.Option(help="Write the counts for Prometheus' node exporter (a .prom file of its textfile folder)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge a run anew: by another reference set, or with another budget, wanted Dice or bound.

    `chorus predict` does so itself where its ensemble has a reference set. Writes `OUT/flags.parquet`, the images to
    review first on top.

    **Examples**

    `chorus flag results/ --budget 0.02 --below 0.7`

    `chorus flag results/ --ensemble nuclei/ --alpha 0.2`
    """
    from chorus.cluster.runs.flagging import flag_run, record_flags
    from chorus.cluster.telemetry.metrics import write_textfile

    made_by, known = _reference(out, ensemble, reference)
    known = known if alpha is None else known.at_alpha(alpha)
    flagged = flag_run(out, known, budget=budget, below=below)
    if metrics_file:
        record_flags(out, made_by, flagged)
        write_textfile(metrics_file)
    if as_json:
        print(json.dumps(_content(flagged)))
        return
    console = Console()
    table = flagged.table
    rows = (table.head(top) if top else table).to_dict("records")
    print_judged(console, rows, [], f"{len(table)} images, riskiest first")
    for line in review_lines(flagged, known.tau if below is None else below):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _reference(out: str, ensemble: str | None, folder: str | None) -> tuple[str, Reference]:
    """Return the name of the ensemble that made a run, and the reference set that judges it.

    Raises
    ------
    RefusedError
        If there is no such run or reference set, or it is of another ensemble.
    """
    from chorus.cluster.state.output import read_run
    from chorus.pipeline.core.run_document import PredictDocument
    from chorus.pipeline.ensembles.ensemble import read_ensemble
    from chorus.pipeline.reference.storage import reference_of, reference_url

    made_by = read_run(out, PredictDocument).ensemble
    url = named_ensemble(ensemble) if ensemble is not None else made_by.url if made_by is not None else None
    if url is None:
        raise RefusedError(f"{out}: its run.json does not say where its ensemble is; name it by --ensemble")
    known = read_ensemble(url)
    reference = reference_of(known, None if folder is None else reference_url(folder))
    if made_by is None or made_by.hash != known.hash:
        raise RefusedError(f"{out}: was made with another ensemble than {url}; name the one of its run.json")
    return made_by.name, reference


def review_lines(flagged: Flagged, tau: float) -> list[str]:
    """Return lines on the flagged images, the gain from a review within budget, and limits of the reference set."""
    plan, reference = flagged.review, flagged.reference
    lines = flag_lines(flagged.counts)
    lines.append(f"look at  {len(plan.look_at)} of {plan.images} images (`review` in flags.parquet)")
    if plan.images > len(plan.look_at):
        ood = f", {plan.ood_left} of them out of distribution, for which this is a guess" if plan.ood_left else ""
        lines.append(f"then     at most {plan.left_share:.1%} of the rest are expected below Dice {tau:g}{ood}")
    lines.append(f"needed   {plan.needed} images to look at to leave fewer than {plan.wanted:.0%}")
    lines.append(f"known    from {reference.images} reference images, bound at {1 - reference.bound.alpha:.0%}")
    return [*lines, *(f"note     {note}" for note in reference.notes)]


def _content(flagged: Flagged) -> dict[str, Any]:
    """Return the outcome as JSON content."""
    from dataclasses import asdict

    reference = flagged.reference
    known = {"images": reference.images, "tau": reference.tau, "alpha": reference.bound.alpha}
    return {
        "reference": known | {"notes": reference.notes},
        "review": asdict(flagged.review),
        "images": json.loads(flagged.table.to_json(orient="records")),
    }
