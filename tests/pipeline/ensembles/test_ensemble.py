"""``ensemble.yaml``: what is wrong is refused in one sentence with file and field; the hash names the content."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from tests.support.making import write_ensemble


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_ensemble(folder, members=2, tile=32)
    return folder


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def change(folder: Path, path: str, value: Any) -> None:
    """Set the field at `path`, such as ``members.0.kind``; DELETE removes it."""
    file = folder / "ensemble.yaml"
    content = yaml.safe_load(file.read_text())
    *above, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    at = content
    for part in above:
        at = at[part]
    if value is DELETE:
        del at[last]
    else:
        at[last] = value
    file.write_text(yaml.safe_dump(content))


DELETE = object()


def refusal(folder: Path, *names: str) -> None:
    with pytest.raises(RefusedError) as caught:
        read_ensemble(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    for name in names:
        assert name in message, message


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("format", "chorus-ensemble/x", "field format"),
        ("format", "chorus-ensemble/0", "field format"),
        ("format", "chorus-ensemble/99", "written by a newer Chorus"),
        ("format", "chorus-ensemble/1", "field format"),
        ("format", DELETE, "field format"),
        ("members", [], "field members"),
        (
            "members.0.kind",
            "onyx",
            "field members.0: its kind is missing or none of those that are installed (bioimageio, ",
        ),
        ("members.0.weights", DELETE, "weights"),
        ("members.1.architecure", "Unet", "architecure"),
        ("tile", 8, "field tile"),
        ("tile", "big", "field tile"),
        ("overlap", 1.0, "field overlap"),
        ("augmentations", ["identity", "rot45"], "field augmentations"),
        ("augmentations", ["identity", "identity"], "field augmentations"),
        ("augmentations", [], "field augmentations"),
        ("classes", [{"name": "background"}], "field classes"),
        ("classes.1.color", "green", "field classes.1.color"),
        ("classes.1.name", "background", "classes"),
        ("activation", "relu", "field activation"),
        ("input.channels", [], "field input.channels"),
        ("input.pixel_size_um", -1, "field input.pixel_size_um"),
        ("input.normalisation.kind", "zscore", "input.normalisation"),
        ("input.normalisation.std", [0.0], "input.normalisation"),
        ("colour", "red", "field colour"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(field: str, value: Any, said: str, bundle: Path) -> None:
    change(bundle, field, value)
    refusal(bundle, said, "ensemble.yaml")


@pytest.mark.parametrize("text", ["{", "a: [1", "\tx: 1", "--- a\n--- b"])
def test_what_is_not_yaml_is_refused(text: str, bundle: Path) -> None:
    (bundle / "ensemble.yaml").write_text(text)
    refusal(bundle, "ensemble.yaml")


@pytest.mark.parametrize("data", [b"", b"just words", b"- a\n- b", b"\xff\xfe\x00"])
def test_yaml_of_something_else_is_refused(data: bytes, bundle: Path) -> None:
    (bundle / "ensemble.yaml").write_bytes(data)
    refusal(bundle, "ensemble.yaml")


def test_yaml_runs_no_code(bundle: Path, tmp_path: Path) -> None:
    (bundle / "ensemble.yaml").write_text(f"!!python/object/apply:pathlib.Path.touch [{tmp_path}/sprung]")
    refusal(bundle, "not YAML")
    assert not (tmp_path / "sprung").exists()


def test_a_missing_ensemble_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "nowhere", "not found")


def test_folder_and_file_are_the_same_ensemble(bundle: Path) -> None:
    assert (
        read_ensemble(str(bundle)) == read_ensemble(str(bundle / "ensemble.yaml")) == read_ensemble(f"file://{bundle}")
    )


def test_the_hash_changes_with_the_content_and_not_with_the_place(bundle: Path, made: Path) -> None:
    original = read_ensemble(str(made)).hash
    assert read_ensemble(str(bundle)).hash == original
    text = (bundle / "ensemble.yaml").read_text()
    (bundle / "ensemble.yaml").write_text("# a comment\n" + yaml.safe_dump(yaml.safe_load(text), sort_keys=True))
    assert read_ensemble(str(bundle)).hash == original
    seen = {original}
    digest = "0" * 64
    for field, value in (("tile", 64), ("members.0.sha256", digest), ("input.normalisation.mean", [1.0])):
        change(bundle, field, value)
        seen.add(read_ensemble(str(bundle)).hash)
    assert len(seen) == 4


def test_following_lengths_of_flows_is_of_the_hash_and_following_directions_is_as_before(tmp_path: Path) -> None:
    path = write_ensemble(tmp_path / "e", flows=True)
    original = read_ensemble(str(path))
    content = yaml.safe_load(path.read_text())
    content.pop("flows", None)
    seen = []
    for lengths in (False, True):
        content["outputs"] = [{"role": "classes"}, {"role": "flows", "lengths": lengths}]
        path.write_text(yaml.safe_dump(content))
        read = read_ensemble(str(path))
        assert read.spec.flow_lengths is lengths
        seen.append(read.hash)
    assert seen[0] == original.hash != seen[1]


def test_an_ensemble_is_read_from_other_storage(bundle: Path) -> None:
    import torch

    for file in bundle.iterdir():
        storage.write_bytes(f"memory://ensembles/one/{file.name}", file.read_bytes())
    ensemble = read_ensemble("memory://ensembles/one")
    assert ensemble.hash == read_ensemble(str(bundle)).hash
    ensemble.load_member(1, torch.device("cpu"))


def test_multilabel_is_several_classes_with_a_sigmoid(tmp_path: Path) -> None:
    binary = read_ensemble(str(write_ensemble(tmp_path / "b", members=1, activation="sigmoid")))
    assert (binary.multilabel, binary.outputs.channels, binary.probability_names) == (
        False,
        1,
        ("background", "class-1"),
    )
    several = read_ensemble(str(write_ensemble(tmp_path / "s", members=1, classes=3, activation="sigmoid")))
    assert (several.multilabel, several.outputs.channels, several.probability_names) == (
        True,
        2,
        ("class-1", "class-2"),
    )
