"""`chorus train --axes zyx` on the command line: an ensemble of volumes, and what does not go together with it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import tifffile

from chorus.pipeline.ensembles.ensemble import read_ensemble
from tests.support.making import write_ensemble
from tests.support.running import Chorus
from tests.support.training_volumes import blobs, write_pairs

SHORT = ["--option", "features=[4,8,8]", "--folds", "2", "--steps", "4", "--patch", "8,16,16", "--boundaries"]


@pytest.fixture
def train(chorus: Chorus) -> Chorus:
    """`chorus train --axes zyx` on the serial executor."""
    return partial(chorus, "train", "--axes", "zyx", "--executor", "serial", "--device", "cpu")


def paths(data: Path) -> list[object]:
    return [data / "images", "--labels", data / "labels", "--out", data / "ensemble"]


def test_volumes_are_learnt_scored_and_predicted(train: Chorus, chorus: Chorus, tmp_path: Path) -> None:
    write_pairs(tmp_path, 3)
    tifffile.imwrite(tmp_path / "images" / "flat.tif", blobs()[0])
    tifffile.imwrite(tmp_path / "labels" / "flat.tif", blobs()[0])
    result = train(*paths(tmp_path), *SHORT, "--pixel-size", "0.5,0.2,0.2", "--hold-out", "0.3", "--json")
    assert result.code == 1, result.err
    content = json.loads(result.out)
    assert "has a single plane; give images with a z axis, or leave --axes zyx out" in result.err
    assert {"ap50:ensemble", "dice:ensemble:no-augmentation"} <= content["scores"]["hold-out"].keys()
    spec = read_ensemble(str(tmp_path / "ensemble")).spec
    assert (spec.input.axes, spec.tile_shape, spec.input.pixel_sizes_um) == ("zyx", (8, 16, 16), (0.5, 0.2, 0.2))
    assert [member.kind for member in spec.members] == ["unet", "unet"]
    result = chorus(
        "predict", tmp_path / "images" / "0.ome.tif", "-e", tmp_path / "ensemble", "-o", tmp_path / "out",
        "--executor", "serial", "--device", "cpu", "--objects", "components",
    )  # fmt: skip
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--flows"], "--flows: they are of planes; learn boundaries of volumes, or leave --axes zyx out"),
        (["--clahe"], "--clahe: it varies planes; leave it out, or leave --axes zyx out"),
        (["--elastic"], "--elastic: it varies planes; leave it out"),
        (["--encoder", "resnet18"], "--encoder: networks of volumes have none to choose"),
        (["--imagenet"], "--imagenet: there are no such weights of volumes"),
        (["--frozen-share", "0.2"], "--frozen-share: networks of volumes begin with random weights"),
        (["--architecture", "Unet"], "--architecture: there is no Unet of volumes; give PlainConvUNet or Residual"),
        (["--pixel-size", "0.5,0.1,0.2"], "--pixel-size: patches are rotated in the plane, so that y and x need equal"),
        (
            ["--patch", "8,16,18", "--option", "features=[4,8]", "--option", "strides=[[1,1,1],[1,4,4]]"],
            "--patch: give multiples of 1 x 4 x 4 for this network, not 8 x 16 x 18",
        ),
        (["--patch", "4,6,6"], "--patch: 4 x 6 x 6 voxels are too few to be halved"),
        (["--tile", "30,64,64"], "--tile: give multiples of 8 x 8 x 8 for this network, not 30 x 64 x 64"),
        (["--option", "depth=3"], "--option: depth: Extra inputs are not permitted"),
        (["--option", "kernels=[[3,3,3]]"], "--option: features, strides and kernels: give one of each per stage"),
        (["--boundaries", "--label-kind", "classes"], "--boundaries: they are those of instances"),
    ],
)
def test_what_does_not_go_together_with_volumes_is_refused_in_one_sentence(
    arguments: list[str], said: str, train: Chorus, tmp_path: Path
) -> None:
    result = train(*paths(tmp_path), *arguments)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "ensemble").exists()


def test_members_of_planes_are_not_fine_tuned_to_volumes(train: Chorus, tmp_path: Path) -> None:
    start = write_ensemble(tmp_path / "smp", members=1)
    result = train(*paths(tmp_path), "--start", start)
    assert result.code == 2
    assert "--start: only members that see planes are fine-tuned" in result.err


@pytest.mark.parametrize("option", ["--patch", "--tile", "--pixel-size"])
def test_planes_take_one_number_where_volumes_take_three(chorus: Chorus, option: str, tmp_path: Path) -> None:
    result = chorus("train", *paths(tmp_path), option, "32,64,64")
    assert result.code == 2
    assert f"{option}: give one number for planes, which are square, or use --axes zyx" in result.err
