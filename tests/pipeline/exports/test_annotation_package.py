"""Images to correct: the most doubtful window, the pixels and the draft as they were, taken back by training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.exports import annotation
from chorus.pipeline.exports.annotation import Drafted, Place, draft, most_doubtful
from chorus.pipeline.training.data.pairs import find_pairs, load_pair
from tests.support.making import write_image
from tests.support.object_runs import drawn


@given(st.integers(1, 70), st.integers(1, 70), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_the_window_is_the_one_with_the_largest_sum(height: int, width: int, size: int, seed: int) -> None:
    maps = np.random.default_rng(seed).integers(0, 5, (2, 3, height, width)).astype(np.float32) / 16
    place = most_doubtful(
        lambda t, z, window: maps[t, z, window.y.slice, window.x.slice], (2, 3), (height, width), size
    )
    step, tall, wide = max(1, size // 16), min(size, height), min(size, width)
    sums = {
        (t, z, y, x): maps[t, z, y : y + tall, x : x + wide].sum(dtype=np.float64)
        for t in range(2)
        for z in range(3)
        for y in {*range(0, height - tall + 1, step), height - tall}
        for x in {*range(0, width - wide + 1, step), width - wide}
    }
    best = max(sums.values())
    first = min(key for key, value in sums.items() if value == best)
    y, x = place.window.y, place.window.x
    assert (place.t, place.z, y.start, x.start) == first
    assert place.window.shape == (tall, wide)


@pytest.mark.parametrize("block", [7, 64])
def test_blocks_in_which_the_map_is_read_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((150, 130), dtype=np.float32)

    def found() -> Place:
        return most_doubtful(lambda _t, _z, window: values[window.y.slice, window.x.slice], (1, 1), (150, 130), 50)

    whole = found()
    monkeypatch.setattr(annotation, "_BLOCK", block)
    assert found() == whole


def results(folder: Path, labels: NDArray[np.integer], pixels: NDArray[np.generic], uncertainty: str | None) -> Drafted:
    """An image of two channels, of which the ensemble saw the second, and what a run left of it."""
    height, width = labels.shape
    source = write_image(folder / "source.ome.zarr", pixels, "cyx", channels=("actin", "dna"))
    maps = np.zeros((2, height, width), np.float32)
    maps[1, height // 2 :, width // 2 :] = 0.2
    out = write_image(
        folder / "out.ome.zarr", maps, "cyx", channels=("probability:cell", uncertainty or "probability:no")
    )
    array = zarr.create_array(f"{out}/labels/cell/s0", shape=labels.shape, chunks=(16, 16), dtype=labels.dtype)
    array[:] = labels
    return Drafted(
        name="a.ome.zarr",
        source_url=str(source),
        source_level="s0",
        source_axes="cyx",
        channels=(1,),
        channel_names=("dna",),
        results_url=str(out),
        labels_url=str(out),
        label="cell",
        axes="yx",
        planes=(1, 1),
        height=height,
        width=width,
        pixel_size_um=(0.5, 0.25),
    )


def folders(tmp_path: Path) -> tuple[str, str]:
    return str(tmp_path / "images" / "plate" / "a.tif"), str(tmp_path / "labels" / "plate" / "a.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float16])
def test_training_takes_pixels_and_draft_back_as_they_were(dtype: type[np.generic], tmp_path: Path) -> None:
    labels = drawn(3, 80, 70, 10).astype(np.uint32)
    pixels = np.random.default_rng(0).integers(0, 200, (2, 80, 70)).astype(dtype)
    image = results(tmp_path, labels, pixels, "uncertainty")
    assert draft(image, 1024, *folders(tmp_path)) == Place(0, 0, Window.of(0, 80, 0, 70))
    found = find_pairs(str(tmp_path / "images"), str(tmp_path / "labels"), ["dna"])
    assert [(pair.name, pair.shape) for pair in found.pairs] == [("plate/a", (80, 70))]
    raw, drafted = load_pair(found.pairs[0])
    assert np.array_equal(raw, pixels[1:])
    assert raw.dtype == (np.float32 if dtype is np.float16 else dtype)
    assert np.array_equal(drafted, labels)
    assert drafted.dtype == np.uint16
    with tifffile.TiffFile(folders(tmp_path)[0]) as tiff:
        assert tiff.is_ome
        assert 'PhysicalSizeY="0.5"' in str(tiff.ome_metadata)
        assert 'Name="dna"' in str(tiff.ome_metadata)


def test_a_large_image_is_cut_to_where_it_is_doubtful(tmp_path: Path) -> None:
    labels = drawn(3, 128, 128, 20).astype(np.uint32) + 70_000 * (drawn(3, 128, 128, 20) > 0)
    pixels = np.random.default_rng(0).integers(0, 60_000, (2, 128, 128)).astype(np.uint16)
    image = results(tmp_path, labels, pixels, "epistemic")
    place = draft(image, 64, *folders(tmp_path))
    assert place == Place(0, 0, Window.of(64, 128, 64, 128))
    raw, drafted = (tifffile.imread(name) for name in folders(tmp_path))
    assert np.array_equal(raw.squeeze(), pixels[1, 64:, 64:])
    assert drafted.dtype == np.uint16  # numbers beyond 16 bits are counted anew, each object stays one
    pairs = np.unique(np.stack([labels[64:, 64:], drafted]).reshape(2, -1), axis=1)
    assert len(pairs.T) == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
    assert pairs[1].tolist() == list(range(len(pairs.T)))


def test_the_same_image_gives_the_same_bytes(tmp_path: Path) -> None:
    image = results(tmp_path, drawn(3, 40, 40, 5).astype(np.uint32), np.ones((2, 40, 40), np.uint8), None)
    contents = []
    for _ in range(2):
        draft(image, 64, *folders(tmp_path))
        contents.append([Path(name).read_bytes() for name in folders(tmp_path)])
    assert contents[0] == contents[1]


def test_a_large_image_without_a_map_of_uncertainty_is_an_error_that_names_the_mend(tmp_path: Path) -> None:
    image = results(tmp_path, drawn(3, 80, 80, 5).astype(np.uint32), np.ones((2, 80, 80), np.uint8), None)
    with pytest.raises(ImageError, match=r"--save uncertainty, or give a larger --size"):
        draft(image, 64, *folders(tmp_path))
    assert not (tmp_path / "images").exists()
