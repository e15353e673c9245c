"""The command line in this process, for all tests of the face."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.reference.reference import calibrate_from
from chorus.pipeline.reference.storage import write_reference
from tests.support.making import write_light_ensemble
from tests.support.running import Chorus, command_line
from tests.support.simulated import simulated


@pytest.fixture(scope="session", autouse=True)
def one_tree_of_commands() -> Iterator[None]:
    """Typer makes all commands with all options anew for each call: 0.2 s, which a process of a user spends once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_command", cache(typer.main.get_command))
        yield


@pytest.fixture
def chorus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chorus:
    """``chorus`` with arguments, see `command_line`."""
    return command_line(monkeypatch, capsys)


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    """An ensemble with a reference set of 60 images."""
    path = write_light_ensemble(tmp_path / "ensemble", members=1)
    tables = simulated(60, seed=0)
    found = calibrate_from(tables.scores, tables.evaluation, tables.features, ensemble=read_ensemble(str(path)).hash)
    write_reference(str(path), found)
    return path
