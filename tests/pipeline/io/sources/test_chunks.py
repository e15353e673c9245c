"""An array of which no chunk is found is damaged, not black."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io.sources.reading import read_window


def array(path: Path, data: np.ndarray, **options: Any) -> Path:
    zarr.create_array(path, data=data, chunks=(8, 8), **options)
    return path


def corner(path: Path, *, source: bool = True) -> np.ndarray:
    return read_window(zarr.open_array(path, mode="r"), "yx", 0, 0, (0,), Window.of(0, 8, 0, 8), source=source)


def test_another_separator_than_that_of_the_files_is_said(tmp_path: Path) -> None:
    path = array(tmp_path / "a", np.ones((16, 16)), zarr_format=2, chunk_key_encoding={"name": "v2", "separator": "/"})
    document = json.loads((path / ".zarray").read_text())
    document.pop("dimension_separator")
    (path / ".zarray").write_text(json.dumps(document))
    with pytest.raises(ImageError, match=r"though files are there: by its metadata the first is 0\.0; correct"):
        corner(path)
    assert not corner(path, source=False).any()


@pytest.mark.parametrize("options", [{"zarr_format": 2}, {"zarr_format": 3}, {"zarr_format": 3, "shards": (16, 16)}])
def test_an_array_without_any_chunk_is_damaged_and_one_black_chunk_is_not(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    data = np.zeros((16, 16), np.uint16)
    with pytest.raises(ImageError, match="none of its chunks exists; copy the image again"):
        corner(array(tmp_path / "none", data, **options))
    data[12, 12] = 1
    assert not corner(array(tmp_path / "some", data, **options)).any()
    written = array(tmp_path / "black", np.zeros((16, 16), np.uint16), **options, config={"write_empty_chunks": True})
    assert not corner(written).any()
