"""What cannot use an ensemble of volumes yet says so in one sentence, with exit code 2, before anything is done."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import pytest

import chorus as api
from chorus.pipeline.errors import RefusedError
from chorus.serving.contract.settings import ServeSettings
from chorus.serving.prediction.hosting import Hosted
from tests.support.making import pixels, write_image, write_light_ensemble, write_volume_ensemble
from tests.support.running import Chorus
from tests.support.runs import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of volumes, one of planes, and a volume that is a reference image, with labels."""
    folder = tmp_path_factory.mktemp("refused")
    write_volume_ensemble(folder / "volumes")
    write_light_ensemble(folder / "planes", members=2, augmentations=["identity"])
    image = pixels((3, 70, 60))
    write_image(folder / "cells.ome.zarr", image, "zyx")
    write_image(folder / "cells.ome.zarr" / "labels" / "nuclei", (image > 500).astype("uint8"), "zyx")
    return folder


@pytest.fixture(scope="module")
def planes(folder: Path) -> Path:
    """Results of the ensemble of planes, from which objects are made by a second ensemble."""
    run(folder / "cells.ome.zarr", folder / "planes", folder / "done", save=["probability", "uncertainty"])
    return folder / "done"


def sentence(ensemble: Path, what: str) -> str:
    return f"{ensemble}/ensemble.yaml: its members take volumes (input.axes: zyx), which {what} cannot use yet"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["ensemble", "sentinel", "volumes", "cells.ome.zarr", "--label", "nuclei"], "`chorus ensemble sentinel`"),
        (["ensemble", "effort", "volumes", "cells.ome.zarr"], "adaptive effort"),
        (["ensemble", "pack", "volumes", "-o", "packed.zip"], "a BioImage.IO package of Chorus"),
        (["ensemble", "pack", "volumes", "--whole", "-o", "packed.zip"], "a BioImage.IO package of Chorus"),
        (["serve", "-e", "volumes"], "`chorus serve`"),
        (["serve", "-e", "planes", "-e", "volumes"], "`chorus serve`"),
    ],
)
def test_a_command_that_is_of_planes_refuses_an_ensemble_of_volumes(
    arguments: list[str], what: str, chorus: Chorus, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("chorus.cluster.runtime.session.start", None)  # nothing of Ray begins
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    words = [str(folder / word) if word in ("volumes", "planes") else word for word in arguments]
    result = chorus(*words)
    assert result.code == 2
    assert result.err == f"chorus: {sentence(folder / 'volumes', what)}\n"
    assert result.out == ""
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_packing_refuses_it_also_without_the_packages_of_bioimageio(
    chorus: Chorus, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = builtins.__import__

    def without(name: str, *arguments: object, **named: object) -> object:
        if name.startswith("bioimageio"):
            raise ImportError(name)
        return usual(name, *arguments, **named)  # type: ignore[arg-type]

    for name in [name for name in sys.modules if name.split(".")[0] == "bioimageio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    result = chorus("ensemble", "pack", folder / "volumes", "-o", folder / "packed.zip")
    assert (result.code, result.err) == (
        2,
        f"chorus: {sentence(folder / 'volumes', 'a BioImage.IO package of Chorus')}\n",
    )


def test_flows_from_refuses_a_second_ensemble_of_volumes(chorus: Chorus, folder: Path, planes: Path) -> None:
    result = chorus("objects", planes, "--flows-from", folder / "volumes", "--executor", "serial")
    assert (result.code, result.err) == (2, f"chorus: {sentence(folder / 'volumes', '--flows-from')}\n")
    assert not (planes / "objects.json").exists()
    assert not (planes / "work" / "objects").exists()


def test_an_ensemble_of_volumes_cannot_be_loaded_for_arrays(folder: Path) -> None:
    with pytest.raises(RefusedError) as refused:
        api.load(folder / "volumes", device="cpu")
    assert str(refused.value) == sentence(folder / "volumes", "`segment`")


def test_a_replica_that_is_to_load_an_ensemble_of_volumes_refuses_it(folder: Path) -> None:
    url = str(folder / "volumes")
    with pytest.raises(RefusedError) as refused:
        Hosted.load("volumes", url, ServeSettings(ensembles={"volumes": url}))
    assert str(refused.value) == sentence(folder / "volumes", "`chorus serve`")
