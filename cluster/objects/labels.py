"""Objects of one image as a person asks for them: label images by class, and their table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd


class ObjectLabels(Mapping[str, Any]):
    """Objects of an image: a label image per class, and a table.

    ``objects["nucleus"]`` has 0 for background and 1 to n for the objects, in each plane anew; ``objects.table`` has a
    row for each of them, as `objects.parquet` has: place, size, shape, mean intensity and uncertainty.
    """

    def __init__(self, labels: Mapping[str, Any], table: pd.DataFrame) -> None:
        self._labels, self.table = dict(labels), table

    def __getitem__(self, name: str) -> Any:
        return self._labels[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def counts(self) -> dict[str, int]:
        """How many objects each class has, in all planes together."""
        return {name: int((self.table["class"] == name).sum()) for name in self._labels}

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} of {name}" for name, count in self.counts.items())
        return f"<ObjectLabels: {counts or 'none'}; labels by class, and .table>"
