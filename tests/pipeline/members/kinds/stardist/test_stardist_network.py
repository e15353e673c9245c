"""Networks of StarDist in torch answer as they do in Keras, from the files that StarDist saves."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.kinds.stardist.keras_weights import read_layers
from chorus.pipeline.members.kinds.stardist.network import StarDistNetwork, build_network
from chorus.pipeline.members.kinds.stardist.settings import DESIGN
from tests.support.paths import SHARED
from tests.support.stardist_models import answers, model_folder

INTEROP = SHARED / "interop"


def network(folder: Path, **changes: Any) -> StarDistNetwork:
    config = json.loads((folder / "config.json").read_text()) | changes
    layers = read_layers("weights_best.h5", (folder / "weights_best.h5").read_bytes())
    return build_network(DESIGN.validate_python(config), layers)


@torch.no_grad()
def test_a_2d_model_of_keras_2_with_classes_answers_as_in_keras(tmp_path: Path) -> None:
    keras = answers("unet2d")
    answer = network(model_folder("unet2d", tmp_path))(torch.from_numpy(keras["x"])).numpy()
    of_objects = keras["y2"][:, 1:] / keras["y2"][:, 1:].sum(1, keepdims=True)
    np.testing.assert_allclose(answer[:, :2], keras["y0"] * of_objects, atol=1e-5)
    np.testing.assert_allclose(answer[:, :2].sum(1), keras["y0"][:, 0], atol=1e-5)
    np.testing.assert_allclose(answer[:, 2:], np.maximum(keras["y1"], 1e-3), atol=1e-5)


@torch.no_grad()
def test_a_3d_residual_model_of_keras_3_answers_as_in_keras(tmp_path: Path) -> None:
    keras = answers("resnet3d")
    answer = network(model_folder("resnet3d", tmp_path))(torch.from_numpy(keras["x"])).numpy()
    np.testing.assert_allclose(answer[:, :1], keras["y0"], atol=1e-5)
    np.testing.assert_allclose(answer[:, 1:], np.maximum(keras["y1"], 1e-3), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["stardist2d_grid1", "stardist2d_grid2"])
def test_trained_models_answer_on_images_as_stardist_does(name: str) -> None:
    folder = INTEROP / name
    if not folder.is_dir():
        pytest.skip("no shared/interop beside the checkout: set CHORUS_SHARED")
    model, divisor = network(folder), 16 if name.endswith("2") else 8
    for path in sorted(path for path in folder.glob("*.npz") if path.stem != "scores"):
        with np.load(path) as file:
            image, prob, dist = file["image"], file["prob"], file.get("dist")
        low, high = np.percentile(image, [1, 99.8])
        x = ((image - low) / (high - low + 1e-20)).astype(np.float32)
        padded = np.pad(x, [(0, -length % divisor) for length in x.shape], mode="reflect")
        answer = model(torch.from_numpy(padded)[None, None])[0, :, : prob.shape[0], : prob.shape[1]].numpy()
        np.testing.assert_allclose(answer[0], prob, atol=1e-4)
        if dist is not None:  # stored as float16
            np.testing.assert_allclose(answer[1:], np.moveaxis(dist, -1, 0), atol=1e-4, rtol=1e-3)


def test_files_that_do_not_fit_are_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = model_folder("unet2d", tmp_path)
    for changes, reason in (
        ({"unet_n_filter_base": 4}, "weights of shape (3, 3, 2, 2), config.json says (3, 3, 2, 4)"),
        ({"unet_n_depth": 2}, "has no layer u_down_level_1_no_0"),
        ({"unet_batch_norm": False}, "has a layer batch_normalization that config.json does not know"),
        ({"grid": [2, 2], "unet_n_conv_per_depth": 3}, "has fewer layers conv than"),
    ):
        with pytest.raises(RefusedError, match=re.escape(reason)):
            network(folder, **changes)


def test_files_of_other_formats_are_refused_in_a_sentence() -> None:
    new = io.BytesIO()
    with h5py.File(new, "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros((3, 3, 1, 4), np.float32)
    with pytest.raises(RefusedError, match="not in the format of Keras 2 that StarDist saves"):
        read_layers("new.weights.h5", new.getvalue())
    with pytest.raises(RefusedError, match="cannot be read as weights of Keras"):
        read_layers("weights_best.h5", b"no HDF5")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backbone": "vgg"}, "backbone"),
        ({"axes": "CYX"}, "axes are CYX"),
        ({"grid": [3, 1]}, "power of 2"),
        ({"unet_pool": [2]}, "unet_pool does not have 2 values"),
        ({"unet_activation": "softsign"}, "unet_activation"),
    ],
)
def test_settings_of_no_known_network_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        network(model_folder("unet2d", tmp_path), **changes)
