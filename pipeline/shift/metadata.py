"""Metadata of the images of a run: a table, joined to them by name."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pandas as pd

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence, one_line


def read_metadata(url: str) -> pd.DataFrame:
    """Read a table of metadata, ``.csv`` or ``.parquet``; its ``name`` is that of an image, a well or a plate.

    Raises
    ------
    RefusedError
        If it cannot be read, has no column ``name``, or a name twice.
    """
    suffix = url.rpartition(".")[2].lower()
    if suffix not in ("csv", "parquet"):
        raise RefusedError(f"--metadata {url}: give a table that ends with .csv or .parquet")
    try:
        data = io.BytesIO(storage.read_bytes(url))
        table = pd.read_csv(data, dtype={"name": str}) if suffix == "csv" else pd.read_parquet(data)
    except OSError as error:
        raise RefusedError(f"--metadata {failure_sentence(error, url) or url}") from error
    except ValueError as error:  # what pandas and pyarrow raise for what they cannot parse
        raise RefusedError(f"--metadata {url}: is no table ({one_line(error)}); save it as CSV or Parquet") from error
    if "name" not in table:
        raise RefusedError(f"--metadata {url}: has no column `name`; name each row as in scores.parquet")
    twice = table.loc[table["name"].map(_key).duplicated(), "name"]
    if len(twice):
        raise RefusedError(f"--metadata {url}: {twice.iloc[0]} is there twice; give each image, well or plate one row")
    return table


def joined(names: pd.Series, metadata: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the table's columns for the images `names`, by the row of the image, else of its well or plate.

    Raises
    ------
    RefusedError
        If the table fits no image.
    """
    known = {_key(name): row for row, name in enumerate(metadata["name"])}

    def row_of(name: str) -> int:
        paths = [*itertools.accumulate(_key(name).split("/"), "{}/{}".format)]
        return next((known[path] for path in reversed(paths) if path in known), -1)

    rows = np.array([row_of(name) for name in names], np.intp)
    missing = int((rows < 0).sum())
    if missing == len(names):
        raise RefusedError(
            f"--metadata: `name` fits none of the {len(names)} images (such as {next(iter(names), '-')}); name each "
            "row as an image, well or plate of scores.parquet"
        )
    table = metadata.drop(columns="name")
    matched = table.iloc[np.maximum(rows, 0)].set_axis(names.index)
    matched[rows < 0] = None
    return matched, [f"{missing} of {len(names)} images are not in the table"] if missing else []


def _key(name: object) -> str:
    return str(name).replace(".ome.zarr", "", 1).strip("/")
