"""What a person sees of a result: its sentence, its picture, and what the reference set says."""

from __future__ import annotations

import io
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chorus.cluster.arrays.loaded import LoadedEnsemble
from chorus.cluster.planning.settings import ResultSettings
from chorus.pipeline.ensembles.builtin import named_ensemble
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.reference.flags import flag_images
from chorus.pipeline.reference.reference import calibrate_from
from chorus.pipeline.reference.storage import write_reference
from tests.support.making import pixels, write_light_ensemble
from tests.support.simulated import simulated


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedEnsemble:
    """An ensemble with a reference set of 60 images."""
    path = write_light_ensemble(tmp_path_factory.mktemp("light"), members=2, width=4)
    tables = simulated(60, seed=0)
    found = calibrate_from(tables.scores, tables.evaluation, tables.features, ensemble=read_ensemble(str(path)).hash)
    write_reference(str(path), found)
    return LoadedEnsemble.load(str(path), ResultSettings())


def test_flags_are_those_of_chorus_flag(loaded: LoadedEnsemble) -> None:
    result = loaded.segment(pixels((90, 100)), progress=False, objects="components")
    assert loaded.reference is not None
    features = pd.DataFrame({"name": ["array"], "features": [result._computed.record.features.mean]})
    row = flag_images(result.scores.to_frame().T.infer_objects(), loaded.reference, features).iloc[0]
    assert result.judgement is not None
    assert result.flags == tuple(row["flags"])
    assert astuple(result.judgement)[1:4] == (tuple(row["reasons"]), row["expected_dice"], row["dice_bound"])
    assert f"expected Dice {row['expected_dice']:.2f}" in repr(result)


def test_without_a_reference_set_there_are_no_flags(tmp_path: Path) -> None:
    path = write_light_ensemble(tmp_path / "light", members=1, width=4)
    result = LoadedEnsemble.load(str(path), ResultSettings()).segment(pixels((40, 50)), progress=False)
    assert (result.flags, result.judgement, result.objects) == (None, None, None)


def test_a_result_says_in_a_line_what_was_found(loaded: LoadedEnsemble) -> None:
    result = loaded.segment(pixels((90, 100)), progress=False, objects="components", name="cells <1>")
    assert result.objects is not None
    count = int(result.objects["nucleus"].max())
    assert repr(result).startswith("<Segmentation of cells <1>, yx 90x100: uncertainty ")
    assert f"{count} objects of nucleus" in repr(result)
    assert repr(result.objects) == f"<ObjectLabels: {count} of nucleus; labels by class, and .table>"
    said = "<LoadedEnsemble light; 2 members for nucleus; channels: dna; on cpu by eager; with a reference set>"
    assert repr(loaded) == said
    assert result.classes == ("background", "nucleus")


def test_an_image_without_foreground_says_so() -> None:
    nuclei = LoadedEnsemble.load(named_ensemble("nuclei-fluo"), ResultSettings(augmentations=["identity"]))
    result = nuclei.segment(np.full((40, 50), 100, "uint16"), progress=False)
    assert not result.labels.any()
    assert result.scores["status"] == "empty"
    assert "a channel has the same value in every pixel" in repr(result)
    assert "; no nucleus; " in repr(result)
    assert "; 0 objects of nucleus; " in repr(result)


def test_the_picture_is_the_image_with_outlines_beside_its_uncertainty(loaded: LoadedEnsemble) -> None:
    data = pixels((3, 120, 90))
    result = loaded.segment(data, axes="zyx", progress=False, objects="components")
    picture = np.asarray(Image.open(io.BytesIO(result._repr_png_())).convert("RGB"))
    assert picture.shape == (288, 2 * 216 + 4, 3)
    left, right = picture[:, :216].astype(int), picture[:, 220:].astype(int)
    colored = (left.max(axis=-1) - left.min(axis=-1)) > 20
    assert 0 < colored.mean() < 0.5  # outlines, and the rest is grey
    assert np.corrcoef(right.sum(axis=-1)[::4, ::4].ravel(), _shown(result.uncertainty[1]).ravel())[0, 1] > 0.9
    assert result.picture(64).shape == (64, 2 * 48 + 4, 3)


def _shown(uncertainty: np.ndarray) -> np.ndarray:
    """(72, 54) float64, a map at the size of every fourth pixel of a panel."""
    resized = Image.fromarray(uncertainty.astype(np.float32)).resize((216, 288), Image.Resampling.HAMMING)
    return np.asarray(resized, float)[::4, ::4]


def test_what_is_shown_in_a_notebook_is_small_and_escaped(loaded: LoadedEnsemble) -> None:
    result = loaded.segment(pixels((300, 300)), progress=False, name="<b>cells</b>")
    page = result._repr_html_()
    assert "&lt;b&gt;cells" in page
    assert "<b>cells" not in page
    assert len(page) < 60_000
    assert "light" in loaded._repr_html_()


def test_without_the_map_of_uncertainty_the_picture_is_the_image_alone(loaded: LoadedEnsemble) -> None:
    result = loaded.segment(pixels((64, 64)), progress=False, save=["probability"])
    assert result.picture(64).shape == (64, 64, 3)
    with pytest.raises(KeyError, match="'uncertainty' was not kept"):
        _ = result.uncertainty


def test_a_device_that_is_not_there_is_refused(loaded: LoadedEnsemble) -> None:
    with pytest.raises(RefusedError, match="this machine has no GPU that PyTorch can use; use --device cpu"):
        LoadedEnsemble.load(loaded.ensemble.url, ResultSettings(device="cuda"))
