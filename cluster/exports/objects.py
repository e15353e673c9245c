"""The objects of a run, as exports take them, and where their files may be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chorus.cluster.objects.records import TABLE, read_objects_record
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.exports.outlines import ObjectTable, uncertainty_column
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import one_line, storage_errors


class Objects:
    """The results of ``chorus objects`` in `out`.

    Raises
    ------
    RefusedError
        If it has not been run, or not to its end, or they are damaged.
    """

    def __init__(self, out: str) -> None:
        self.out, self.url = out, storage.join(out, TABLE)
        record = read_objects_record(out)
        with storage_errors(out):
            if record is None or not storage.exists(self.url):
                raise RefusedError(f"{out}: has no objects; run `chorus objects {out}` first")
            fs, path = storage.filesystem(self.url)
            with fs.open(path, "rb") as file, _intact(out, self.url):
                parquet = pq.ParquetFile(file)
                self.schema: pa.Schema = parquet.schema_arrow
                rows = parquet.metadata.num_rows
        self.record, self.images = record, record.images
        done = [row for row in self.images if row.status == "done"]
        self.counts = np.array([sum(row.objects.values()) for row in done], np.int64)
        if record.outcome == "running" or int(self.counts.sum()) != rows:
            raise RefusedError(f"{out}: its objects are not complete; run `chorus objects {out}` again")
        starts = np.cumsum(self.counts) - self.counts
        self._rows = {row.name: (int(a), int(a + n)) for row, a, n in zip(done, starts, self.counts, strict=True)}
        self.column = uncertainty_column(self.schema.names)
        self.all = ObjectTable(self.url, 0, rows)

    def of(self, image: str) -> ObjectTable:
        """Return the rows of an image whose objects are done."""
        return ObjectTable(self.url, *self._rows[image])


@contextmanager
def _intact(out: str, url: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowInvalid as error:
        reason = one_line(error)
        raise RefusedError(f"{url}: is damaged ({reason}); remove it and run `chorus objects {out}` again") from error


def check_apart(out: str, to: str) -> None:
    """Raise RefusedError if exports cannot be written to `to`, or `to` is the folder of the results itself."""
    storage.check_writable(to)
    if to == out:
        raise RefusedError(f"--out {to}: is the folder of the results; choose another one")


def file_name(image: str, suffix: str) -> str:
    """Return the path of an image's file: that of its results without ``.ome.zarr``, where nobody looks for files."""
    return image.replace(".ome.zarr", "", 1) + suffix
