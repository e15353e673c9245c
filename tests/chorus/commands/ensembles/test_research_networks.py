"""Networks that code of an installed package builds, from ``ensemble add`` to ``predict``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.making import pixels, write_image
from tests.support.research import installed
from tests.support.running import Chorus


@pytest.fixture
def imported(tmp_path: Path) -> Iterator[Path]:
    with installed(tmp_path) as file:
        yield file


def test_networks_are_added_and_run_by_commands(chorus: Chorus, imported: Path, tmp_path: Path) -> None:
    import research_nets

    torch.save(research_nets.Nets.several(4).state_dict(), tmp_path / "m.pt")
    how = ["--factory", "research_nets:Nets.several", "--option", "width=4", "--class", "a", "--class", "b", "--class"]
    new = [*how, "c", "--channel", "dna", "--tile", "32", "--activation", "softmax", "--normalisation", "none"]
    refused = chorus("ensemble", "add", tmp_path / "e", tmp_path / "m.pt", *new)
    assert refused.code == 2
    assert "--trust-code" in refused.err
    assert not (tmp_path / "e" / "ensemble.yaml").exists()
    added = chorus("ensemble", "add", tmp_path / "e", tmp_path / "m.pt", *new, "--trust-code", "--json")
    assert added.code == 0, added.err
    assert json.loads(added.out)["members"][0]["factory"] == "research_nets:Nets.several"
    source = write_image(tmp_path / "i.ome.zarr", pixels((50, 70)))
    more = ["-e", tmp_path / "e", "--executor", "serial"]
    assert chorus("predict", source, *more, "--out", tmp_path / "out").code == 2
    ran = chorus("predict", source, *more, "--out", tmp_path / "out", "--trust-code")
    assert ran.code == 0, ran.err
