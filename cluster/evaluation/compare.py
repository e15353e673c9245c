"""Several evaluated runs side by side: the same images, one metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from chorus.cluster.evaluation.run import read_evaluation
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.metrics.comparison import Comparison, compare


@dataclass(frozen=True)
class RunComparison:
    """Result of a comparison.

    Attributes
    ----------
    comparison : the runs are named by their folders
    left_out : by image name, the runs that have no value for it; such an image is excluded from all comparisons
    """

    comparison: Comparison
    left_out: dict[str, list[str]]


def compare_runs(outs: Sequence[str], metric: str) -> RunComparison:
    """Compare runs by a column of their ``evaluation.parquet``, paired by the images' names.

    Raises
    ------
    RefusedError
        If there are fewer than two runs, one is not evaluated or has no such metric, or they share no image.
    """
    urls = [storage.normalise(out) for out in outs]
    if len(set(urls)) < 2 or len(set(urls)) < len(urls):
        raise RefusedError(f"{' '.join(outs)}: give two or more runs, each once")
    columns = {name: _column(url, metric) for name, url in zip(_names(urls), urls, strict=True)}
    table = pd.concat(columns, axis=1)
    common = table.dropna()
    if common.empty:
        raise RefusedError(f"{' '.join(outs)}: no image has a {metric} in all of them; give runs of the same images")
    missing = table[table.isna().any(axis=1)]
    left_out = {str(name): [run for run in table.columns if pd.isna(row[run])] for name, row in missing.iterrows()}
    values = {name: common[name].to_numpy(dtype=float) for name in columns}
    return RunComparison(compare(metric, values), left_out)


def _names(urls: Sequence[str]) -> list[str]:
    """Return the last parts of the URLs, as many as are needed to distinguish them."""
    for parts in range(1, max(url.count("/") for url in urls) + 1):
        names = ["/".join(url.split("/")[-parts:]) for url in urls]
        if len(set(names)) == len(names):
            return names
    return list(urls)


def _column(url: str, metric: str) -> pd.Series:
    frame = read_evaluation(url)
    numeric = [
        name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name]) and frame[name].notna().any()
    ]
    if metric not in numeric:
        raise RefusedError(f"{url}: has no metric {metric!r}; give --metric one of {', '.join(numeric) or 'none'}")
    return frame.set_index("name")[metric]
