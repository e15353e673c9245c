"""Ensembles that give rays, and images in which they find objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from scipy import ndimage

from tests.support.making import scripted, write_image

RAYS = 8


class StarNetwork(torch.nn.Module):
    """Probabilities of two classes of objects, high where the image is bright, and rays of 2 to 8 pixels."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.rays = torch.nn.Conv2d(1, RAYS, 7, padding=3, padding_mode="replicate")
        self.share = torch.nn.Conv2d(1, 1, 7, padding=3, padding_mode="replicate")

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        bright, share = torch.sigmoid(2.0 * tiles), torch.sigmoid(8.0 * self.share(tiles))
        rays = 2.0 + 6.0 * torch.sigmoid(2.0 * self.rays(tiles))
        return torch.cat([bright * share, bright * (1.0 - share), rays], 1)


def write_star_ensemble(folder: Path, *, members: int = 2, rays: bool = True, **changes: Any) -> Path:
    """An ensemble of TorchScript networks that give two classes of objects and rays, with a grid of 2 x 1."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(members):
        entries.append(scripted(StarNetwork(index), folder / f"member-{index}.pt"))
    thresholds = {"prob_threshold": 0.55, "nms_threshold": 0.3}
    content: dict[str, Any] = {
        "format": "chorus-ensemble/2",
        "name": "stars",
        "classes": [{"name": "background"}, {"name": "round"}, {"name": "flat"}],
        "input": {"channels": ["dna"], "normalisation": {"kind": "mean_std", "mean": [500.0], "std": [100.0]}},
        "activation": "none",
        "outputs": [
            {"role": "classes"},
            {"role": "rays", "channels": RAYS, "grid": [2, 1], "objects": thresholds},
        ],
        "tile": 64,
        "members": entries,
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content | changes))
    return folder / "ensemble.yaml"


def write_star_source(folder: Path) -> Path:
    """Images with smooth blobs, one of them a stack of two planes."""
    for name, shape in {"a": (150, 170), "b": (2, 90, 70), "dark": (40, 50)}.items():
        random = np.random.default_rng(len(name) + len(shape))
        smooth = ndimage.gaussian_filter(random.normal(size=shape), (0, 3, 3)[-len(shape) :])
        data = 500 + 100 * smooth / smooth.std() if name != "dark" else np.zeros(shape)
        write_image(folder / f"{name}.ome.zarr", data.astype(np.uint16), "zyx"[-len(shape) :], channels=["dna"])
    return folder
