"""``chorus shift``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chorus.console.options import Json
from chorus.pipeline.ensembles.builtin import named_ensemble
from chorus.pipeline.errors import RefusedError

if TYPE_CHECKING:
    import pandas as pd

    from chorus.pipeline.shift.shift import Shift

_BATCH = 1_000


def shift(
    out: Annotated[str, typer.Argument(help="Results of `chorus predict`.")],
    ensemble: Annotated[
        str, typer.Option("--ensemble", "-e", help="The ensemble that made them, after `chorus calibrate`.")
    ],
    metadata: Annotated[
        str | None,
        typer.Option(
            help="Table .csv or .parquet; `name` is an image, well or plate, the other columns what may matter."
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Share of runs without a shift in which one may be found.")] = 0.05,
    as_json: Json = False,
) -> None:
    """Test whether the run as a whole is like the ensemble's reference images, and what its scores depend on.

    Compares image appearance, encoder features, uncertainty and the amount of foreground; and scores between plates,
    rows, columns and the columns of a table. Writes all of it to `OUT/shift.json`.

    **Examples**

    `chorus shift results/ --ensemble nuclei/`

    `chorus shift results/ --ensemble nuclei/ --metadata plates.csv`
    """
    from chorus.cluster.state.output import read_run
    from chorus.cluster.state.scores import read_scores
    from chorus.pipeline.core.run_document import PredictDocument
    from chorus.pipeline.reference.storage import read_reference
    from chorus.pipeline.shift.metadata import read_metadata
    from chorus.pipeline.shift.shift import feature_images, find_shift

    reference = read_reference(named_ensemble(ensemble))
    made_by = read_run(out, PredictDocument).ensemble
    if made_by is None or made_by.hash != reference.ensemble:
        raise RefusedError(f"{out}: was made with another ensemble than {ensemble}; name the one of its run.json")
    table = None if metadata is None else read_metadata(metadata)
    scores = read_scores(out)
    comparison = find_shift(scores, reference, _features(out, feature_images(scores)), table, alpha=alpha)
    _write(out, comparison)
    if as_json:
        print(comparison.model_dump_json())
        return
    console = Console()
    for line in comparison.sentences:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    for part in shift_tables(comparison):
        console.print(part)


def shift_tables(comparison: Shift) -> list[Table]:
    """Return the comparisons with the reference, and those between groups of images, if there are any."""
    from chorus.pipeline.scores.registry import phrase_of

    against = Table(
        title=f"{comparison.images} images, {comparison.reference_images} of the reference", title_justify="left"
    )
    for name in ("", "measure", "reference", "run", "Cliff's delta", "95 % interval", "p", "shift"):
        against.add_column(name, overflow="fold")
    for test in comparison.tests:
        interval = "" if test.low is None else f"{test.low:.2f} to {test.high:.2f}"
        numbers = (_number(test.reference_median), _number(test.run_median), f"{test.effect:.2f}", interval)
        against.add_row(
            test.kind, escape(phrase_of(test.name)), *numbers, f"{test.p_adjusted:.2g}", "yes" * test.shifted
        )
    between = Table(title="between groups of images", title_justify="left")
    for name in ("by", "score", "groups", "effect", "", "p", "depends"):
        between.add_column(name, overflow="fold")
    for one in comparison.groups:
        effect = (f"{one.effect:.2f}", one.measure, f"{one.p_adjusted:.2g}", "yes" * one.shifted)
        between.add_row(escape(one.by), escape(phrase_of(one.score)), str(len(one.levels)), *effect)
    return [table for table in (against, between) if table.row_count]


def _features(out: str, names: list[str]) -> pd.DataFrame | None:
    """Read the rows `names` of an output's ``features.parquet``, which can be gigabytes; None where there is none."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from chorus.pipeline.io import storage
    from chorus.pipeline.io.storage_failures import storage_errors

    url = storage.join(storage.normalise(out), "features.parquet")
    wanted = pa.array(names, pa.string())
    with storage_errors(url):
        if not storage.exists(url):
            return None
        fs, path = storage.filesystem(url)
        with fs.open(path, "rb") as file:
            batches = pq.ParquetFile(file).iter_batches(_BATCH, columns=["name", "features"])
            parts = [batch.filter(pc.is_in(batch["name"], wanted)).to_pandas() for batch in batches]
    return pd.concat(parts, ignore_index=True) if parts else None


def _write(out: str, comparison: Shift) -> None:
    from chorus.pipeline.io import storage
    from chorus.pipeline.io.storage_failures import storage_errors

    url = storage.join(storage.normalise(out), "shift.json")
    with storage_errors(url):
        storage.write_record(url, comparison.model_dump_json().encode())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
