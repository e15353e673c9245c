"""``scores.parquet`` and ``features.parquet``: one row per image."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from chorus.cluster.state.documents import ImageRow
from chorus.cluster.state.ledger import Ledger
from chorus.cluster.state.score_table import read_frame
from chorus.pipeline.exports.files import whole_file
from chorus.pipeline.inference.feature_records import ImageFeatures
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.scores.registry import current_name, with_current_names

# Columns of the scores that are not numbers.
_TEXTS = ["image", "source", "name", "status", "message"]
_FEATURES = pa.schema([("name", pa.string()), ("tiles", pa.int64()), ("features", pa.list_(pa.float64()))])
# Images whose features are in memory at once while they are written: for 10^5 images they are gigabytes.
_FEATURE_ROWS = 1_000


def write_scores(out: str, rows: Iterable[ImageRow]) -> None:
    """Write ``scores.parquet``: one row per image, in the order of the plan."""
    buffer, url = io.BytesIO(), storage.join(out, "scores.parquet")
    scores_frame(rows).to_parquet(buffer, index=False)
    with storage_errors(url):
        storage.write_record(url, buffer.getvalue())


def scores_frame(rows: Iterable[ImageRow]) -> pd.DataFrame:
    """Return rows of scores as a table with the columns and types of ``scores.parquet``."""
    # Rows of images that an earlier version finished may have former names.
    frame = pd.DataFrame([{current_name(name): value for name, value in row.columns.items()} for row in rows])
    for name in frame.columns.difference(_TEXTS):
        # A score that no image has is still a numeric column.
        frame[name] = pd.to_numeric(frame[name])
    return frame


def read_scores(out: str) -> pd.DataFrame:
    """Read ``scores.parquet`` of an output; raise RefusedError where there is none yet, or it is damaged."""
    return with_current_names(read_frame(out, "scores.parquet", "scores"))


def write_features(out: str, rows: Sequence[ImageRow]) -> None:
    """Write ``features.parquet``: each image's encoder features (`chorus.pipeline.inference.encoder_features`).

    Rows are in the order of `rows`, the scores. Columns are `name`; `tiles`, over which the mean is taken, 0 for images
    that failed; and `features`, those of all members concatenated, empty if no member has an encoder.
    """
    ledger, url = Ledger(out), storage.join(out, "features.parquet")
    with whole_file(url) as file, pq.ParquetWriter(file, _FEATURES, use_dictionary=False) as writer:
        for start in range(0, len(rows), _FEATURE_ROWS):
            part = rows[start : start + _FEATURE_ROWS]
            names = [row.name for row in part if row.status != "failed"]
            records = dict(zip(names, ledger.image_records(names), strict=True))
            features = [records[row.name].features if row.name in records else ImageFeatures() for row in part]
            columns = {
                "name": [row.name for row in part],
                "tiles": [one.tiles for one in features],
                "features": [one.mean for one in features],
            }
            writer.write_table(pa.table(columns, schema=_FEATURES))


def read_features(out: str) -> pd.DataFrame:
    """Read ``features.parquet`` of an output; raise RefusedError where there is none yet, or it is damaged."""
    return read_frame(out, "features.parquet", "features")
