"""Objects of a known diameter: images are resampled so that members see the size that they were trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chorus.cluster.planning.plan import plan_image
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings
from chorus.console.options import RequestOptions
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io.models import SourceImage
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.sources.reading import LevelChoice, choose_level
from tests.support.making import pixels, write_ensemble, write_image, write_light_ensemble
from tests.support.runs import arrays, assert_same_results, run

INPUT = {
    "channels": ["dna"],
    "pixel_size_um": 1.0,
    "diameter_px": 30.0,
    "normalisation": {"kind": "mean_std", "mean": [500.0], "std": [300.0]},
}


@pytest.fixture
def ensemble(tmp_path: Path) -> Ensemble:
    return read_ensemble(str(write_light_ensemble(tmp_path / "e", members=1, width=1, input=INPUT)))


@pytest.fixture
def image(tmp_path: Path) -> SourceImage:
    write_image(tmp_path / "image.ome.zarr", pixels((150, 112)), pixel_size=0.25)
    (found,) = find_images([str(tmp_path / "image.ome.zarr")])
    assert isinstance(found, SourceImage)
    return found


@pytest.mark.parametrize(("diameter", "shape"), [(60.0, (75, 56)), (15.0, (300, 224)), (30.0, (150, 112))])
def test_members_see_the_diameter_that_they_were_trained_on(
    diameter: float, shape: tuple[int, int], ensemble: Ensemble, image: SourceImage
) -> None:
    planned = plan_image(image, ensemble, ResultSettings(diameter=diameter))
    assert (planned.model_height, planned.model_width) == shape
    assert planned.output_shape == (150, 112)


def test_without_a_diameter_the_pixel_size_decides(ensemble: Ensemble, image: SourceImage) -> None:
    planned = plan_image(image, ensemble, ResultSettings())
    assert (planned.model_height, planned.model_width) == (38, 28)


def test_the_diameter_is_in_pixels_of_the_level_that_is_read(image: SourceImage) -> None:
    coarse = replace(image.levels[0], path="s1", shape=(75, 56), scale=(0.5, 0.5))
    pyramid = replace(image, levels=(*image.levels, coarse))
    assert choose_level(pyramid, None, 1.0, 0.5) == LevelChoice(0, (0.5, 0.5))
    assert choose_level(pyramid, 1, 1.0, 0.5) == LevelChoice(1, (0.5, 0.5))


def test_a_run_by_diameter_equals_a_run_by_pixel_size_of_the_same_factor(tmp_path: Path) -> None:
    ensemble = write_ensemble(tmp_path / "e", members=2, input=INPUT, augmentations=["identity"])
    source = write_image(tmp_path / "image.ome.zarr", pixels((150, 113)), pixel_size=0.5)
    run(source, ensemble, tmp_path / "size", region=128)
    run(source, ensemble, tmp_path / "diameter", region=128, diameter=60.0)
    assert_same_results(tmp_path / "size", tmp_path / "diameter")
    assert arrays(tmp_path / "diameter")["image.ome.zarr/labels/semantic/s0"][0] == (150, 113)


def test_a_diameter_needs_that_of_the_ensemble(tmp_path: Path) -> None:
    plain = read_ensemble(str(write_light_ensemble(tmp_path / "plain", members=1, width=1)))
    with pytest.raises(RefusedError, match=r"--diameter needs `input.diameter_px`.*leave out --diameter"):
        resolve(ResultSettings(diameter=20.0), plain)


@pytest.mark.parametrize("diameter", [0.0, -3.0, np.inf, np.nan, "large"])
def test_a_diameter_is_a_positive_number(diameter: object) -> None:
    with pytest.raises(RefusedError, match=r"--diameter: Input should be a number of pixels .*, or auto"):
        RequestOptions(["a.zarr"], "./e", "o", device="cpu", diameter=str(diameter)).request()


def test_the_option_is_the_setting() -> None:
    for given, expected in (("17.5", 17.5), ("auto", "auto"), (None, None)):
        request = RequestOptions(["a.zarr"], "./e", "o", device="cpu", diameter=given).request()
        assert request.settings.diameter == expected
