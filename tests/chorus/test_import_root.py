"""Everything is imported and installed as ``chorus``: other people's files of equal names disturb nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
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


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What packages are built of, without weights, in a folder of its own."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("chorus", "cluster", "pipeline", "serving"):
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    for name in (
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
    ):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "requirements", tree / "requirements")
    (tree / ".github").mkdir()
    shutil.copy(ROOT / ".github" / "check_wheel.py", tree / ".github")
    return tree


def build(tree: Path, kind: str) -> Path:
    """Build a wheel or an sdist of the tree, as `python -m build` does."""
    done = python(tree, "-c", f"from setuptools.build_meta import build_{kind} as build; print(build('.'))")
    assert done.returncode == 0, done.stderr
    return tree / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    return build(tree, "wheel")


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_a_wheel_holds_one_package_with_the_files_of_all_floors(tree: Path, wheel: Path) -> None:
    """With the files of the three floors, not links to them."""
    done = python(tree, ".github/check_wheel.py", str(wheel), "--version", "0.1.0")
    assert done.returncode == 0, done.stdout + done.stderr
    names = set(contents(wheel))
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"chorus"}
    for folder in ("cluster", "pipeline", "serving"):
        files = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}
        assert {f"chorus/{file}" for file in files} <= names


def test_the_check_of_a_wheel_notices_what_is_wrong(tree: Path, wheel: Path, tmp_path: Path) -> None:
    bad = tmp_path / wheel.name
    with zipfile.ZipFile(bad, "w") as file:
        for name, content in contents(wheel).items():
            if name != "chorus/pipeline/core/geometry.py":
                file.writestr(name, content)
        file.writestr("pipeline/__init__.py", "")
    done = python(tree, ".github/check_wheel.py", str(bad), "--version", "7.0")
    assert done.returncode == 1
    for fault in ("not 7.0", "it installs chorus, pipeline", "1 files are missing, the first is chorus/pipeline/core/"):
        assert fault in done.stdout


def test_a_wheel_from_the_sdist_is_that_from_the_tree(tree: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(tree, "sdist")) as sdist:
        assert not [member.name for member in sdist if member.issym() or member.islnk()]
        sdist.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert (unpacked / "CITATION.cff").exists()
    # Where links were, both have the same files: nothing is missing, and nothing is there twice.
    assert contents(build(unpacked, "wheel")) == contents(wheel)
