"""A second ensemble whose flows are known: uphill in the blurred probability that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn import functional

from tests.support.making import scripted


class Uphill(torch.nn.Module):
    """Flows to where the mean of the mean of the `2 * reach + 1` pixels around is highest.

    It answers with NaN where a tile is above `most`.
    """

    def __init__(self, reach: int, most: float) -> None:
        super().__init__()
        self.reach, self.most = reach, most

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        around, edge = 2 * self.reach + 1, 2 * self.reach + 1
        wide = functional.pad(tiles, [around, around, around, around], mode="reflect")
        smooth = functional.avg_pool2d(functional.avg_pool2d(wide, edge, stride=1), edge, stride=1)
        dy = smooth[:, :, 2:, 1:-1] - smooth[:, :, :-2, 1:-1]
        dx = smooth[:, :, 1:-1, 2:] - smooth[:, :, 1:-1, :-2]
        logits = 10 * (tiles - 0.5)
        if bool(tiles.max() > self.most):
            logits = logits * float("nan")
        return torch.cat([-logits, logits, 100 * dy, 100 * dx], dim=1)


def write_second(folder: Path, *, reach: int = 5, most: float = 1.0, **changes: Any) -> Path:
    """Its ``ensemble.yaml``: one member, tiles of 64, one channel; `changes` replace entries."""
    folder.mkdir(parents=True, exist_ok=True)
    member = scripted(Uphill(reach, most), folder / "uphill.pt")
    content: dict[str, Any] = {
        "format": "chorus-ensemble/2",
        "name": "uphill",
        "classes": [{"name": "background"}, {"name": "object"}],
        "input": {"channels": ["probability"], "normalisation": {"kind": "none"}},
        "tile": 64,
        "flows": True,
        "augmentations": ["identity", "hflip"],
        "members": [member],
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content | changes))
    return folder / "ensemble.yaml"
