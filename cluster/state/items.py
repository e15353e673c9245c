"""The ledger of a command whose items need nothing of one another, readable with ``ls``.

::

    <ledger>/<item name>.json    written after the item's results: the only sign of completion
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

from chorus.pipeline.errors import DamagedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.json_documents import parsed
from chorus.pipeline.io.listings import pages
from chorus.pipeline.io.storage import remove_folder
from chorus.pipeline.io.storage_failures import storage_errors

log = logging.getLogger("chorus")

Record = TypeVar("Record", bound=BaseModel)
_SUFFIX = ".json"
_READERS, _AT_ONCE = 16, 256


@dataclass(frozen=True)
class ItemLedger(Generic[Record]):
    """The records of finished items below `url`; workers get a copy."""

    url: str
    kind: type[Record]

    def record(self, name: str, record: Record) -> None:
        """Record that an item is done, after its results were written; raise OutputError if that is impossible."""
        url = self._url_of(name)
        with storage_errors(url):
            storage.write_record(url, record.model_dump_json().encode())

    def records(self) -> Iterator[tuple[str, Record]]:
        """Yield the records with the items' names, some read ahead.

        One that is damaged, or was written by another version of Chorus, is left out: its item is done again.
        """
        fs, path = storage.filesystem(self.url)
        with storage_errors(self.url), ThreadPoolExecutor(_READERS) as pool:
            for page in pages(fs, path):
                names = [file.name.removesuffix(_SUFFIX) for file in page if file.name.endswith(_SUFFIX)]
                for start in range(0, len(names), _AT_ONCE):
                    some = names[start : start + _AT_ONCE]
                    contents = pool.map(lambda name: fs.cat_file(f"{path}/{name}{_SUFFIX}"), some)
                    for name, data in zip(some, contents, strict=True):
                        record = self._parsed(name, data)
                        if record is not None:
                            yield name, record

    def read(self) -> dict[str, Record]:
        """Return all records by the items' names; see `records`."""
        return dict(self.records())

    def clear(self) -> None:
        """Remove all records."""
        with storage_errors(self.url):
            remove_folder(self.url)

    def _url_of(self, name: str) -> str:
        return inside(self.url, name) + _SUFFIX

    def _parsed(self, name: str, data: bytes) -> Record | None:
        try:
            return parsed(data, self.kind, self._url_of(name), f"{name} is done again")
        except DamagedError as error:
            log.warning("%s", error)
            return None
