"""The notebooks of the docs run from their first cell to their last, and are stored with what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.paths import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def shown(notebook: Any) -> list[list[tuple[str, ...]]]:
    """What each code cell shows: text, or kinds of media; warnings on stderr depend on what is installed."""
    kept = [[o for o in cell.outputs if o.get("name") != "stderr"] for cell in notebook.cells if "outputs" in cell]
    return [[(o.output_type, *sorted(o.get("data", {}))) for o in outputs] for outputs in kept]


def test_there_are_two_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == ["1-own-image.ipynb", "2-plate.ipynb"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_stored(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that fails raises here."""
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    for cell in fresh.cells:
        if "outputs" in cell:
            cell.outputs = []
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    resources = {"metadata": {"path": tmp_path}}
    NotebookClient(fresh, timeout=500, kernel_name="python3", coalesce_streams=True, resources=resources).execute()
    assert shown(fresh) == shown(stored)
    assert any("image/png" in kinds for cell in shown(stored) for kinds in cell)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_notebook_is_small_valid_and_tells_nothing_of_the_machine(path: Path) -> None:
    text = path.read_text()
    assert len(text) < 300_000
    nbformat.validate(nbformat.read(path, as_version=4))
    for private in ("/home/", "/root/", "site-packages"):
        assert private not in text
