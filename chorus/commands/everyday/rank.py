"""``chorus rank``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from chorus.console.flags import print_judged
from chorus.console.format import print_json, score_table
from chorus.console.options import Json
from chorus.pipeline.errors import RefusedError

if TYPE_CHECKING:
    import pandas as pd

_RISK = "risk"


def rank(
    out: Annotated[str, typer.Argument(help="Results of `chorus predict`.")],
    by: Annotated[
        str | None,
        typer.Option(
            help="Numeric column of scores.parquet, or `risk`; by default `risk` where images are judged, unless "
            "--above is given, else `uncertainty`."
        ),
    ] = None,
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
    """List the images, the riskiest or the most uncertain first; failures stand apart.

    Of an ensemble with a reference set each image has its expected Dice, a bound, a p-value, flags and reasons.

    **Examples**

    `chorus rank results/`

    `chorus rank results/ --by pairwise_dice --above 0.8 --export look-at-these.csv`
    """
    from chorus.cluster.state.score_table import ScoreTable, read_flags
    from chorus.pipeline.scores.ranking import by_risk, rank_rows, require_score, with_judgement
    from chorus.pipeline.scores.registry import IMAGE_TABLE, current_name, phrase_of

    scores, flags = ScoreTable(out), read_flags(out)
    by = current_name(by) if by else _RISK if flags is not None and above is None else "uncertainty"
    require_score(by, [*scores.numeric, *([_RISK] if flags is not None and above is None else [])])
    beside = [score.name for score in IMAGE_TABLE if score.listed and score.per == "image"]
    shown = [name for name in dict.fromkeys([by, *beside]) if name != _RISK]
    columns = scores.columns(scores.names if as_json else ("name", "status", "message", *shown))
    if flags is not None and by == _RISK:
        ranking = by_risk(columns, flags)
    else:
        ranking = rank_rows(columns, by, above)
        if flags is not None:
            ranking = replace(ranking, ranked=with_judgement(ranking.ranked, flags))
    if export:
        _export(out, by, above, export)
    if as_json:
        print_json(asdict(ranking))
        return
    console = Console()
    rows = ranking.ranked[:top] if top else ranking.ranked
    title = f"{len(ranking.ranked)} images by {phrase_of(by)}, worst first"
    extra = ["flagged"] if above is not None else []
    if flags is None:
        console.print(score_table(rows, ["rank", "name", *shown, *extra], title))
    else:
        print_judged(console, rows, [*shown[:1], *extra], title)
    for line in _judging(out, judged=flags is not None):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if above is not None:
        console.print(f"{sum(bool(row['flagged']) for row in ranking.ranked)} images flagged")
    for what, others in (("without a score (no foreground)", ranking.empty), ("failed", ranking.failed)):
        if others:
            console.print(score_table(others, ["name", "message"], f"{len(others)} {what}"))


def _judging(out: str, *, judged: bool) -> list[str]:
    """Return why the images of a run are not judged, or with which reservation they are; usually nothing."""
    from chorus.cluster.state.output import RUN, read_run
    from chorus.pipeline.core.run_document import PredictDocument
    from chorus.pipeline.io import storage

    known = storage.exists(storage.join(storage.normalise(out), RUN))
    said = read_run(out, PredictDocument).judging if known else None
    if said is None and not judged:
        said = f"images are not judged yet: `chorus flag {out}` does so by the reference set of their ensemble"
    return [said] if said else []


def _export(out: str, by: str, above: float | None, path: str) -> None:
    """Write the ranking, or with a threshold the images beyond it."""
    from chorus.cluster.state.scores import read_scores
    from chorus.pipeline.errors import OutputError
    from chorus.pipeline.exports.tables import write_table
    from chorus.pipeline.io import storage
    from chorus.pipeline.scores.ranking import rank as order

    if storage.scheme(path) == "file" and not Path(path).absolute().parent.is_dir():
        raise RefusedError(f"--export {path}: there is no such folder; choose another place")
    ranked = _judged(out) if by == _RISK else order(read_scores(out), by, above).ranked
    try:
        write_table(ranked if above is None else ranked[ranked["flagged"]], path)
    except OutputError as error:
        raise RefusedError(f"--export {error}") from error


def _judged(out: str) -> pd.DataFrame:
    """Return scores and flags of all images with a rank, the riskiest first; flags and reasons as text."""
    from chorus.cluster.results.run_results import RunResults

    ranked = RunResults(out).rank(_RISK)
    return ranked.assign(**{name: ranked[name].map("; ".join) for name in ("flags", "reasons")})
