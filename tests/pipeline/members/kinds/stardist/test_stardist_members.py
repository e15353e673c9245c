"""Model folders of StarDist as members: described, added, prepared and run as they are, or refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from chorus.pipeline.core.augmentation import AUGMENTATIONS
from chorus.pipeline.core.outputs import RAYS
from chorus.pipeline.ensembles.creation import Wanted
from chorus.pipeline.ensembles.editing import add
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.detection import describe, recognise
from chorus.pipeline.members.kinds.stardist.folder import read_folder
from chorus.pipeline.members.kinds.stardist.keras_weights import read_layers
from chorus.pipeline.members.kinds.stardist.member import EveryPixel
from chorus.pipeline.members.kinds.stardist.network import build_network
from chorus.pipeline.preprocessing.preparation import surveyed
from tests.support.stardist_models import model_folder

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model_folder("unet2d", tmp_path)


def added(folder: Path, **wanted: Any) -> Ensemble:
    url = str(folder.parent / "mine")
    add(url, [str(folder)], Wanted(tile=64, **wanted))
    return read_ensemble(url)


def changed(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_an_unmodified_folder_becomes_an_ensemble(folder: Path) -> None:
    (folder / "thresholds.json").write_text('{"prob": 0.61, "nms": 0.35}')
    assert recognise(str(folder)) == "stardist"
    ensemble = added(folder)
    content = yaml.safe_load((folder.parent / "mine" / "ensemble.yaml").read_text())
    assert [entry["name"] for entry in content["classes"]] == ["background", "class-1", "class-2"]
    assert content["activation"] == "none"
    assert content["outputs"][1]["grid"] == [2, 1]
    assert content["outputs"][1]["objects"] == {"prob_threshold": 0.61, "nms_threshold": 0.35}
    assert content["members"][0] | {"sha256": ""} == {"kind": "stardist", "weights": "unet2d", "sha256": ""}
    assert ensemble.spec.rays.channels == 4


def test_default_thresholds_are_those_of_stardist(folder: Path) -> None:
    (folder / "thresholds.json").unlink()
    thresholds = read_folder(str(folder)).thresholds
    assert (thresholds.prob, thresholds.nms) == (0.5, 0.4)


@torch.no_grad()
def test_points_of_the_grid_keep_the_answers_of_the_network(folder: Path) -> None:
    ensemble = added(folder)
    model = read_folder(str(folder))
    network = build_network(model.design, read_layers(model.weights_url, model.weights))
    tiles = torch.rand(2, 2, 64, 64)
    answer = ensemble.load_member(0, CPU)(tiles)
    assert answer.shape == (2, 2 + 4, 64, 64)
    torch.testing.assert_close(answer[:, :, ::2], network(tiles), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(answer[:, :, 1:-1:2], (answer[:, :, :-2:2] + answer[:, :, 2::2]) / 2)


@torch.no_grad()
@pytest.mark.parametrize("name", ["hflip", "vflip", "rot90", "transpose"])
def test_points_that_a_flip_moves_are_averaged_where_they_are(name: str) -> None:
    class Sampled(torch.nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            return tiles[..., ::4, ::2]

    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    ramp = (3 * y - 2 * x)[None, None]
    turned = AUGMENTATIONS[name]
    answer = turned.backward(EveryPixel(Sampled(), (4, 2), None)(turned.forward(ramp)))
    torch.testing.assert_close(answer[..., 4:-4, 4:-4], ramp[..., 4:-4, 4:-4])


def test_pixels_are_normalised_as_in_stardist(folder: Path) -> None:
    ensemble = added(folder)
    raw = np.random.default_rng(0).integers(0, 60_000, (2, 40, 50)).astype(np.uint16)
    preparation = ensemble.inputs([0]).preparations[0]
    prepared = preparation.apply(raw, surveyed(preparation.measures, [raw]))
    low, high = np.percentile(raw, [1, 99.8], axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(prepared, (raw - low) / (high - low + 1e-20), atol=1e-5)


@torch.no_grad()
def test_an_ensemble_without_rays_takes_the_probabilities_alone(folder: Path) -> None:
    ensemble = added(folder)
    content = yaml.safe_load(Path(ensemble.url).read_text())
    del content["outputs"]
    Path(ensemble.url).write_text(yaml.safe_dump(content))
    plain = read_ensemble(ensemble.url)
    assert RAYS not in plain.outputs
    tiles = torch.rand(1, 2, 64, 64)
    torch.testing.assert_close(plain.load_member(0, CPU)(tiles), ensemble.load_member(0, CPU)(tiles)[:, :2])


def test_folders_that_do_not_fit_are_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    url = str(folder)
    ensemble = added(folder)
    copy = tmp_path / "mine" / "unet2d"
    changed(copy, train_epochs=7)
    with pytest.raises(RefusedError, match=r"sha256 of config[.]json and weights is"):
        ensemble.load_member(0, CPU)
    with pytest.raises(RefusedError, match="takes tiles of a multiple of 4 pixels, not 66"):
        read_ensemble(ensemble.url).spec.members[0].model_copy(update={"sha256": read_folder(str(copy)).sha256}).load(
            ensemble.asked(0, 66), CPU
        )
    (folder / "weights_best_old.h5").write_bytes(b"")
    with pytest.raises(RefusedError, match=r"several files of weights \(weights_best.h5, weights_best_old.h5\)"):
        describe(url)
    (folder / "weights_best_old.h5").unlink()
    changed(folder, backbone="vgg")
    with pytest.raises(RefusedError, match="of no StarDist model that Chorus can build"):
        describe(url)
    (folder / "config.json").write_text("{")
    with pytest.raises(RefusedError, match="of no StarDist model that Chorus can build"):
        describe(url)
    (folder / "weights_best.h5").unlink()
    with pytest.raises(RefusedError, match="no model folder of StarDist"):
        describe(url, "stardist")
    volumes = model_folder("resnet3d", tmp_path)
    with pytest.raises(RefusedError, match=re.escape("a StarDist model of volumes")):
        describe(str(volumes))
