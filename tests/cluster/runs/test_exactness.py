"""Whole runs: equal to the reference, and the same bytes whatever the regions and the stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
import zarr
from numpy.typing import NDArray

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.scores import read_features, read_scores
from chorus.pipeline.core.augmentation import D4, FLIPS
from chorus.pipeline.core.fields import CHOICES, FIELDS
from chorus.pipeline.errors import RefusedError
from tests.support.engines import outputs_of
from tests.support.making import network, pixels, write_ensemble, write_image, write_light_ensemble
from tests.support.reference import (
    Array,
    Encoder,
    Member,
    patch_maximum,
    reference_features,
    reference_posterior,
    tile_starts,
)
from tests.support.runs import arrays, assert_same_results, run, scores, start


@pytest.fixture(scope="module")
def two_members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    return write_ensemble(folder, members=2, tile=64, augmentations=["identity", "hflip"])


def test_regions_and_stages_change_no_byte_at_any_level(two_members: Path, tmp_path: Path) -> None:
    source = write_image(tmp_path / "image.ome.zarr", pixels((273, 161)))
    run(source, two_members, tmp_path / "whole", region=512)
    run(source, two_members, tmp_path / "cut", region=64)
    run(source, two_members, tmp_path / "odd", region=160)
    run(source, two_members, tmp_path / "staged", region=96, stages=2)
    assert_same_results(tmp_path / "whole", tmp_path / "cut", tmp_path / "odd", tmp_path / "staged")
    assert "image.ome.zarr/labels/semantic/s1" in arrays(tmp_path / "whole")


def test_threads_of_an_actor_are_a_setting_as_last_bits_may_depend_on_them(two_members: Path, tmp_path: Path) -> None:
    source = write_image(tmp_path / "image.zarr", pixels((150, 130)))
    known = torch.get_num_threads()
    try:
        for threads in (1, 2):
            run(source, two_members, tmp_path / str(threads), threads=threads, dtype="float32")
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(known)
    one, two = (zarr.open_array(tmp_path / name / "images" / "image.ome.zarr" / "s0")[:] for name in "12")
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
    with pytest.raises(RefusedError, match="threads was 1, now 2"):
        start(source, two_members, tmp_path / "1", threads=2, dtype="float32")


def test_flows_keep_the_law(tmp_path: Path) -> None:
    ensemble = write_ensemble(tmp_path / "e", members=2, flows=True, augmentations=["rot90", "transpose"])
    source = write_image(tmp_path / "image.ome.zarr", pixels((150, 101)))
    save = ["flow_variance", "flows"]
    run(source, ensemble, tmp_path / "whole", region=256, save=save)
    run(source, ensemble, tmp_path / "cut", region=64, save=save)
    run(source, ensemble, tmp_path / "staged", region=96, stages=2, save=save)
    assert_same_results(tmp_path / "whole", tmp_path / "cut", tmp_path / "staged")
    assert scores(tmp_path / "whole")["flow_variance"].between(0, 1).all()


@pytest.mark.parametrize(("pixel_size", "flows"), [(0.5, False), (1.7, True)])
def test_resampling_keeps_the_law(pixel_size: float, flows: bool, tmp_path: Path) -> None:
    entry = {
        "channels": ["dna"],
        "pixel_size_um": 1.0,
        "normalisation": {"kind": "mean_std", "mean": [500.0], "std": [300.0]},
    }
    ensemble = write_ensemble(tmp_path / "e", members=2, flows=flows, input=entry, augmentations=["identity"])
    source = write_image(tmp_path / "image.ome.zarr", pixels((150, 113)), pixel_size=pixel_size)
    save = [name for name in CHOICES if FIELDS[name].given(outputs_of(2, flows=flows))]
    run(source, ensemble, tmp_path / "whole", region=256, save=save)
    run(source, ensemble, tmp_path / "cut", region=64, save=save)
    run(source, ensemble, tmp_path / "staged", region=96, stages=2, save=save)
    assert_same_results(tmp_path / "whole", tmp_path / "cut", tmp_path / "staged")


def test_percentiles_planes_and_channels_keep_the_law(tmp_path: Path) -> None:
    entry = {"channels": ["dna", "membrane"], "normalisation": {"kind": "percentile", "low": 1.0, "high": 99.8}}
    ensemble = write_ensemble(
        tmp_path / "e", members=2, channels=2, classes=3, activation="sigmoid", input=entry, augmentations=["identity"]
    )
    data = pixels((2, 3, 2, 70, 81))
    data[1] *= 3
    source = write_image(
        tmp_path / "image.ome.zarr", data, "tczyx", channels=["membrane", "spare", "dna"], pixel_size=1.0
    )
    run(source, ensemble, tmp_path / "whole", region=128, batch=3)
    run(source, ensemble, tmp_path / "cut", region=64, batch=3)
    assert_same_results(tmp_path / "whole", tmp_path / "cut")


def reference_members(ensemble: Path, *, channels: int, outputs: int, count: int) -> list[Member]:
    """The networks of `write_ensemble`, in float64."""

    def member(module: torch.nn.Module) -> Member:
        def call(tile: Array) -> Array:
            with torch.inference_mode():
                answer: Array = module(torch.from_numpy(tile)[None])[0].numpy()
            return answer

        return call

    assert ensemble.exists()
    return [member(network(seed, channels=channels, outputs=outputs).double()) for seed in range(count)]


def reference_encoders(*, outputs: int, count: int) -> list[Encoder]:
    """Their encoders, in float64."""

    def encoder(module: Any) -> Encoder:
        def call(tile: Array) -> Array:
            with torch.inference_mode():
                stage: Array = module.encoder(torch.from_numpy(tile)[None])[-1][0].numpy()
            return stage

        return call

    return [encoder(network(seed, outputs=outputs).double()) for seed in range(count)]


@pytest.mark.parametrize(
    ("activation", "classes", "shape", "flows"),
    [
        ("softmax", 3, (75, 90), False),
        ("softmax", 2, (70, 33), True),
        ("sigmoid", 2, (41, 1), False),
        ("sigmoid", 3, (64, 50), False),
    ],
)
def test_a_whole_run_agrees_with_the_reference(
    activation: str, classes: int, shape: tuple[int, int], flows: bool, tmp_path: Path
) -> None:
    augmentations = list(D4 if flows else FLIPS)
    ensemble = write_ensemble(tmp_path / "e", members=2, classes=classes, activation=activation, flows=flows)
    data = pixels(shape)
    source = write_image(tmp_path / "image.ome.zarr", data)
    save = [name for name in CHOICES if FIELDS[name].given(outputs_of(2, flows=flows))]
    run(source, ensemble, tmp_path / "out", dtype="float32", augmentations=augmentations, save=save)
    outputs = classes - (activation == "sigmoid") + 2 * flows
    normalised = (data[None].astype(np.float64) - 500) / 300
    wanted = reference_posterior(
        normalised,
        reference_members(ensemble, channels=1, outputs=outputs, count=2),
        tile=64,
        overlap=0.5,
        augmentations=augmentations,
        activation=activation,
        flows=flows,
    )
    group = zarr.open_group(tmp_path / "out/images/image.ome.zarr", mode="r")
    posterior: NDArray[np.float32] = np.asarray(group["s0"])
    maps = [*wanted.probability, wanted.uncertainty, wanted.epistemic, wanted.aleatoric]
    maps += [*wanted.flow_variance, *wanted.flows]
    np.testing.assert_allclose(posterior, maps, atol=1e-4, rtol=0)
    labels = np.asarray(group["labels/semantic/s0"])
    certain = wanted.margin > 1e-3
    assert np.array_equal(labels[certain], wanted.labels[certain])

    row = read_scores(str(tmp_path / "out")).iloc[0]
    foreground = labels != 0
    assert row["status"] == ("done" if foreground.any() else "empty")
    if foreground.any():
        assert row["uncertainty"] == pytest.approx(wanted.uncertainty[foreground].mean(), abs=1e-5)
        assert row["epistemic"] == pytest.approx(wanted.epistemic[foreground].mean(), abs=1e-5)
        assert row["aleatoric"] == pytest.approx(wanted.aleatoric[foreground].mean(), abs=1e-5)
        assert row["entropy"] == pytest.approx(wanted.entropy[foreground].mean(), abs=1e-4)
        if flows:
            assert row["flow_variance"] == pytest.approx(wanted.flow_variance[0][foreground].mean(), abs=1e-5)
        else:
            assert pd.isna(row["flow_variance"])
        worst = patch_maximum(wanted.uncertainty, 16)
        assert row["patch_uncertainty_max"] == pytest.approx(np.nan if worst is None else worst, abs=1e-5, nan_ok=True)
        if np.array_equal(foreground, wanted.masks.any(axis=0)):
            assert row["uncertainty"] == pytest.approx(wanted.U, abs=1e-5)
            assert row["entropy"] == pytest.approx(wanted.mean_entropy, abs=1e-4)
    for k in range(1, classes):
        assert row[f"area_fraction:class-{k}"] == pytest.approx(wanted.area_fraction[k - 1], abs=2e-3)
        assert row[f"pairwise_dice:class-{k}"] == pytest.approx(wanted.pairwise_dice[k - 1], abs=2e-3)
        assert row[f"pairwise_dice_min:class-{k}"] == pytest.approx(wanted.minimum_pairwise_dice[k - 1], abs=2e-3)
    assert row["pairwise_dice_min"] == min(row[f"pairwise_dice_min:class-{k}"] for k in range(1, classes))

    features = read_features(str(tmp_path / "out")).iloc[0]
    tiles = len(tile_starts(shape[0], 64, 0.5)) * len(tile_starts(shape[1], 64, 0.5))
    assert (features["name"], features["tiles"]) == (row["name"], tiles)
    encoders = reference_encoders(outputs=outputs, count=2)
    np.testing.assert_allclose(features["features"], reference_features(normalised, encoders, 64, 0.5), atol=1e-4)


@pytest.mark.parametrize("stages", [1, 3])
def test_features_are_in_the_ensembles_order_and_pass_over_members_without_encoder(stages: int, tmp_path: Path) -> None:
    ensemble = write_ensemble(tmp_path / "e", members=2, augmentations=["hflip", "identity"])
    light = write_light_ensemble(tmp_path / "light", members=1, width=2)
    content = yaml.safe_load(ensemble.read_text())
    (other,) = yaml.safe_load(light.read_text())["members"]
    content["members"].insert(1, other | {"weights": str(light.with_name(other["weights"]))})
    ensemble.write_text(yaml.safe_dump(content))
    data = pixels((70, 65))
    run(write_image(tmp_path / "image.ome.zarr", data), ensemble, tmp_path / "out", stages=stages)
    found = read_features(str(tmp_path / "out"))["features"][0]
    wanted = reference_features((data[None] - 500.0) / 300, reference_encoders(outputs=2, count=2), 64, 0.5)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_images_that_fail_have_no_features_and_light_members_none_at_all(tmp_path: Path) -> None:
    ensemble = write_light_ensemble(tmp_path / "e", members=2, width=2)
    for name in "ab":
        write_image(tmp_path / f"images/{name}.ome.zarr", pixels((70, 65)))
    (tmp_path / "images/b.ome.zarr/s0/c/0/0").write_bytes(b"not zstd")
    assert start(tmp_path / "images", ensemble, tmp_path / "out").state == "failures"
    found = read_features(str(tmp_path / "out"))
    assert found["name"].tolist() == ["a.ome.zarr", "b.ome.zarr"]
    assert found["tiles"].tolist() == [4, 0]
    assert [len(features) for features in found["features"]] == [0, 0]


def test_a_second_run_of_the_same_process_sees_the_image_as_it_is_now(tmp_path: Path) -> None:
    # Statistics are kept with the plan; those of an earlier run must not outlive it.
    entry = {"channels": ["dna"], "normalisation": {"kind": "percentile", "low": 1.0, "high": 99.0}}
    ensemble = write_ensemble(tmp_path / "e", members=1, input=entry, augmentations=["identity"])
    source = write_image(tmp_path / "image.ome.zarr", pixels((64, 64)))
    run(source, ensemble, tmp_path / "out")
    first = arrays(tmp_path / "out")
    zarr.open_array(source / "s0", mode="r+")[...] = pixels((64, 64)) * 5 + 100
    for file in (tmp_path / "out").rglob("run.json"):
        content = file.read_text()
        file.write_text(content.replace('"dtype": "float16"', '"dtype": "float32"'))
    predict(
        PredictRequest(
            sources=[str(source)],
            ensemble=str(ensemble),
            out=str(tmp_path / "out"),
            settings=ResultSettings(region=64, chunk=32),
            run=RunSettings(executor="serial", placement="replicated"),
            overwrite=True,
        ),
        Silent(),
    )
    # Percentiles undo the gain and the offset but for rounding, so that nearly the same must come out.
    second = arrays(tmp_path / "out")
    a, b = (np.frombuffer(found["image.ome.zarr/s0"][2], np.float16).astype(float) for found in (first, second))
    np.testing.assert_allclose(a, b, atol=0.02)
