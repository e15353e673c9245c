"""Rows of images as a run writes them."""

from __future__ import annotations

from typing import Any

from chorus.cluster.state.documents import ImageRow


def image_row(name: str, *, status: str = "done", source: str = "/nowhere", **columns: Any) -> ImageRow:
    """A row of ``scores.parquet``, flat as it is stored: `columns` are its other fields and scores."""
    return ImageRow.model_validate({"image": "", "source": source, "name": name, "status": status} | columns)
