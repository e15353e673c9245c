"""A package of somebody's networks, as members of the kind ``python`` name them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PACKAGE = """
import os
import torch

open(os.environ["IMPORTED"], "w").close()

class Nets:
    @staticmethod
    def several(width, axes=2):
        torch.manual_seed(width)
        return Net(width, axes)

class Net(torch.nn.Module):
    def __init__(self, width, axes):
        super().__init__()
        conv = (torch.nn.Conv2d, torch.nn.Conv3d)[axes - 2]
        self.first, self.second = conv(1, width, 3, padding=1), conv(width, 3, 1)
    def forward(self, tiles):
        values = self.second(torch.relu(self.first(tiles)))
        return {"rays": values * 2, "classes": values}

number = 3

def fails():
    raise KeyError("no such thing")

def nothing():
    return "a network"
"""


@contextmanager
def installed(folder: Path) -> Iterator[Path]:
    """The package `research_nets` on the path; yields a file that is there once the package has been imported."""
    (folder / "site").mkdir()
    (folder / "site" / "research_nets.py").write_text(_PACKAGE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(folder / "site")
        monkeypatch.setenv("IMPORTED", str(folder / "imported"))
        yield folder / "imported"
    sys.modules.pop("research_nets", None)
