"""`chorus train` on the command line: what it says, what it leaves, and one sentence for what is wrong."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile

from chorus.pipeline.demo.synthetic_data import simulate_field
from chorus.pipeline.ensembles.ensemble import read_ensemble
from tests.support.making import write_ensemble, write_light_ensemble
from tests.support.running import Chorus

SHAPE = (72, 80)
SMALL = ["--encoder", "tu-mobilenetv4_conv_small_050", "--option", "decoder_channels=[32,24,16,16,8]"]
SHORT = [*SMALL, "--no-imagenet", "--folds", "2", "--steps", "4", "--patch", "32", "--batch", "2", "--tile", "32"]


@pytest.fixture
def train(chorus: Chorus) -> Chorus:
    """`chorus train` on the serial executor."""
    return partial(chorus, "train", "--executor", "serial", "--device", "cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four pairs in `images` and `labels`, two in `unseen` and `unseen-labels`."""
    for index in range(6):
        image, labels = simulate_field((5, index), SHAPE, "dense")
        kind = ("unseen", "unseen-labels") if index > 3 else ("images", "labels")
        for folder, pixels in zip(kind, (image, labels), strict=True):
            (tmp_path / folder).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / folder / f"{index}.tif", pixels)
    return tmp_path


def paths(data: Path) -> list[object]:
    return [data / "images", "--labels", data / "labels", "--out", data / "ensemble"]


def test_train_leaves_an_ensemble_with_curves_and_scores_and_speaks_json(train: Chorus, data: Path) -> None:
    tifffile.imwrite(data / "images" / "without.tif", np.zeros(SHAPE, np.uint16))
    tifffile.imwrite(data / "labels" / "alone.tif", np.zeros(SHAPE, np.uint16))
    test = ["--test", data / "unseen", "--test-labels", data / "unseen-labels"]
    words = ["--class", "background", "--class", "nucleus", "--intended-use", "tests", "--data-licence", "CC0-1.0"]
    result = train(*paths(data), *SHORT, *test, *words, "--json")
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["skipped"] == {"without label": ["without"], "without image": ["alone"]}
    assert "1 images have no label: without" in result.err
    assert "1 labels have no image: alone" in result.err
    scores = content["scores"]["unseen"]
    assert scores["images"] == 2
    best = max(scores["dice:member-0"], scores["dice:member-1"])
    honest = "is at least as good" if scores["dice:ensemble"] >= best else "is not at least as good"
    assert f"the ensemble {honest} as its best member" in result.err
    assert "ensemble, no-augmentation" in result.err
    assert "begun with random weights" in result.err
    ensemble = read_ensemble(str(data / "ensemble"))
    assert ensemble.hash == content["hash"]
    assert [entry.name for entry in ensemble.classes] == ["background", "nucleus"]
    about = ensemble.spec.about
    assert (about.intended_use, about.data[0].name, about.data[0].licence) == ("tests", "images", "CC0-1.0")
    assert about.scores["unseen"] == scores
    ElementTree.parse(data / "ensemble" / "training" / "curves.svg")


def test_a_folder_of_other_settings_is_refused_unless_overwritten(train: Chorus, data: Path) -> None:
    assert train(*paths(data), *SHORT).code == 0
    first = read_ensemble(str(data / "ensemble")).hash
    refused = train(*paths(data), *SHORT, "--seed", 1)
    assert refused.code == 2
    assert "holds results of another run (seed was 0, now 1); use --overwrite to replace them" in refused.err
    assert train(*paths(data), *SHORT, "--seed", 1, "--overwrite").code == 0
    assert read_ensemble(str(data / "ensemble")).hash != first


def test_a_folder_of_something_else_is_left_alone(train: Chorus, data: Path) -> None:
    (data / "ensemble").mkdir()
    (data / "ensemble" / "thesis.txt").write_text("all of it")
    result = train(*paths(data), *SHORT, "--overwrite")
    assert result.code == 2
    assert "is not empty and holds no run of Chorus" in result.err
    assert (data / "ensemble" / "thesis.txt").read_text() == "all of it"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--test", "x"], "--test and --test-labels belong together"),
        (["--hold-out", "0.5", "--test", "x", "--test-labels", "y"], "exclude each other"),
        (["--hold-out", "1.5"], "--hold-out: Input should be less than 1"),
        (["--learning-rate", "fast"], "--learning-rate fast: give a number"),
        (["--patch", "50"], "--patch: Input should be a multiple of 32"),
        (["--option", "decoder"], "--option decoder: give name=value"),
        (["--class", "a", "--class", "a"], "--class: two classes have the same name"),
        (["--flows", "--label-kind", "classes"], "--flows: they come from instances; use --label-kind instances"),
        (["--folds", "9"], "4 images with labels are fewer than 9 folds"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(arguments: list[str], said: str, train: Chorus, data: Path) -> None:
    result = train(*paths(data), *arguments)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
    assert not (data / "ensemble").exists()


def test_wrong_images_and_labels_are_refused_in_one_sentence(train: Chorus, data: Path) -> None:
    def refused(said: str, *arguments: object) -> None:
        result = train(*paths(data), "--folds", 2, *arguments)
        assert result.code == 2
        assert said in result.err
        assert "Traceback" not in result.err

    (data / "labels" / "0.tif").rename(data / "labels" / "other.tif")
    refused("--strict: 1 images have no label: 0; mend or remove them", "--strict")
    tifffile.imwrite(data / "labels" / "0.tif", np.zeros((10, 10), np.uint8))
    (data / "labels" / "other.tif").unlink()
    refused("differ in size", "--strict")
    for index in range(4):
        tifffile.imwrite(data / "labels" / f"{index}.tif", np.zeros(SHAPE, np.uint8))
    refused("every label image is empty")
    for index in range(4):
        (data / "labels" / f"{index}.tif").rename(data / "labels" / f"b{index}.tif")
    refused("no label fits an image")


def test_what_to_start_from_must_be_trainable(train: Chorus, data: Path) -> None:
    light = write_light_ensemble(data / "light")
    result = train(*paths(data), "--start", light)
    assert result.code == 2
    assert "member 0 is of kind torchscript, which cannot be trained" in result.err
    trainable = write_ensemble(data / "smp", members=1)
    result = train(*paths(data), "--start", f"{trainable}#3")
    assert result.code == 2
    assert "there is no member 3; give a number from 0 to 0" in result.err
