"""``chorus models test`` and ``chorus ensemble pack``: what they print, and their exit codes."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.making import write_light_ensemble
from tests.support.running import Chorus

pytest.importorskip("bioimageio.core")


GIVEN = ("--description", "Nuclei.", "--licence", "MIT", "--author", "A. Tester", "--cite-text", "A paper")


@pytest.fixture
def package(tmp_path: Path, chorus: Chorus) -> Path:
    """A small TorchScript network, packed."""
    ensemble = write_light_ensemble(tmp_path / "ensemble", members=2)
    done = chorus(
        "ensemble", "pack", ensemble, "--out", tmp_path / "out", "--member", 1, *GIVEN, "--cite-doi", "10.1234/a"
    )
    assert done.code == 0, done.err
    return tmp_path / "out" / "light-member-1.zip"


def changed(package: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of the package with another file `name`."""
    other = package.with_name("changed.zip")
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(other, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            target.writestr(info.filename, change(data) if info.filename == name else data)
    return other


def test_a_package_is_packed_from_options_and_passes_its_test(package: Path, chorus: Chorus) -> None:
    done = chorus("models", "test", package)
    assert done.code == 0
    assert done.out.count("passed") == 2
    machine = json.loads(chorus("models", "test", package, "--json").out)
    (one,) = machine["formats"]
    assert (machine["passed"], one["format"], one["status"]) == (True, "torchscript", "passed")
    assert (one["core"]["absolute"], one["chorus"]["absolute"]) == pytest.approx((0, 0), abs=1e-5)
    assert one["tolerance"] == {"relative": 1e-3, "absolute": 1e-3, "mismatched": 100}


def test_a_package_whose_output_is_another_fails_with_exit_code_1(package: Path, chorus: Chorus) -> None:
    def other(data: bytes) -> bytes:
        # The array follows the header of 128 bytes; its hash in the rdf goes too.
        array = np.frombuffer(data[128:], np.float32)
        return data[:128] + (1 - array).astype(np.float32).tobytes()

    broken = changed(package, "test-prediction.npy", other)
    unhashed = changed(broken.rename(broken.with_name("hashed.zip")), "bioimageio.yaml", without_hashes)
    done = chorus("models", "test", unhashed)
    assert done.code == 1
    assert "torchscript, Chorus: " in done.out
    assert "of a million elements differ by more than the tolerance" in done.out


def without_hashes(data: bytes) -> bytes:
    return b"\n".join(line for line in data.split(b"\n") if not line.strip().startswith(b"sha256:"))


def test_code_of_a_package_is_skipped_unless_it_is_trusted(package: Path, chorus: Chorus) -> None:
    def own_code(data: bytes) -> bytes:
        text = without_hashes(data).decode()
        return text.replace(
            "torchscript:", "pytorch_state_dict:\n    architecture: {callable: system, import_from: os}"
        ).encode()

    done = chorus("models", "test", changed(package, "bioimageio.yaml", own_code))
    assert done.code == 0
    assert done.out.count("skipped") == 2
    assert "its architecture is of os, which is none of" in done.out


@pytest.mark.parametrize("broken", ["nowhere.zip", "text.zip"])
def test_what_is_no_package_is_refused_in_a_sentence(tmp_path: Path, chorus: Chorus, broken: str) -> None:
    (tmp_path / "text.zip").write_text("not a zip")
    done = chorus("models", "test", tmp_path / broken)
    assert done.code == 2
    assert done.err.startswith("chorus: ")
    assert broken in done.err


def test_a_format_that_is_not_there_is_refused(package: Path, chorus: Chorus) -> None:
    done = chorus("models", "test", package, "--format", "onnx")
    assert (done.code, "has no onnx weights; it has torchscript" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "about lacks description, licence, authors, cite (each with doi or url)"),
        (("--whole", "--member", 0, *GIVEN), "--whole and --member: give one of the two"),
        (("--member", 7), "--member 7"),
        (GIVEN, "--cite-text and --cite-doi: give both, or neither"),
    ],
)
def test_what_cannot_be_packed_is_refused(tmp_path: Path, chorus: Chorus, options: Any, message: str) -> None:
    ensemble = write_light_ensemble(tmp_path / "ensemble", members=1)
    done = chorus("ensemble", "pack", ensemble, "--out", tmp_path / "out", *options)
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize("name", ["unet2d_nuclei_broad", "unet2d_multi_tensor"])
def test_real_packages_pass_in_bioimageio_core_and_in_chorus(shared_data: Path, chorus: Chorus, name: str) -> None:
    done = chorus("models", "test", shared_data / "models" / name, "--format", "torchscript", "--json")
    (one,) = json.loads(done.out)["formats"]
    assert (done.code, one["core"]["status"], one["chorus"]["status"]) == (0, "passed", "passed")
    assert one["chorus"]["absolute"] < 1e-5


@pytest.mark.parametrize("name", ["unet2d_fixed_shape", "unet2d_diff_output_shape"])
def test_a_package_that_lacks_its_code_is_refused_by_its_name(shared_data: Path, chorus: Chorus, name: str) -> None:
    done = chorus("models", "test", shared_data / "models" / name)
    assert done.code == 2
    assert "lacks a file that it names (weights.pytorch_state_dict.architecture.source" in done.err
    assert "unet.py" in done.err
