"""``chorus rank``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chorus.console.format import print_json, score_table
from chorus.console.options import Json
from chorus.pipeline.errors import RefusedError


def rank(
    out: Annotated[str, typer.Argument(help="Results of `chorus predict`.")],
    by: Annotated[str, typer.Option(help="Score to rank by, a numeric column of scores.parquet.")] = "uncertainty",
    above: Annotated[
        float | None,
        typer.Option(help="Flag images beyond this value (below, for scores of which low values are doubtful)."),
    ] = None,
    top: Annotated[int, typer.Option(help="Rows to print; 0 prints all.")] = 20,
    export: Annotated[
        str | None,
        typer.Option(help="Write the ranking to a .csv, .parquet or .json file; with --above only what it flags."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the images, the most uncertain first; empty predictions and failures stand apart.

    **Examples**

    `chorus rank results/`

    `chorus rank results/ --by pairwise_dice --above 0.8 --export look-at-these.csv`
    """
    from chorus.cluster.state.score_table import ScoreTable
    from chorus.pipeline.scores.ranking import rank_rows, require_score
    from chorus.pipeline.scores.registry import IMAGE_TABLE, current_name, phrase_of

    scores, by = ScoreTable(out), current_name(by)
    require_score(by, scores.numeric)
    if export:
        _export(out, by, above, export)
    beside = [score.name for score in IMAGE_TABLE if score.listed and score.per == "image"]
    shown = [by, *(name for name in beside if name != by)]
    wanted = scores.names if as_json else ("name", "status", "message", *shown)
    ranking = rank_rows(scores.columns(wanted), by, above)
    if as_json:
        print_json(asdict(ranking))
        return
    console = Console()
    extra = ["flagged"] if above is not None else []
    rows = ranking.ranked[:top] if top else ranking.ranked
    title = f"{len(ranking.ranked)} images by {phrase_of(by)}, worst first"
    console.print(score_table(rows, ["rank", "name", *shown, *extra], title))
    if above is not None:
        console.print(f"{sum(bool(row['flagged']) for row in ranking.ranked)} images flagged")
    for what, others in (("without a score (no foreground)", ranking.empty), ("failed", ranking.failed)):
        if others:
            console.print(score_table(others, ["name", "message"], f"{len(others)} {what}"))


def _export(out: str, by: str, above: float | None, path: str) -> None:
    """Write the ranking, or with a threshold the images beyond it."""
    from chorus.cluster.state.scores import read_scores
    from chorus.pipeline.errors import OutputError
    from chorus.pipeline.exports.tables import write_table
    from chorus.pipeline.io import storage
    from chorus.pipeline.scores.ranking import rank as order

    if storage.scheme(path) == "file" and not Path(path).absolute().parent.is_dir():
        raise RefusedError(f"--export {path}: there is no such folder; choose another place")
    ranked = order(read_scores(out), by, above).ranked
    try:
        write_table(ranked if above is None else ranked[ranked["flagged"]], path)
    except OutputError as error:
        raise RefusedError(f"--export {error}") from error
