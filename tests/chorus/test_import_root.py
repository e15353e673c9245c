"""Everything is imported and installed as ``chorus``: other people's files of equal names disturb nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.paths import ROOT


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A folder of somebody who has a pipeline, a cluster and a server, too."""
    folder = tmp_path / "stranger"
    (folder / "serving").mkdir(parents=True)
    for name in ("pipeline.py", "cluster.py", "serving/__init__.py"):
        (folder / name).write_text(f"raise RuntimeError('{name} of somebody else was imported')\n")
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


def test_all_names_of_the_face_are_imported_in_a_strangers_folder(stranger: Path) -> None:
    code = "import chorus, chorus.serving.app, chorus.cluster.regions.ray_executor"
    done = python(stranger, "-c", f"{code}\nfor name in chorus.__all__: getattr(chorus, name)")
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
def test_a_run_on_ray_ends_well_in_a_strangers_folder(stranger: Path) -> None:
    write_image(stranger / "images" / "one.ome.zarr", pixels((100, 90)))
    write_light_ensemble(stranger / "ensemble", width=4)
    program = ["-m", "chorus.cli", "predict", "images", "-e", "ensemble", "-o", "out", "--executor", "ray"]
    done = python(stranger, *program, "--actors", "1", "--no-report")
    assert done.returncode == 0, done.stderr
    assert (stranger / "out" / "scores.parquet").exists()


def test_a_wheel_holds_one_package(tmp_path: Path) -> None:
    """With the files of the three floors, not links to them."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("chorus", "cluster", "pipeline", "serving"):
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    done = python(tree, "-c", "from setuptools.build_meta import build_wheel; print(build_wheel('.'))")
    assert done.returncode == 0, done.stderr
    names = zipfile.ZipFile(tree / done.stdout.split()[-1]).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"chorus"}
    for folder in ("cluster", "pipeline", "serving"):
        files = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}
        assert {f"chorus/{file}" for file in files} <= set(names)
