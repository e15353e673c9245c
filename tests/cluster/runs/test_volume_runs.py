"""Runs over volumes: means of three directions, objects of all planes, the same bytes however the run was cut."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from numpy.typing import NDArray

from chorus.cluster.exports.outline_files import ExportRequest
from chorus.cluster.exports.outlines import export_objects
from chorus.cluster.objects import job as volume_job
from chorus.cluster.objects import stream as objects
from chorus.cluster.planning.plan import plan_image
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runs import volume_merging
from chorus.cluster.runs import volume_run as volumes
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.documents import PredictOutcome
from chorus.console.options import RequestOptions
from chorus.pipeline.core.outputs import FLOWS
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io.models import SourceImage
from chorus.pipeline.io.sources.discovery import find_images
from tests.support.interruptions import interrupted_at
from tests.support.making import write_ensemble, write_image
from tests.support.object_runs import run
from tests.support.object_runs import write_ensemble as drawn_ensemble
from tests.support.volume_runs import write_volume, write_volume_results
from tests.support.volumes import balls

ANISOTROPY = 2.0


def drawn() -> NDArray[np.int32]:
    """Two time points of balls that touch, across the borders of all blocks."""
    rows = [(z, y, x, 7.4) for z in (8, 22) for y in range(9, 52, 14) for x in range(9, 66, 14)]
    moved = [(z, y + 3, x + 2, radius) for z, y, x, radius in rows]
    return np.stack([balls((15, 52, 66), spheres, ANISOTROPY) for spheres in (rows, moved)])


TRUTH = drawn()


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    return drawn_ensemble(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volume(tmp_path_factory.mktemp("source"), "balls", TRUTH, pixel_size=1 / ANISOTROPY)


@pytest.fixture(scope="module")
def whole(source: Path, ensemble: Ensemble, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results and objects of a run whose regions and blocks are larger than the volume."""
    out = tmp_path_factory.mktemp("whole") / "out"
    write_volume_results(out, source, ensemble, TRUTH, ANISOTROPY, region=512)
    assert run(out, diameter=15.0).state == "complete"
    return out


def labels(out: Path, name: str = "kind 1", level: int = 0, image: str = "balls") -> NDArray[Any]:
    group = out / "images" / f"{image}.ome.zarr" / "labels" / name
    return np.asarray(zarr.open_array(group / f"s{level}", mode="r")[:])


def assert_same(out: Path, other: Path) -> None:
    assert (out / "objects.parquet").read_bytes() == (other / "objects.parquet").read_bytes()
    np.testing.assert_array_equal(labels(out), labels(other))


def smaller_blocks(monkeypatch: pytest.MonkeyPatch, edge: int) -> None:
    monkeypatch.setattr(volume_job, "_CROP_VOXELS", 0)
    monkeypatch.setattr(volume_job, "_EDGES", (edge,))
    monkeypatch.setattr(volume_merging, "_VOXELS", 5 * 64 * 64)


def test_flows_in_three_directions_make_every_ball_one_object(whole: Path, source: Path) -> None:
    found = labels(whole)
    for t, truth in enumerate(TRUTH):
        sizes = np.bincount(truth.ravel())
        large = np.isin(truth, np.flatnonzero(sizes >= 100)) & (truth > 0)
        pairs = set(zip(truth[large].tolist(), found[t][large].tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})  # none is split, none merged
    table = pd.read_parquet(whole / "objects.parquet")
    pixels = np.asarray(zarr.open_array(source / "s0", mode="r")[:])
    for t, rows in table.groupby("t"):
        assert rows["label"].tolist() == list(range(1, found[int(str(t))].max() + 1))
    assert table["flow_error"].isna().all()
    for row in table.sample(20, random_state=1).to_dict("records"):
        mask = found[row["t"]] == row["label"]
        at = np.nonzero(mask)
        assert row["volume"] == mask.sum()
        np.testing.assert_allclose([row[axis] for axis in "zyx"], [places.mean() for places in at])
        assert [row[f"{axis}0"] for axis in "zyx"] == [places.min() for places in at]
        assert [row[f"{axis}1"] for axis in "zyx"] == [places.max() + 1 for places in at]
        ends = [(places.min() == 0) | (places.max() + 1 == n) for places, n in zip(at, mask.shape, strict=True)]
        assert row["touches_border"] == any(ends)
        np.testing.assert_allclose(row["mean:actin"], pixels[row["t"], 1][mask].mean())


def test_neither_regions_nor_blocks_change_a_byte(
    source: Path, ensemble: Ensemble, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller_blocks(monkeypatch, 37)
    out = write_volume_results(tmp_path / "out", source, ensemble, TRUTH, ANISOTROPY, region=96)
    assert run(out, diameter=15.0).state == "complete"
    assert_same(out, whole)
    assert not (out / "work").exists()


def test_a_run_that_was_cut_short_goes_on_to_the_same_bytes(
    source: Path, ensemble: Ensemble, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller_blocks(monkeypatch, 45)
    out = write_volume_results(tmp_path / "out", source, ensemble, TRUTH, ANISOTROPY)
    for stage, calls in (("find_in_block", 3), ("label_voxels", 2)):
        with interrupted_at(objects, stage, calls):
            assert run(out, diameter=15.0).exit_code == 3
    assert run(out, diameter=15.0).state == "complete"
    assert_same(out, whole)


def test_objects_of_volumes_have_no_flow_error(whole: Path) -> None:
    with pytest.raises(RefusedError, match="--flow-error: is of flows in a plane"):
        run(whole, flow_error=0.4)


def test_outlines_of_volumes_are_refused(whole: Path, tmp_path: Path) -> None:
    request = ExportRequest(out=str(whole), to=str(tmp_path / "rois"), kind="rois")
    with pytest.raises(RefusedError, match="its objects are volumes, and outlines are of planes"):
        export_objects(request, Silent())


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_ensemble(tmp_path_factory.mktemp("network"), members=1, tile=64, flows=True))


NOISE = np.random.default_rng(5).integers(0, 1000, (7, 30, 38), dtype=np.uint16)


def predicted(source: Path, network: str, out: Path, **settings: Any) -> PredictOutcome:
    content = {"overlap": 0.0, "augmentations": ["identity"], "region": 64, "chunk": 32} | settings
    request = PredictRequest(
        sources=[str(source)],
        ensemble=network,
        out=str(out),
        settings=ResultSettings.model_validate(content),
        run=RunSettings(executor="serial", thumbnails=False),
        objects="auto" if "volumes" in settings else "none",
    )
    return predict(request, Silent())


def posterior(out: Path, image: str) -> dict[str, NDArray[np.float32]]:
    group = zarr.open_group(out / "images" / f"{image}.ome.zarr", mode="r")
    names = [c["label"] for c in group.attrs["ome"]["omero"]["channels"]]  # type: ignore[index, call-overload]
    return dict(zip(names, np.asarray(group["s0"][:], np.float32), strict=True))  # type: ignore[index]


@pytest.fixture(scope="module")
def volume(network: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over a volume of noise."""
    folder = tmp_path_factory.mktemp("volume")
    source = write_image(folder / "noise.ome.zarr", NOISE, "zyx")
    assert predicted(source, network, folder / "out", volumes="all").state == "complete"
    return folder


def test_maps_are_the_means_of_runs_over_images_that_were_turned(volume: Path, network: str, tmp_path: Path) -> None:
    """Turned by NumPy and written as images of their own, of which an ordinary run is made."""
    views = {"yx": (0, 1, 2), "zx": (1, 0, 2), "zy": (2, 0, 1)}
    of = {}
    for view, order in views.items():
        source = write_image(tmp_path / f"{view}.ome.zarr", np.ascontiguousarray(NOISE.transpose(order)), "zyx")
        out = tmp_path / f"out-{view}"
        assert predicted(source, network, out, save=["probability", "epistemic", "flows"]).state == "complete"
        back = np.argsort(order)
        of[view] = {name: values.transpose(back) for name, values in posterior(out, view).items()}
    found = posterior(volume / "out", "noise")
    for name in ("probability:background", "probability:class-1", "epistemic"):
        mean = (of["yx"][name] + of["zx"][name] + of["zy"][name]) / np.float32(3)
        np.testing.assert_array_equal(found[name], mean.astype(np.float16))
    for name, first, second in (
        ("flow:z", of["zx"]["flow:y"], of["zy"]["flow:y"]),
        ("flow:y", of["yx"]["flow:y"], of["zy"]["flow:x"]),
        ("flow:x", of["yx"]["flow:x"], of["zx"]["flow:x"]),
    ):
        np.testing.assert_array_equal(found[name], ((first + second) / 2).astype(np.float16))
    probability = sum(of[view]["probability:class-1"] - of[view]["probability:background"] for view in views)
    semantic = labels(volume / "out", "semantic", image="noise")
    clear = np.abs(probability) > 1e-5
    np.testing.assert_array_equal(semantic[clear], (probability > 0)[clear])
    assert 0 < semantic.mean() < 1


def test_means_that_were_cut_short_go_on_to_the_same_bytes(
    volume: Path, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_merging, "_VOXELS", 2 * 30 * 38)
    source, out = volume / "noise.ome.zarr", tmp_path / "out"
    with interrupted_at(volumes, "merge_slab", 2):
        assert predicted(source, network, out, volumes="all").state == "interrupted"
    assert (out / "work" / "volumes" / "zy" / "run.json").exists()
    assert predicted(source, network, out, volumes="all").state == "complete"
    for name in ("objects.parquet", "images"):
        files = [out / name] if (out / name).is_file() else [path for path in (out / name).rglob("*") if path.is_file()]
        assert files
        for path in files:
            assert path.read_bytes() == (volume / "out" / path.relative_to(out)).read_bytes()
    assert not (out / "work").exists()


@pytest.mark.parametrize(
    ("unit", "apart", "depth"), [("micrometer", 2, 24), ("nanometer", 2000, 24), ("micrometer", 0.52, 6)]
)
def test_all_directions_are_seen_at_the_pixel_size_of_the_planes(
    unit: str, apart: float, depth: int, network: str, tmp_path: Path
) -> None:
    """Pixels of 0.5 micrometres are seen at 1: of planes 2 micrometres apart there are then twice as many."""
    path = write_image(tmp_path / "stack.ome.zarr", np.zeros((12, 80, 104), np.uint16), "zyx", pixel_size=0.5)
    document = json.loads((path / "zarr.json").read_text())
    (multiscale,) = document["attributes"]["ome"]["multiscales"]
    multiscale["axes"][0]["unit"] = unit
    multiscale["datasets"][0]["coordinateTransformations"][0]["scale"][0] = apart
    (path / "zarr.json").write_text(json.dumps(document))
    (image,) = find_images([str(path)])
    assert isinstance(image, SourceImage)
    ensemble = read_ensemble(network)
    wanted = ensemble.spec.input.model_copy(update={"pixel_size_um": 1.0})
    coarse = replace(ensemble, spec=ensemble.spec.model_copy(update={"input": wanted}))
    planned = {view: plan_image(image, coarse, ResultSettings(volumes=view)) for view in ("yx", "zx", "zy")}
    assert {view: one.output_shape for view, one in planned.items()} == {
        "yx": (12, 80, 104),
        "zx": (80, 12, 104),
        "zy": (104, 12, 80),
    }
    seen = {view: (one.model_height, one.model_width) for view, one in planned.items()}
    assert seen == {"yx": (40, 52), "zx": (depth, 52), "zy": (depth, 40)}
    assert planned["zx"].scale == (0.5, apart, 0.5)


def test_the_command_line_asks_for_volumes() -> None:
    options = RequestOptions(sources=["a.zarr"], ensemble="nuclei-fluo", out="o", volumes=True, device="cpu")
    assert options.request().settings.volumes == "all"
    with pytest.raises(RefusedError, match="--volumes: results of volumes are not written into source images"):
        replace(options, in_place=True).request()


def test_what_is_no_volume_is_told_in_one_sentence(network: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_image(source / "flat.ome.zarr", NOISE[0], "yx")
    write_image(source / "thin.ome.zarr", NOISE[:1], "zyx")
    outcome = predicted(source, network, tmp_path / "out", volumes="all")
    assert outcome.exit_code == 1
    messages = [row.message for row in outcome.rows]
    assert messages[0].endswith("flat.ome.zarr: has no z axis (its axes are yx); leave --volumes out")
    assert messages[1].endswith("thin.ome.zarr: has one z plane, of which there is no volume; leave --volumes out")
    flowless = write_ensemble(tmp_path / "flowless", members=1)
    with pytest.raises(RefusedError, match="its members give no flows, which --volumes needs"):
        predicted(source, str(flowless), tmp_path / "other", volumes="all")
    assert FLOWS in read_ensemble(network).outputs


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in (out / "images").rglob("*") if path.is_file()}


def test_a_damaged_volume_is_made_again(volume: Path, network: str, tmp_path: Path) -> None:
    out = Path(shutil.copytree(volume / "out", tmp_path / "out"))
    shard = max(path for path in (out / "images" / "noise.ome.zarr" / "s0" / "c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-1])
    assert predicted(volume / "noise.ome.zarr", network, out, volumes="all").state == "complete"
    assert files_of(out) == files_of(volume / "out")


def test_a_slab_whose_shard_is_damaged_before_the_volume_is_finished_is_merged_again(
    volume: Path, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    source, out = volume / "noise.ome.zarr", tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(volumes, "finish_volume", stopping)
        assert predicted(source, network, out, volumes="all").state == "interrupted"
    for path in sorted((out / "images" / "noise.ome.zarr" / "s0" / "c").rglob("*"))[-3:]:
        if path.is_file():
            path.unlink()
    assert predicted(source, network, out, volumes="all").state == "complete"
    assert files_of(out) == files_of(volume / "out")
