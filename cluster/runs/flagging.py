"""Flags of a run: its images judged by the reference set of its ensemble, and ``flags.parquet``."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from chorus.cluster.state.scores import read_scores
from chorus.cluster.telemetry.metrics import FLAGGED, driver_recorder
from chorus.pipeline.core.run_document import FlagCounts
from chorus.pipeline.io import storage
from chorus.pipeline.io.parquet_errors import parquet_errors
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.reference.flags import Review, flag_parts, review
from chorus.pipeline.reference.reference import Reference
from chorus.pipeline.scores.flag_registry import FLAG_NAMES

BUDGET = 0.05
"""Share of the images that are marked for review, unless a person says how many."""
# Images whose features are in memory at once.
_PART = 1_000


@dataclass(frozen=True)
class Flagged:
    """A run that was judged.

    Attributes
    ----------
    table : rows of ``flags.parquet``, the images to review first on top
    review : what a review within the budget brings
    reference : by which it was judged
    """

    table: pd.DataFrame
    review: Review
    reference: Reference

    @property
    def counts(self) -> FlagCounts:
        """Number of images by flag, for ``run.json``."""
        named = {name: sum(name in flags for flags in self.table["flags"]) for name in FLAG_NAMES}
        return FlagCounts(
            images={name: count for name, count in named.items() if count},
            look_at=len(self.review.look_at),
            reference_images=self.reference.images,
        )


def flag_run(out: str, reference: Reference, *, budget: float = BUDGET, below: float | None = None) -> Flagged:
    """Judge the images of a run by a reference set, and write ``flags.parquet``.

    Parameters
    ----------
    out : URL of the run, which has scores
    reference : of the ensemble that made it
    budget : share of the images that a person can look at
    below : Dice that is too low; by default the reference's

    Raises
    ------
    RefusedError
        If `budget` or `below` is out of range, or scores or features are missing, damaged, or do not fit.
    OutputError
        If storage does not accept the table.
    """
    table = flag_parts(_parts(out), reference, below=below)
    plan = review(table, budget)
    table["review"] = table["name"].isin(plan.look_at)
    url = storage.join(storage.normalise(out), "flags.parquet")
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    with storage_errors(url):
        storage.write_record(url, buffer.getvalue())
    return Flagged(table, plan, reference)


def record_flags(out: str, ensemble: str, flagged: Flagged) -> None:
    """Set the metrics of flags of this process."""
    recorder = driver_recorder(storage.normalise(out), ensemble)
    for name in FLAG_NAMES:
        recorder.set(FLAGGED, flagged.counts.images.get(name, 0), flag=name)


def _parts(out: str) -> Iterator[tuple[pd.DataFrame, pd.DataFrame | None]]:
    """Yield scores with the features of the same images, some images at a time; scores alone of those without any."""
    scores = read_scores(out)
    left = pd.Series(True, index=scores.index)
    for features in _features(storage.join(storage.normalise(out), "features.parquet")):
        chosen = scores["name"].isin(features["name"]) & left
        if chosen.any():
            left &= ~chosen
            yield scores[chosen], features
    if left.any() or not len(scores):
        yield scores[left], None


def _features(url: str) -> Iterator[pd.DataFrame]:
    """Yield the rows of ``features.parquet``; nothing where there is none, as in outputs of earlier versions."""
    fs, path = storage.filesystem(url)
    with storage_errors(url):
        if not storage.exists(url):
            return
        local = isinstance(fs, LocalFileSystem)
        opened = fs.open(path, "rb") if local else io.BytesIO(storage.read_bytes(url))
    with opened, parquet_errors(url, "run the same `chorus predict` again to make it anew"):
        for batch in pq.ParquetFile(opened).iter_batches(_PART):
            yield batch.to_pandas()
