"""``--diameter auto``: each image is scaled by the size of its own objects."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from chorus.cluster.objects.inputs import Results
from chorus.cluster.objects.request import ObjectsRequest
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.runs.image_diameters import Estimate, stored_estimate
from chorus.cluster.state.ledger import Ledger
from chorus.pipeline.errors import RefusedError
from tests.support.cellpose_networks import NARROW, residual_state
from tests.support.making import scripted, write_image
from tests.support.runs import arrays, assert_same_results, run, scores

TRAINED = 12.0


class BrightNetwork(torch.nn.Module):
    """Bright pixels are nuclei, at any scale."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return 10 * torch.cat([-tiles, tiles], dim=1)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    member = scripted(BrightNetwork(), folder / "bright.pt")
    normalisation = {"kind": "mean_std", "mean": [500.0], "std": [300.0]}
    content = {
        "format": "chorus-ensemble/2",
        "name": "bright",
        "classes": [{"name": "background"}, {"name": "nucleus"}],
        "input": {"channels": ["dna"], "diameter_px": TRAINED, "normalisation": normalisation},
        "tile": 64,
        "augmentations": ["identity"],
        "members": [member],
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content))
    return folder / "ensemble.yaml"


def discs(shape: tuple[int, int], diameter: float) -> NDArray[np.uint16]:
    """Bright discs on a dark ground, two diameters apart."""
    y, x = np.mgrid[: shape[0], : shape[1]] % (2 * diameter) - diameter
    return np.where(y**2 + x**2 <= (diameter / 2) ** 2, 1000, 0).astype(np.uint16)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with small and large objects, and one with none."""
    folder = tmp_path_factory.mktemp("images")
    write_image(folder / "discs-8.ome.zarr", discs((90, 110), 8))
    write_image(folder / "discs-24.ome.zarr", discs((90, 110), 24))
    write_image(folder / "empty.ome.zarr", np.zeros((60, 50), np.uint16))
    return folder


@pytest.fixture(scope="module")
def auto(source: Path, ensemble: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("auto") / "out"
    run(source, ensemble, out, diameter="auto")
    return out


def estimate(out: Path, name: str) -> Estimate:
    found = stored_estimate(str(out / "plan" / "diameters" / f"{name}.json"))
    assert found is not None
    return found


def test_each_image_is_scaled_by_the_diameter_of_its_own_objects(auto: Path) -> None:
    found = scores(auto).set_index("name")["diameter_px"]
    table = ImageTable.read(str(auto / "plan" / "images.parquet"))
    for index, name in enumerate(table.names[:2]):
        diameter = {"discs-8.ome.zarr": 8, "discs-24.ome.zarr": 24}[name]
        assert found[name] == pytest.approx(diameter, rel=0.06)
        assert estimate(auto, name).by == "objects"
        assert table.image(index).model_height == round(90 * TRAINED / estimate(auto, name).diameter_px)
    results = Results(ObjectsRequest(out=str(auto), method="watershed"))
    diameters = [results.job(index).settings.diameter for index in range(3)]
    np.testing.assert_allclose(diameters, [found[name] for name in table.names], rtol=0.02)


def test_an_image_without_objects_is_taken_as_the_ensemble_was_trained(auto: Path) -> None:
    assert estimate(auto, "empty.ome.zarr") == Estimate(diameter_px=TRAINED, first_px=TRAINED, by="ensemble")


def test_a_run_by_that_diameter_is_the_same(auto: Path, source: Path, ensemble: Path, tmp_path: Path) -> None:
    name = "discs-24.ome.zarr"
    run(source / name, ensemble, tmp_path / "given", diameter=estimate(auto, name).diameter_px)
    given, taken = arrays(tmp_path / "given"), arrays(auto)
    assert given
    assert all(taken[path] == content for path, content in given.items())


def test_it_depends_neither_on_regions_nor_on_resumption(
    auto: Path, source: Path, ensemble: Path, tmp_path: Path
) -> None:
    run(source, ensemble, tmp_path / "other", diameter="auto", region=256)
    assert_same_results(auto, tmp_path / "other")
    name = "discs-8.ome.zarr"
    Ledger(str(tmp_path / "other")).forget_image(name)
    (tmp_path / "other" / "plan" / "diameters" / f"{name}.json").unlink()
    run(source, ensemble, tmp_path / "other", diameter="auto", region=256)
    assert_same_results(auto, tmp_path / "other")


def test_a_size_model_decides_the_first_scale(tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    folder.mkdir()
    torch.save(residual_state(), folder / "cyto3")
    # No style changes what it says: twice the diameter of the training.
    content = {"A": np.zeros(NARROW[-1]), "smean": np.zeros(NARROW[-1]), "ymean": np.log(2.0), "diam_mean": 30.0}
    np.save(folder / "size_cyto3.npy", content)  # type: ignore[arg-type]
    member = {"kind": "cellpose", "weights": "cyto3"}
    for key, name in (("sha256", "cyto3"), ("size_sha256", "size_cyto3.npy")):
        member[key] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    ensemble = {
        "format": "chorus-ensemble/2",
        "name": "cells",
        "classes": [{"name": "background"}, {"name": "cell"}],
        "input": {"channels": ["cell"], "diameter_px": 30, "normalisation": {"kind": "member"}},
        "activation": "sigmoid",
        "flows": True,
        "tile": 64,
        "members": [member],
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(ensemble))
    image = write_image(tmp_path / "image.ome.zarr", discs((64, 64), 20))
    run(image, folder / "ensemble.yaml", tmp_path / "out", diameter="auto")
    found = estimate(tmp_path / "out", "image.ome.zarr")
    assert (found.by, found.first_px) == ("style", pytest.approx(60.0))


def test_volumes_need_a_diameter_that_is_given(source: Path, ensemble: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="--diameter auto: objects in volumes are not measured beforehand"):
        run(source, ensemble, tmp_path / "out", diameter="auto", volumes="all")
