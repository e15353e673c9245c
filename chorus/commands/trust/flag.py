"""``chorus flag``."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chorus.console.options import Json
from chorus.pipeline.ensembles.builtin import named_ensemble
from chorus.pipeline.errors import RefusedError

if TYPE_CHECKING:
    import pandas as pd

    from chorus.pipeline.reference.flags import Review
    from chorus.pipeline.reference.reference import Reference


def flag(
    out: Annotated[str, typer.Argument(help="Results of `chorus predict`.")],
    ensemble: Annotated[
        str, typer.Option("--ensemble", "-e", help="The ensemble that made them, after `chorus calibrate`.")
    ],
    budget: Annotated[float, typer.Option(help="Share of the images that you can look at.")] = 0.05,
    below: Annotated[
        float | None, typer.Option(help="Dice that is too low; by default that of `chorus calibrate`.")
    ] = None,
    top: Annotated[int, typer.Option(help="Rows to print; 0 prints all.")] = 20,
    metrics_file: Annotated[
        str | None,
        typer.Option(help="Write the counts for Prometheus' node exporter (a .prom file of its textfile folder)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate the Dice of each image, find those out of distribution, and say which ones to review and why.

    Writes `OUT/flags.parquet`, the images to review first on top.

    **Examples**

    `chorus flag results/ --ensemble nuclei/`

    `chorus flag results/ --ensemble nuclei/ --budget 0.02 --below 0.7`
    """
    from chorus.cluster.state.output import read_run
    from chorus.cluster.state.scores import read_scores
    from chorus.pipeline.core.run_document import PredictDocument
    from chorus.pipeline.reference.flags import flag_images, review
    from chorus.pipeline.reference.storage import read_reference

    reference = read_reference(named_ensemble(ensemble))
    made_by = read_run(out, PredictDocument).ensemble
    if made_by is None or made_by.hash != reference.ensemble:
        raise RefusedError(f"{out}: was made with another ensemble than {ensemble}; name the one of its run.json")
    flagged = flag_images(read_scores(out), reference, _features(out), below=below)
    plan = review(flagged, budget)
    flagged["review"] = flagged["name"].isin(plan.look_at)
    _write(out, flagged)
    if metrics_file:
        _write_metrics(metrics_file, out, made_by.name, flagged)
    if as_json:
        print(json.dumps(_content(flagged, reference, plan)))
        return
    console = Console()
    console.print(flag_table(flagged.head(top) if top else flagged, f"{len(flagged)} images, riskiest first"))
    for line in review_lines(flagged, reference, plan, reference.tau if below is None else below):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def flag_table(flagged: pd.DataFrame, title: str) -> Table:
    """Return a table with a row per image: the expected Dice, and why the image is flagged."""
    from chorus.pipeline.scores.flag_registry import flag_label
    from chorus.pipeline.scores.registry import STATED

    table = Table(title=title, title_justify="left")
    table.add_column("rank", justify="right", overflow="fold")
    table.add_column("image", overflow="fold")
    for score in STATED:
        table.add_column(score.label, justify="right", overflow="fold")
    table.add_column("flags")
    table.add_column("because", overflow="fold")
    for row in flagged.to_dict("records"):
        cells = [escape(_cell(row[name])) for name in ("rank", "name", *(score.name for score in STATED))]
        table.add_row(*cells, ", ".join(map(flag_label, row["flags"])), escape("; ".join(row["reasons"])))
    return table


def review_lines(flagged: pd.DataFrame, reference: Reference, plan: Review, tau: float) -> list[str]:
    """Return lines on the flagged images, the gain from a review within budget, and limits of the reference set."""
    from chorus.pipeline.scores.flag_registry import flag_label

    counts = flagged["flags"].explode().value_counts()
    named = ", ".join(f"{count} {flag_label(str(name))}" for name, count in counts.items()) or "none"
    lines = [f"flagged  {named}", f"look at  {len(plan.look_at)} of {plan.images} images (`review` in flags.parquet)"]
    if plan.images > len(plan.look_at):
        ood = f", {plan.ood_left} of them out of distribution, for which this is a guess" if plan.ood_left else ""
        lines.append(f"then     at most {plan.left_share:.1%} of the rest are expected below Dice {tau:g}{ood}")
    lines.append(f"needed   {plan.needed} images to look at to leave fewer than {plan.wanted:.0%}")
    lines.append(f"known    from {reference.images} reference images, bound at {1 - reference.bound.alpha:.0%}")
    return [*lines, *(f"note     {note}" for note in reference.notes)]


def _features(out: str) -> pd.DataFrame | None:
    """Read ``features.parquet`` of an output; None where it has none, as those of earlier versions."""
    from chorus.cluster.state.scores import read_features
    from chorus.pipeline.io import storage
    from chorus.pipeline.io.storage_failures import storage_errors

    url = storage.join(storage.normalise(out), "features.parquet")
    with storage_errors(url):
        return read_features(out) if storage.exists(url) else None


def _write(out: str, flagged: pd.DataFrame) -> None:
    from chorus.pipeline.io import storage
    from chorus.pipeline.io.storage_failures import storage_errors

    url = storage.join(storage.normalise(out), "flags.parquet")
    buffer = io.BytesIO()
    flagged.to_parquet(buffer, index=False)
    with storage_errors(url):
        storage.write_record(url, buffer.getvalue())


def _write_metrics(path: str, out: str, ensemble: str, flagged: pd.DataFrame) -> None:
    from chorus.cluster.telemetry.metrics import FLAGGED, driver_recorder, write_textfile
    from chorus.pipeline.io import storage
    from chorus.pipeline.scores.flag_registry import FLAG_NAMES

    recorder = driver_recorder(storage.normalise(out), ensemble)
    for flag in FLAG_NAMES:
        recorder.set(FLAGGED, sum(flag in flags for flags in flagged["flags"]), flag=flag)
    write_textfile(path)


def _content(flagged: pd.DataFrame, reference: Reference, plan: Review) -> dict[str, Any]:
    """Return the outcome as JSON content."""
    from dataclasses import asdict

    known = {"images": reference.images, "tau": reference.tau, "alpha": reference.bound.alpha}
    return {
        "reference": known | {"notes": reference.notes},
        "review": asdict(plan),
        "images": json.loads(flagged.to_json(orient="records")),
    }


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"
    return "" if str(value) == "<NA>" else str(value)
