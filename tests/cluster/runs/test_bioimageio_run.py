"""Whole runs with BioImage.IO packages: what bioimageio.core predicts of an image, and only blending beyond a tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
import zarr
from numpy.typing import NDArray

pytest.importorskip("bioimageio.core")

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.members.kinds.bioimageio.description import describe
from tests.support.making import pixels, write_image
from tests.support.packages import Net, axes, core_prediction, reference, write_package
from tests.support.reference import Array, reference_posterior

TILE = 64


def write_package_ensemble(folder: Path, package: Path, tile: int = TILE) -> Path:
    """An ensemble of one package that gives the probability of the foreground."""
    member = describe(str(package)).entry.model_dump(mode="json", exclude_none=True) | {"weights": str(package)}
    content = {
        "format": "chorus-ensemble/2",
        "name": "package",
        "classes": [{"name": "background"}, {"name": "nucleus"}],
        "input": {"channels": ["dna"], "normalisation": {"kind": "member"}},
        "activation": "none",
        "tile": tile,
        "members": [member],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content))
    return folder / "ensemble.yaml"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of the whole image before, a sigmoid after: what must not be done tile by tile."""
    steps = [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["channel", "y", "x"]}}]
    inputs = [{"id": "raw", "axes": axes({"min": 16, "step": 16}), "data": {"type": "float32"}, "preprocessing": steps}]
    outputs = [{"id": "mask", "axes": reference("raw", 1), "postprocessing": [{"id": "sigmoid"}]}]
    return write_package(tmp_path_factory.mktemp("package"), module=network(), inputs=inputs, outputs=outputs)


def network() -> Net:
    torch.manual_seed(7)
    return Net(classes=1).eval()


def foreground(ensemble: Path, data: NDArray[Any], folder: Path, **settings: Any) -> NDArray[np.float32]:
    """Probability of the foreground, (y, x), by a run in this process."""
    source = write_image(folder / "image.ome.zarr", data)
    outcome = predict(
        PredictRequest(
            sources=[str(source)],
            ensemble=str(ensemble),
            out=str(folder / "out"),
            settings=ResultSettings(**{"augmentations": ["identity"], "dtype": "float32"} | settings),
            run=RunSettings(executor="serial", placement="replicated"),
        ),
        Silent(),
    )
    assert outcome.state == "complete", outcome.rows
    return np.asarray(zarr.open_array(folder / "out/images/image.ome.zarr/s0", mode="r"))[1]


def test_an_image_of_one_tile_is_what_core_predicts_of_it(package: Path, tmp_path: Path) -> None:
    data = pixels((TILE, TILE), seed=3)
    found = foreground(write_package_ensemble(tmp_path / "e", package), data, tmp_path, overlap=0.0)
    expected = core_prediction(package, "torchscript", {"raw": data[None, None].astype(np.float32)}, "mask")[0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.ptp(expected) > 0.1


def test_a_larger_image_differs_from_the_whole_only_by_blending(package: Path, tmp_path: Path) -> None:
    data = pixels((150, 130), seed=4)
    data[:, 100:] *= 3  # so that statistics of a tile would be far from those of the image
    found = foreground(write_package_ensemble(tmp_path / "e", package), data, tmp_path, region=64, chunk=64)
    module = network().double()

    def member(tile: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(tile)[None])[0].sigmoid())

    image = (data - data.mean()) / (data.std() + 1e-6)
    blended = reference_posterior(image[None], [member], TILE, 0.5, ["identity"], "none")
    np.testing.assert_allclose(found, blended.probability[1], atol=1e-5, rtol=0)


def test_a_real_package_predicts_a_real_field_as_core_does(shared_data: Path, tmp_path: Path) -> None:
    package = shared_data / "models" / "unet2d_nuclei_broad"
    plate = zarr.open_group(shared_data / "ome_zarr" / "bbbc039_plate_v05.zarr", mode="r")
    arrays = [node for _, node in plate.members(max_depth=None) if isinstance(node, zarr.Array) and node.ndim == 3]
    field = max(arrays, key=lambda array: (array.shape, array.path))  # members come in any order
    data = np.asarray(field[0, :512, :512])
    ensemble = write_package_ensemble(tmp_path / "e", package, tile=512)
    found = foreground(ensemble, data, tmp_path, overlap=0.0)
    sample = {"raw": data[None, None].astype(np.float32)}
    # Core pads an image by the halo, its edge repeated, and crops that again: it has no tiles to overlap.
    expected = core_prediction(package, "torchscript", sample, "probability", padding=False)[0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
