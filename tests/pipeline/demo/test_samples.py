"""Simulated fields look like microscopy, are the same for the same seed, and are stored as valid OME-Zarr."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05.hcs import HCS
from ome_zarr_models.v05.image import Image
from skimage.measure import label, regionprops

from chorus.pipeline.demo.synthetic_data import (
    OTHER,
    QUALITIES,
    Quality,
    simulate_field,
    write_other_images,
    write_sample_plate,
)
from chorus.pipeline.io.models import SourceImage
from chorus.pipeline.io.sources.discovery import find_images
from tests.support.paths import SHARED

REAL = SHARED / "data" / "bbbc039" / "test"


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "plate.ome.zarr"
    write_sample_plate(str(path), 1)
    return path


def contrast(quality: Quality) -> float:
    """Mean of the nuclei over the background, in standard deviations of the background."""
    image, labels = simulate_field(5, quality=quality)
    background = image[labels == 0]
    return float((image[labels > 0].mean() - np.median(background)) / background.std())


def sharpness(quality: Quality) -> float:
    """Steepest slopes of a field, over its brightness."""
    image, labels = simulate_field(5, quality=quality)
    slopes = np.hypot(*np.gradient(image.astype(float)))
    return float(np.percentile(slopes, 99) / (image[labels > 0].mean() - np.median(image)))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    height=st.integers(32, 200),
    width=st.integers(32, 200),
    quality=st.sampled_from(QUALITIES),
)
def test_any_seed_shape_and_quality_gives_a_field_with_consecutive_labels(
    seed: int, height: int, width: int, quality: Quality
) -> None:
    image, labels = simulate_field(seed, (height, width), quality)
    assert image.shape == labels.shape == (height, width)
    assert image.dtype == labels.dtype == np.uint16
    assert set(np.unique(labels)) <= set(range(labels.max() + 1))


def test_the_same_seed_gives_the_same_pixels_and_another_gives_others() -> None:
    first, again, other = (simulate_field(seed, (128, 128)) for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_fields_differ_in_density_focus_and_signal_as_their_names_say() -> None:
    counts = {quality: int(simulate_field(5, quality=quality)[1].max()) for quality in QUALITIES}
    assert counts["empty"] == 0
    assert 0 < counts["sparse"] < counts["ordinary"] < counts["dense"]
    assert sharpness("out_of_focus") < 0.5 * sharpness("ordinary")
    assert contrast("low_signal") < 0.5 * contrast("ordinary")


def test_some_nuclei_touch() -> None:
    _, labels = simulate_field(5)
    assert label(labels > 0).max() < labels.max()


@pytest.mark.skipif(not REAL.exists(), reason="needs the shared images of BBBC039")
def test_ordinary_fields_resemble_real_ones_in_size_density_and_brightness() -> None:
    def measure(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, float]:
        areas = [p.area for _, labels in pairs for p in regionprops(labels)]
        signal = [image[labels > 0].mean() - np.median(image[labels == 0]) for image, labels in pairs]
        return (
            float(np.median(areas)),
            float(np.mean([(y > 0).mean() for _, y in pairs])),
            float(np.median(signal)),
        )

    files = sorted((REAL / "images").glob("*.tif"))
    real = measure([(tifffile.imread(f), tifffile.imread(REAL / "labels" / f.name)) for f in files])
    simulated = measure([simulate_field(seed) for seed in range(6)])
    for ours, theirs in zip(simulated, real, strict=True):
        assert 0.5 < ours / theirs < 2


def test_the_plate_is_valid_ome_zarr_with_two_rows_three_columns_and_two_fields(plate: Path) -> None:
    hcs = HCS.from_zarr(zarr.open_group(plate, mode="r"))
    metadata = hcs.ome_attributes.plate
    assert [row.name for row in metadata.rows] == ["A", "B"]
    assert [column.name for column in metadata.columns] == ["01", "02", "03"]
    assert hcs.n_wells == 6
    assert all(len(well.ome_attributes.well.images) == 2 for well in hcs.well_groups)


def test_every_field_of_the_plate_has_two_levels_one_channel_and_its_pixel_size(plate: Path) -> None:
    images = list(find_images([str(plate)]))
    assert len(images) == 12
    for image in images:
        assert isinstance(image, SourceImage)
        assert (image.axes, image.channels) == ("cyx", ("dna",))
        assert [level.shape for level in image.levels] == [(1, 520, 696), (1, 260, 348)]
        assert [level.chunks for level in image.levels] == [(1, 256, 256)] * 2
        assert [level.scale for level in image.levels] == [(1, 0.65, 0.65), (1, 1.3, 1.3)]
        assert image.levels[0].dtype == "uint16"


def test_the_same_seed_writes_the_same_plate_and_its_fields_differ(plate: Path, tmp_path: Path) -> None:
    write_sample_plate(str(tmp_path / "again.zarr"), 1)
    fields = [f"{row}/{column}/{field}" for row in "AB" for column in ("01", "02", "03") for field in (0, 1)]
    seen = set()
    for field in fields:
        first, again = (zarr.open_array(root / field / "s0", mode="r")[:] for root in (plate, tmp_path / "again.zarr"))
        assert np.array_equal(first, again)
        seen.add(np.asarray(first).tobytes())
    assert len(seen) == len(fields)


def test_images_of_other_kinds_are_written_without_a_download(tmp_path: Path) -> None:
    write_other_images(str(tmp_path))
    for name in OTHER:
        group = zarr.open_group(tmp_path / f"{name}.ome.zarr", mode="r")
        Image.from_zarr(group)
        pixels = np.asarray(zarr.open_array(tmp_path / f"{name}.ome.zarr" / "s0", mode="r")[:])
        assert pixels.dtype == np.uint16
        assert pixels.std() > 500
    images = list(find_images([str(tmp_path)]))
    assert [image.channels for image in images if isinstance(image, SourceImage)] == [("dna",)] * len(OTHER)
