"""Whole runs of members that answer with distances and affinities: the same objects for any regions and workers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
import zarr
from numpy.typing import NDArray

from chorus.api import load
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.metrics.objects import count_objects
from tests.support.making import write_image
from tests.support.object_maps import distances_of
from tests.support.object_runs import drawn
from tests.support.object_runs import run as make_objects

LABELS = drawn(5, 200, 1300, 90)


class MapNetwork(torch.nn.Module):
    """Reads the inverted distance to the boundary from the image, and affinities from where it is low."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        inside = 0.95 - tiles
        above = torch.minimum(inside, torch.roll(inside, [1], [2]))
        left = torch.minimum(inside, torch.roll(inside, [1], [3]))
        far = torch.minimum(inside, torch.roll(inside, [8], [3]))
        logits = torch.cat([-inside, inside], 1), torch.cat([above, left, far], 1)
        return torch.cat([self.sharpness * logits[0], tiles, self.sharpness * logits[1]], 1)


def write_ensemble(folder: Path) -> Path:
    folder.mkdir()
    members = []
    for index, sharpness in enumerate((20.0, 30.0)):
        path = folder / f"member-{index}.pt"
        torch.jit.save(torch.jit.trace(MapNetwork(sharpness), torch.rand(1, 1, 64, 64)), path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        members.append({"kind": "torchscript", "weights": path.name, "sha256": digest})
    content = {
        "format": "chorus-ensemble/2",
        "name": "maps",
        "classes": [{"name": "background"}, {"name": "kind 1"}],
        "outputs": [
            {"role": "classes"},
            {"role": "distance", "names": ["inverted_boundary"]},
            {"role": "affinities", "offsets": [[-1, 0], [0, -1], [0, -8]]},
        ],
        "augmentations": ["identity"],
        "input": {"channels": ["dna"], "normalisation": {"kind": "mean_std", "mean": [0.0], "std": [1000.0]}},
        "tile": 64,
        "members": members,
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content))
    return folder / "ensemble.yaml"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    edge = distances_of(LABELS[None])[1][0]
    pixels: NDArray[np.uint16] = np.round(1000 * edge).astype(np.uint16)
    write_image(folder / "a.ome.zarr", pixels, "yx", channels=("dna",))
    return folder


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ensemble(tmp_path_factory.mktemp("run") / "ensemble")


def found(source: Path, ensemble: Path, out: Path, region: int, executor: str) -> dict[str, bytes]:
    """Objects by distances, then by affinities: labels and tables."""
    request = {"sources": [str(source)], "ensemble": str(ensemble), "out": str(out), "objects": "auto"}
    settings = {"region": region, "chunk": 64, "save": ["uncertainty", "probability", "affinities"]}
    content = request | {"settings": settings, "run": {"executor": executor}}
    outcome = predict(PredictRequest.model_validate(content), Silent())
    assert outcome.state == "complete"
    assert outcome.summary.objects is not None
    assert outcome.summary.objects.method == "distances"
    results = {f"distances: {name}": content for name, content in contents(out).items()}
    by_distances = agreement(out)
    make_objects(out, method="affinities", executor=executor)
    assert min(by_distances, agreement(out)) > 0.6
    return results | {f"affinities: {name}": content for name, content in contents(out).items()}


def agreement(out: Path) -> float:
    """AP at IoU 0.5 of what is not tiny."""
    return count_objects(LABELS, labels(out).astype(np.int32), minimum_size=40).average_precision[0]


def labels(out: Path) -> NDArray[np.uint32]:
    return np.asarray(zarr.open_array(out / "images/a.ome.zarr/labels/kind 1/s0", mode="r")[:], np.uint32)


def contents(out: Path) -> dict[str, bytes]:
    return {"labels": labels(out).tobytes(), "table": (out / "objects.parquet").read_bytes()}


def test_regions_change_no_byte_of_a_whole_run(source: Path, ensemble: Path, tmp_path: Path) -> None:
    runs = [found(source, ensemble, tmp_path / str(region), region, "serial") for region in (256, 1024)]
    assert runs[0] == runs[1]


def test_arrays_in_memory_have_no_objects_of_maps(ensemble: Path) -> None:
    loaded = load(str(ensemble), device="cpu")
    array = np.zeros((64, 64), np.uint16)
    assert loaded.segment(array, progress=False).scores["tiles"] == 1
    with pytest.raises(RefusedError, match="made of results on disk; run chorus predict with --objects affinities"):
        loaded.segment(array, objects="affinities", progress=False)


@pytest.mark.ray
@pytest.mark.long
def test_ray_gives_the_bytes_of_one_process(source: Path, ensemble: Path, tmp_path: Path) -> None:
    on_ray = found(source, ensemble, tmp_path / "ray", 128, "ray")
    assert on_ray == found(source, ensemble, tmp_path / "serial", 512, "serial")
