"""Whole runs of members that answer with several roles, on a grid and without a rim: the same bytes however cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
import zarr

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io.outputs.writer import open_posterior
from tests.support.making import pixels, scripted, write_image
from tests.support.runs import assert_same_results, run, scores, start

OFFSETS = [[-1, 0], [0, -1], [-2, 0], [0, 2]]
OUTPUTS: list[dict[str, Any]] = [
    {"role": "classes"},
    {"role": "rays", "channels": 8, "range": [0, 12]},
    {"role": "distance", "names": ["centre", "boundary"], "unit": "px", "range": [-4, 4]},
    {"role": "boundary"},
    {"role": "values", "names": ["raw"], "range": [-4, 4], "unit": "a.u."},
]
SAVE = [
    "probability", "ray_variation", "rays", "distances", "distance_variance", "boundary", "boundary_epistemic",
    "boundary_aleatoric", "values", "value_variance",
]  # fmt: skip
NORMALISATION = {"channels": ["dna"], "normalisation": {"kind": "mean_std", "mean": [500.0], "std": [300.0]}}


class Known(torch.nn.Module):
    """All channels are known functions of the pixel: on every `grid`-th pixel, without a rim of `crop`."""

    def __init__(self, shift: float, channels: int, grid: int, crop: int) -> None:
        super().__init__()
        self.shift, self.channels, self.grid, self.crop = shift, channels, grid, crop

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        size = tiles.shape[2] - self.crop
        inner = tiles[:, :, self.crop : size : self.grid, self.crop : size : self.grid]
        parts = [inner * (1.0 - 0.05 * channel) + self.shift for channel in range(self.channels)]
        return torch.cat(parts, dim=1)


def write_known(
    folder: Path, outputs: list[dict[str, Any]], channels: int, grid: int = 1, crop: int = 0, **more: Any
) -> Path:
    """Two members that differ by a shift."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(2):
        entries.append(scripted(Known(0.5 * index, channels, grid, crop), folder / f"member-{index}.pt"))
    content = {
        "format": "chorus-ensemble/2", "name": "known", "classes": [{"name": "background"}, {"name": "cell"}],
        "input": NORMALISATION, "outputs": outputs, "tile": 64, "members": entries,
    }  # fmt: skip
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content | more))
    return folder / "ensemble.yaml"


@pytest.mark.parametrize("answer", [{}, {"grid": 2, "crop": 8}], ids=["plain", "shaped"])
def test_regions_and_stages_change_no_byte_of_any_role(answer: dict[str, int], tmp_path: Path) -> None:
    ensemble = write_known(
        tmp_path / "e", OUTPUTS, 2 + 8 + 2 + 1 + 1, answer=answer, augmentations=["identity", "hflip", "rot90"],
        **answer,
    )  # fmt: skip
    data = pixels((150, 101))
    source = write_image(tmp_path / "image.ome.zarr", data)
    run(source, ensemble, tmp_path / "whole", region=256, save=SAVE, dtype="float32")
    run(source, ensemble, tmp_path / "cut", region=64, save=SAVE, dtype="float32")
    run(source, ensemble, tmp_path / "staged", region=96, stages=2, save=SAVE, dtype="float32")
    assert_same_results(tmp_path / "whole", tmp_path / "cut", tmp_path / "staged")
    url = str(tmp_path / "whole" / "images" / "image.ome.zarr")
    omero: Any = zarr.open_group(url, mode="r").attrs["ome"]
    channels = {one["label"]: one for one in omero["omero"]["channels"]}
    known = dict(zip(channels, np.asarray(open_posterior(url)[:]), strict=True))
    # Where no augmentation moved the points of the grid, that is everywhere without one, all is known.
    wanted = (np.squeeze(data).astype(np.float32) - 500) / 300
    if not answer:
        np.testing.assert_allclose(known["value:raw"], wanted * (1 - 0.05 * 13) + 0.25, atol=1e-4)
        np.testing.assert_allclose(known["value_variance:raw"], 0.25**2, atol=1e-4)
        np.testing.assert_allclose(known["distance:boundary"], wanted * (1 - 0.05 * 11) + 0.25, atol=1e-4)
        np.testing.assert_allclose(known["ray:0"] + known["ray:4"], known["ray:2"] + known["ray:6"], atol=1)
    assert channels["distance:centre"]["window"] == {"min": -4, "max": 4, "start": -4, "end": 4}
    assert (channels["ray:3"]["unit"], channels["value:raw"]["unit"]) == ("px", "a.u.")
    assert channels["value_variance:raw"]["window"]["end"] == 16
    row = scores(tmp_path / "whole").iloc[0]
    assert row["ray_variation"] > 0
    assert 0 < row["boundary_epistemic"] < 0.25
    assert np.isnan(row["flow_variance"])
    assert np.isnan(row["affinity_variance"])


def test_affinities_alone_make_a_foreground(tmp_path: Path) -> None:
    outputs = [{"role": "affinities", "offsets": OFFSETS, "activation": "sigmoid"}]
    ensemble = write_known(tmp_path / "e", outputs, 4, crop=4, answer={"crop": 4})
    source = write_image(tmp_path / "image.ome.zarr", pixels((90, 70)))
    save = ["probability", "affinities", "affinity_variance"]
    run(source, ensemble, tmp_path / "whole", region=128, save=save, dtype="float32")
    run(source, ensemble, tmp_path / "cut", region=64, save=save, dtype="float32")
    assert_same_results(tmp_path / "whole", tmp_path / "cut")
    known = np.asarray(open_posterior(str(tmp_path / "whole" / "images" / "image.ome.zarr"))[:])
    np.testing.assert_allclose(known[1], known[2:4].mean(axis=0), atol=1e-5)
    assert scores(tmp_path / "whole")["affinity_variance"].between(0, 0.25).all()


def test_what_a_run_cannot_do_with_them_is_refused_in_a_sentence(tmp_path: Path) -> None:
    ensemble = write_known(tmp_path / "e", [{"role": "classes"}, {"role": "rays", "channels": 6}], 8)
    source = write_image(tmp_path / "image.ome.zarr", pixels((70, 70)))
    with pytest.raises(RefusedError, match=r"augmentation rot90 cannot be used with rays.*--augment"):
        start(source, ensemble, tmp_path / "a", augmentations=["identity", "rot90"])
    with pytest.raises(RefusedError, match=r"gives? no boundary; leave `boundary` out of --save"):
        start(source, ensemble, tmp_path / "b", save=["boundary"])
    shaped = write_known(tmp_path / "s", [{"role": "classes"}], 2, grid=2)
    with pytest.raises(RefusedError, match=r"gives \(2, 32, 32\) for a tile, not \(2, 64, 64\)"):
        start(source, shaped, tmp_path / "c")
