"""``chorus export tables``: the results of a run and of later commands for every image and every object."""

from __future__ import annotations

import io
from typing import Literal

import pandas as pd

from chorus.cluster.evaluation.documents import TABLE as EVALUATION
from chorus.cluster.exports.objects import Objects, check_apart
from chorus.cluster.objects.records import TABLE as OBJECTS
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.exports.tables import write_groups, write_table
from chorus.pipeline.io import storage
from chorus.pipeline.io.parquet_errors import parquet_errors
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.scores.flag_registry import with_current_flags

FLAGS = "flags.parquet"
_KEY = "name"


def image_table(out: str) -> pd.DataFrame:
    """Return a row per image in the order of the run: its scores, with the results of `flag` and `evaluate`.

    Columns of ``flags.parquet`` keep their names; those of ``evaluation.parquet`` that the scores have as well
    (``status``, ``message``) are called ``evaluation_...``.

    Raises
    ------
    RefusedError
        If there are no scores, or flags or evaluation are damaged or of other images.
    """
    table = read_scores(out)
    flags, evaluation = _beside(out, FLAGS, table), _beside(out, EVALUATION, table)
    if flags is not None:
        table = table.merge(flags.drop(columns=flags.columns.intersection(table.columns).drop(_KEY)), on=_KEY)
    if evaluation is not None:
        same = evaluation.columns.intersection(table.columns).drop(_KEY)
        table = table.merge(evaluation.rename(columns={name: f"evaluation_{name}" for name in same}), on=_KEY)
    return table


def _beside(out: str, name: str, scores: pd.DataFrame) -> pd.DataFrame | None:
    """Return a table of the same images, if there is one."""
    url = storage.join(out, name)
    command = "flag" if name == FLAGS else "evaluate"
    with storage_errors(url):
        if not storage.exists(url):
            return None
        data = storage.read_bytes(url)
    with parquet_errors(url, f"run `chorus {command}` again, or remove it"):
        table = with_current_flags(pd.read_parquet(io.BytesIO(data)))
    if sorted(table[_KEY]) != sorted(scores[_KEY]):
        raise RefusedError(f"{url}: is of other images than scores.parquet; run `chorus {command}` again, or remove it")
    return table


def export_tables(out: str, to: str, kind: Literal["csv", "parquet", "json"]) -> dict[str, int]:
    """Write ``images.<kind>`` and, if there are objects, ``objects.<kind>``; return the number of rows of each.

    Raises
    ------
    RefusedError
        See `image_table`.
    OutputError
        If the files cannot be written.
    """
    out, to = storage.normalise(out), storage.normalise(to)
    check_apart(out, to)
    images = image_table(out)
    write_table(images, storage.join(to, f"images.{kind}"))
    rows = {"images": len(images)}
    url = storage.join(out, OBJECTS)
    with storage_errors(url):
        has_objects = storage.exists(url)
    if has_objects:
        objects = Objects(out)
        write_groups(objects.all.groups(), objects.schema, storage.join(to, f"objects.{kind}"))
        rows["objects"] = len(objects.all)
    return rows
