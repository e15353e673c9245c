"""Parquet files of Chorus that are cut or garbage: one sentence instead of what the library says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from chorus.pipeline.errors import DamagedError
from chorus.pipeline.io.storage_failures import one_line


@contextmanager
def parquet_errors(url: str, mend: str) -> Iterator[None]:
    """Raise DamagedError inside the context where a table that is in memory cannot be read.

    Parameters
    ----------
    url : where it comes from, for the sentence
    mend : what to do, for the sentence
    """
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DamagedError(f"{url}: is damaged ({one_line(error)}); {mend}") from error
