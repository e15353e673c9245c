"""Runs with members that take volumes: the same bytes however they are cut, values of the reference, and refusals."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from chorus.cluster.objects.inputs import Results
from chorus.cluster.objects.request import ObjectsRequest
from chorus.cluster.planning.plan import plan_images
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io.outputs.writer import open_labels, open_posterior
from chorus.pipeline.report.thumbnails import thumbnails_present
from tests.support.interruptions import killed_after
from tests.support.making import pixels, volume_network, write_image, write_light_ensemble, write_volume_ensemble
from tests.support.paths import SHARED
from tests.support.runs import assert_same_results, run, start
from tests.support.volume_reference import Array, posterior_of_volume

FOLDS = ["fold_0.torchscript.pt", "fold_1.torchscript.pt"]
SHAPE = (13, 70, 90)
SMALL = {"region": 64, "chunk": 32, "region_depth": 4, "chunk_depth": 2}


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volume_ensemble(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image(tmp_path_factory.mktemp("image") / "v.ome.zarr", pixels(SHAPE), "zyx")


@pytest.fixture(scope="module")
def done(image: Path, ensemble: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volume in one block."""
    out = tmp_path_factory.mktemp("done")
    run(image, ensemble, out, region=128, region_depth=64)
    return out


def answer_of(network: torch.nn.Module, tile: Array) -> Array:
    with torch.no_grad():
        return np.asarray(network(torch.from_numpy(tile)[None])[0].numpy())


def by_the_letter(seed: int) -> Any:
    return partial(answer_of, volume_network(seed).double())


@pytest.mark.parametrize(
    "cut",
    [
        SMALL,
        {"region": 64, "chunk": 64, "region_depth": 5, "chunk_depth": 5, "batch": 3},
        {"region": None, "chunk": None},
        SMALL | {"stages": 2},
    ],
)
def test_results_do_not_depend_on_how_a_volume_is_cut(
    cut: dict[str, Any], image: Path, ensemble: Path, done: Path, tmp_path: Path
) -> None:
    run(image, ensemble, tmp_path / "cut", **cut)
    assert_same_results(done, tmp_path / "cut")


def test_a_killed_run_ends_with_the_same_bytes(image: Path, ensemble: Path, done: Path, tmp_path: Path) -> None:
    request = PredictRequest(
        sources=[str(image)],
        ensemble=str(ensemble),
        out=str(tmp_path / "killed"),
        settings=ResultSettings(**SMALL),
        run=RunSettings(executor="serial"),
    )
    killed_after(3, predict, request)
    again = predict(request, Silent())
    assert again.state == "complete"
    assert_same_results(done, tmp_path / "killed")


@pytest.mark.ray
def test_two_actors_give_the_same_bytes(image: Path, ensemble: Path, done: Path, tmp_path: Path) -> None:
    request = PredictRequest(
        sources=[str(image)],
        ensemble=str(ensemble),
        out=str(tmp_path / "ray"),
        settings=ResultSettings(**SMALL),
        run=RunSettings(executor="ray", actors=2),
    )
    assert predict(request, Silent()).state == "complete"
    assert_same_results(done, tmp_path / "ray")


def test_values_are_those_of_the_reference_over_time_points_and_channels(tmp_path: Path) -> None:
    data = pixels((2, 2, 9, 40, 50), seed=4)
    image = write_image(tmp_path / "tc.ome.zarr", data, "tczyx", channels=["actin", "dna"])
    ensemble = write_volume_ensemble(tmp_path / "ensemble")
    run(image, ensemble, tmp_path / "out", dtype="float32", **SMALL)
    url = str(tmp_path / "out" / "images" / "tc.ome.zarr")
    maps, labels = np.asarray(open_posterior(url)[...]), np.asarray(open_labels(url)[...])
    assert maps.shape == (2, 5, 9, 40, 50)
    for t in range(2):
        prepared = ((data[t, 1:2].astype(np.float32) - 500) / 300).astype(np.float64)
        wanted = posterior_of_volume(
            prepared, [by_the_letter(n) for n in range(2)], (8, 24, 24), 0.5, ("identity", "zflip", "hflip")
        )
        np.testing.assert_allclose(maps[t, :2], wanted["probability"], atol=5e-5)
        np.testing.assert_allclose(maps[t, 3], wanted["epistemic"], atol=5e-5)
        np.testing.assert_allclose(maps[t, 4], wanted["aleatoric"], atol=5e-5)
        sure = np.abs(wanted["probability"][0] - 0.5) > 1e-3
        assert (labels[t][sure] == wanted["probability"].argmax(axis=0)[sure]).all()


@pytest.mark.parametrize(("kind", "names"), [("torchscript", FOLDS), ("onnx", ["fold_0.onnx"])])
def test_folds_of_nnunet_in_3d_run_as_members(kind: str, names: list[str], tmp_path: Path) -> None:
    source = SHARED / "interop" / "nnunet_3d_fullres"
    if not source.is_dir():
        pytest.skip("no shared/interop beside the checkout: set CHORUS_SHARED")
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    data = np.load(source / "t_same.npz")["preprocessed"][0].astype(np.float32)[:20, :70, :60]
    image = write_image(tmp_path / "t.ome.zarr", data, "zyx")
    members = []
    for name in names:
        (tmp_path / name).write_bytes((source / name).read_bytes())
        digest = hashlib.sha256((source / name).read_bytes()).hexdigest()
        members.append({"kind": kind, "weights": name, "sha256": digest})
    entry = {"channels": ["fluo"], "axes": "zyx", "normalisation": {"kind": "mean_std", "mean": [0.0], "std": [1.0]}}
    changes = {"classes": [{"name": name} for name in ("background", "big", "small")], "tile": [16, 48, 48]}
    ensemble = write_volume_ensemble(tmp_path / "ensemble", input=entry, **changes)
    content = yaml.safe_load(ensemble.read_text()) | {"members": members}
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(content))
    run(image, tmp_path / "ensemble.yaml", tmp_path / "out", dtype="float32", **SMALL)
    networks = [torch.jit.load(str(source / name)).double().eval() for name in FOLDS[: len(names)]]
    wanted = posterior_of_volume(
        data[None].astype(np.float64),
        [partial(answer_of, network) for network in networks],
        (16, 48, 48),
        0.5,
        ("identity", "zflip", "hflip"),
    )
    maps = np.asarray(open_posterior(str(tmp_path / "out" / "images" / "t.ome.zarr"))[...])
    np.testing.assert_allclose(maps[:3], wanted["probability"], atol=1e-5)


def test_arrays_are_stored_in_blocks_and_only_planes_are_halved(image: Path, ensemble: Path, tmp_path: Path) -> None:
    big = write_image(tmp_path / "big.ome.zarr", pixels((5, 300, 40), seed=2), "zyx")
    run(big, ensemble, tmp_path / "out", **SMALL)
    url = str(tmp_path / "out" / "images" / "big.ome.zarr")
    first, second = open_posterior(url), open_posterior(url, 1)
    assert (first.shape, first.shards, first.chunks) == ((5, 5, 300, 40), (5, 4, 64, 64), (1, 2, 32, 32))
    assert second.shape == (5, 5, 150, 20)
    labels = np.asarray(open_labels(url)[...])
    assert np.array_equal(np.asarray(open_labels(url, 1)[...]), labels[:, ::2, ::2])
    assert thumbnails_present(str(tmp_path / "out"))


@pytest.mark.parametrize("cut", [SMALL, {"region": 64, "chunk": 16, "region_depth": 3, "chunk_depth": 3}])
def test_a_volume_of_other_pixel_sizes_is_resampled_on_each_axis(cut: dict[str, Any], tmp_path: Path) -> None:
    image = write_image(tmp_path / "v.ome.zarr", pixels((9, 50, 90)), "zyx", pixel_size=0.5, depth=1.5)
    ensemble = write_volume_ensemble(tmp_path / "ensemble", pixel_size=[1.0, 0.8, 0.5])
    read = read_ensemble(str(ensemble))
    (planned,) = plan_images([str(image)], read, resolve(ResultSettings(**cut), read))
    assert planned.model_shape == (14, 31, 90)  # type: ignore[union-attr]
    assert planned.layer_shape == (9, 50, 90)  # type: ignore[union-attr]
    run(image, ensemble, tmp_path / "whole", region=128, region_depth=16)
    run(image, ensemble, tmp_path / "cut", **cut)
    assert_same_results(tmp_path / "whole", tmp_path / "cut")


def test_statistics_of_a_volume_are_those_of_all_its_pixels(tmp_path: Path) -> None:
    image = write_image(tmp_path / "v.ome.zarr", pixels((9, 50, 70)), "zyx")
    entry = {"channels": ["dna"], "axes": "zyx", "normalisation": {"kind": "percentile", "low": 1, "high": 99}}
    ensemble = write_volume_ensemble(tmp_path / "ensemble", input=entry)
    run(image, ensemble, tmp_path / "whole", region=128, region_depth=16)
    run(image, ensemble, tmp_path / "cut", **SMALL)
    assert_same_results(tmp_path / "whole", tmp_path / "cut")


def test_an_image_without_z_fails_by_itself(image: Path, ensemble: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_image(folder / "flat.ome.zarr", pixels((70, 80)))
    write_image(folder / "thin.ome.zarr", pixels((1, 70, 80)), "zyx")
    write_image(folder / "volume.ome.zarr", pixels((6, 70, 80)), "zyx")
    outcome = start(folder, ensemble, tmp_path / "out", **SMALL)
    messages = {row.name: row.message for row in outcome.rows}
    assert "has no z axis (its axes are yx), and the ensemble's members take volumes" in messages["flat.ome.zarr"]
    assert "has one z plane, and the ensemble's members take volumes" in messages["thin.ome.zarr"]
    assert outcome.state == "failures"
    assert messages["volume.ome.zarr"] == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"volumes": "all"}, "leave --volumes out"),
        ({"effort": "adaptive"}, "use --effort full"),
        ({"diameter": 30.0}, "leave --diameter out"),
        ({"tile": (8, 24, 32), "augmentations": ["rot90"]}, "as many rows as columns"),
        ({"tile": 1024}, "are more than"),
        ({"region_depth": 6, "chunk_depth": 4}, "not a multiple"),
        ({"region_depth": 48}, "region-depth 48 is not a multiple of --chunk-depth 32"),
    ],
)
def test_what_does_not_go_with_volumes_is_refused(settings: dict[str, Any], message: str, ensemble: Path) -> None:
    with pytest.raises((RefusedError, ValueError), match=message):
        resolve(ResultSettings(**settings), read_ensemble(str(ensemble)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region_depth": 8}, "leave out --region-depth"),
        ({"chunk_depth": 8}, "leave out --chunk-depth"),
        ({"augmentations": ["zflip"]}, "zflip is one of volumes"),
        ({"tile": (8, 64, 64)}, "give one number for tiles of planes"),
        ({"overlap": (0.5, 0.5, 0.5)}, "give one number for tiles of planes"),
        ({"tile": 16}, "at least 32 pixels for tiles of planes"),
    ],
)
def test_what_is_of_volumes_is_refused_by_members_of_planes(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match=message):
        resolve(ResultSettings(**settings), read_ensemble(str(write_light_ensemble(tmp_path))))


@pytest.mark.parametrize("method", ["flows", "watershed", "stars"])
def test_objects_of_volumes_by_methods_of_planes_are_refused(method: Any, done: Path) -> None:
    with pytest.raises(RefusedError, match=f"take volumes .* --method {method} cannot use yet"):
        Results(ObjectsRequest(out=str(done), method=method))


def test_objects_of_volumes_are_components_where_no_maps_of_objects_are_saved(done: Path) -> None:
    assert Results(ObjectsRequest(out=str(done))).method == "components"
    with pytest.raises(RefusedError, match="its members give no affinities; choose another --method"):
        Results(ObjectsRequest(out=str(done), method="affinities"))


def test_predict_makes_components_of_volumes(image: Path, ensemble: Path, tmp_path: Path) -> None:
    request = PredictRequest(
        sources=[str(image)],
        ensemble=str(ensemble),
        out=str(tmp_path / "out"),
        settings=ResultSettings(**SMALL),
        run=RunSettings(executor="serial", placement="replicated"),
        objects="components",
    )
    outcome = predict(request, Silent())
    found = np.asarray(open_labels(str(tmp_path / "out" / "images" / "v.ome.zarr"), 0, "nucleus")[:])
    assert outcome.state == "complete"
    assert outcome.summary.objects is not None
    assert outcome.summary.objects.counts == {"nucleus": found.max()}
    assert found.max() > 0


def test_predict_refuses_objects_of_volumes_by_other_ways(image: Path, ensemble: Path, tmp_path: Path) -> None:
    request = PredictRequest(
        sources=[str(image)], ensemble=str(ensemble), out=str(tmp_path / "out"), objects="watershed"
    )
    with pytest.raises(RefusedError, match=r"take volumes .* which --objects watershed cannot use yet"):
        predict(request, Silent())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentinels": [{"name": "a", "image": "a", "label": "b", "dice": {"nucleus": 0.5}}]}, "sentinels: not for"),
        ({"augmentations": ["zrot90"], "tile": [8, 24, 32]}, "as many rows as columns"),
        ({"tile": [8, 24]}, "field tile"),
        ({"tile": 4096}, "are more than"),
    ],
)
def test_an_ensemble_of_volumes_that_cannot_be_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match=message):
        read_ensemble(str(write_volume_ensemble(tmp_path, **changes)))


def test_networks_of_planes_are_refused_in_an_ensemble_of_volumes(tmp_path: Path) -> None:
    path = write_volume_ensemble(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["members"][0] |= {"kind": "smp", "architecture": "Unet", "encoder": "resnet18"}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(RefusedError, match=r"members: 0 is of kind smp, whose networks take planes; volumes need"):
        read_ensemble(str(path))


def test_a_network_of_volumes_in_an_ensemble_of_planes_says_what_to_set(image: Path, tmp_path: Path) -> None:
    path = write_volume_ensemble(tmp_path / "ensemble", tile=64, augmentations=["identity"])
    content = yaml.safe_load(path.read_text())
    content["input"]["axes"] = "yx"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(RefusedError, match=r"its network takes volumes: set input\.axes to zyx"):
        start(image, path, tmp_path / "out")
