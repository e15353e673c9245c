"""Objects of maps of volumes: those of the whole volume in memory, the same bytes for any cut and for any workers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
import zarr
from numpy.typing import NDArray
from scipy import ndimage

from chorus.cluster.objects import stream
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.instances.maps.mutex import MutexSettings
from chorus.pipeline.instances.maps.objects import map_objects
from chorus.pipeline.instances.maps.rules import MapSettings
from chorus.pipeline.instances.methods import MapMethod
from chorus.pipeline.metrics.objects import average_precision
from tests.support.interruptions import interrupted_at
from tests.support.making import write_image
from tests.support.object_maps import MapsInMemory
from tests.support.object_runs import run as make_objects
from tests.support.runs import run

SHAPE = (68, 136, 50)
OFFSETS = [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, -5]]
SAVED = ["probability", "uncertainty", "boundary", "distances", "affinities"]
CUTS: list[dict[str, Any]] = [
    {"region": 256, "region_depth": 128},
    {"region": 64, "chunk": 64, "region_depth": 40, "chunk_depth": 20},
]


def touching_cells() -> NDArray[np.int32]:
    """Cells that fill the middle of the volume, each nearest to its seed."""
    rng = np.random.default_rng(0)
    seeds = np.ones(SHAPE, bool)
    at = rng.integers(8, np.array(SHAPE) - 8, (16, 3))
    seeds[tuple(at.T)] = False
    distance, nearest = ndimage.distance_transform_edt(seeds, return_indices=True)
    names = np.zeros(SHAPE, np.int32)
    names[tuple(at.T)] = np.arange(1, len(at) + 1)
    return np.where(distance < 18, names[tuple(nearest)], 0)


CELLS = touching_cells()


class VolumeMaps(torch.nn.Module):
    """Takes foreground and walls from two channels of the image."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        inside, walls = tiles[:, :1], tiles[:, 1:]
        pairs = [torch.minimum(1 - walls, torch.roll(1 - walls, [1], [axis])) for axis in (2, 3, 4)]
        far = torch.minimum(1 - walls, torch.roll(1 - walls, [5], [4]))
        return torch.cat([8 * (0.5 - inside), 8 * (inside - 0.5), walls, walls, *pairs, far], 1)


def write_ensemble(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "m.pt"
    torch.jit.save(torch.jit.trace(VolumeMaps(), torch.rand(1, 2, 16, 32, 32)), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    content = {
        "format": "chorus-ensemble/2",
        "name": "maps",
        "classes": [{"name": "background"}, {"name": "cell"}],
        "outputs": [
            {"role": "classes"},
            {"role": "boundary", "activation": "none"},
            {"role": "distance", "names": ["inverted_boundary"]},
            {"role": "affinities", "offsets": OFFSETS, "activation": "none"},
        ],
        "augmentations": ["identity"],
        "input": {
            "channels": ["inside", "walls"],
            "axes": "zyx",
            "normalisation": {"kind": "mean_std", "mean": [0.0, 0.0], "std": [1000.0, 1000.0]},
        },
        "tile": [48, 64, 64],
        "overlap": 0.25,
        "members": [{"kind": "torchscript", "weights": path.name, "sha256": digest}],
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content))
    return folder / "ensemble.yaml"


@pytest.fixture(scope="module")
def outs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One run of touching cells, cut in two ways."""
    folder = tmp_path_factory.mktemp("runs")
    edges = np.any([np.roll(CELLS, shift, axis) != CELLS for axis in range(3) for shift in (-1, 1)], axis=0)
    walls = ndimage.gaussian_filter(np.where(edges, 1.0, 0.0), 1.0)
    walls = np.clip(1.8 * walls / walls.max() + np.random.default_rng(1).normal(0, 0.05, SHAPE), 0, 1)
    data = np.round(1000 * np.stack([CELLS > 0, walls])).astype(np.uint16)
    source = write_image(folder / "v.ome.zarr", data, "czyx", channels=("inside", "walls"))
    ensemble = write_ensemble(folder / "ensemble")
    for number, cut in enumerate(CUTS):
        run(source, ensemble, folder / f"out-{number}", save=SAVED, **cut)
    return [folder / f"out-{number}" for number in range(len(CUTS))]


def stored(out: Path, path: str) -> NDArray[Any]:
    return np.asarray(zarr.open_array(out / "images" / "v.ome.zarr" / path, mode="r")[:])


def in_memory(out: Path, method: MapMethod) -> NDArray[np.integer]:
    """The objects of the maps that a run saved, numbered from 1 as their first voxels lie in the volume."""
    names = zarr.open_group(out / "images" / "v.ome.zarr", mode="r").attrs["ome"]["omero"]["channels"]
    maps = dict(zip([channel["label"] for channel in names], stored(out, "s0"), strict=True))
    affinities = np.stack([maps[f"affinity:{','.join(map(str, offset))}"] for offset in OFFSETS])
    mask = stored(out, "labels/semantic/s0") == 1
    edge = maps["distance:inverted_boundary"]
    kept = MapsInMemory(mask, edge, edge, maps["boundary"], affinities)
    mutex = MutexSettings(offsets=tuple((z, y, x) for z, y, x in OFFSETS), strides=(1, 1, 1))
    settings = MapSettings(method, diameter=10.0, minimum_size=15, mutex=mutex)
    source = _Saved(kept, maps["probability:cell"])
    found = map_objects(source, settings.blocks(SHAPE), settings)
    return np.unique(found, return_inverse=True)[1].reshape(SHAPE)


class _Saved:
    """Maps in memory with a foreground of its own, and no distance to the centre."""

    def __init__(self, maps: MapsInMemory, probability: NDArray[Any]) -> None:
        self.mask, self.boundaries, self.affinities = maps.mask, maps.boundaries, maps.affinities
        self._maps, self._probability = maps, probability

    def foreground(self, box: Any) -> NDArray[Any]:
        return self._probability[box.z.slice, box.y.slice, box.x.slice]

    def distances(self, box: Any, to: Any) -> NDArray[Any] | None:
        return None if to == "centre" else self._maps.distances(box, to)


@pytest.mark.parametrize("method", ["boundaries", "distances", "affinities", "agglomeration"])
def test_objects_of_maps_of_volumes_are_those_in_memory_for_any_cut(outs: list[Path], method: MapMethod) -> None:
    for out in outs:
        assert make_objects(out, method=method).state == "complete"
    found = stored(outs[0], "labels/cell/s0")
    np.testing.assert_array_equal(found, in_memory(outs[0], method))
    if method in ("boundaries", "distances"):
        assert average_precision(CELLS, found)[0] > 0.6
    table = pd.read_parquet(outs[0] / "objects.parquet")
    assert table["volume"].tolist() == np.bincount(found.ravel())[1:].tolist()
    assert table["x1"].tolist() == [box[2].stop for box in ndimage.find_objects(found)]
    assert (outs[1] / "objects.parquet").read_bytes() == (outs[0] / "objects.parquet").read_bytes()
    np.testing.assert_array_equal(stored(outs[1], "labels/cell/s0"), found)


def test_objects_of_maps_that_were_cut_short_go_on_to_the_same_bytes(
    outs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_AT_ONCE", 1)
    for method in ("find_pieces_of_block", "label_pixels"):
        with interrupted_at(stream, method, 3):
            assert make_objects(outs[1], method="boundaries", minimum_size=20).exit_code == 3
    for out in outs:
        assert make_objects(out, method="boundaries", minimum_size=20).state == "complete"
    assert (outs[1] / "objects.parquet").read_bytes() == (outs[0] / "objects.parquet").read_bytes()


def test_methods_of_planes_are_refused_and_auto_takes_the_best_of_the_saved_maps(outs: list[Path]) -> None:
    for method in ("flows", "stars", "watershed"):
        with pytest.raises(RefusedError, match=f"--method {method} cannot use yet"):
            make_objects(outs[0], method=method)
    assert make_objects(outs[0], method="auto").summary.method == "distances"
