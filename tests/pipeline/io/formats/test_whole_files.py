"""Files that are read whole are refused before they are unpacked where the memory does not suffice."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK
from PIL import Image

from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import decompression
from chorus.pipeline.io.formats.registry import open_rasters

Memory = namedtuple("Memory", "available")
PIXELS = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)


def write(path: Path) -> str:
    if path.suffix in (".png", ".jpg"):
        Image.fromarray(PIXELS).save(path)
    elif path.suffix == ".npz":
        np.savez_compressed(path, image=PIXELS)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(PIXELS), str(path))
    return str(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.nii.gz", "a.nii", "a.mha", "a.nrrd", "a.npz"])
def test_a_file_that_takes_more_memory_than_is_free_is_one_failed_image(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = write(tmp_path / name)
    monkeypatch.setattr(decompression, "_LARGE_BYTES", 1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(available=PIXELS.nbytes))
    refused = pytest.raises(ImageError, match=r"a\.[a-z.]+: takes 0\.0 GiB of memory to be read whole, too much")
    with refused, open_rasters(url):
        pass
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(available=100 * PIXELS.nbytes))
    with open_rasters(url) as rasters:
        assert len(rasters) == 1
