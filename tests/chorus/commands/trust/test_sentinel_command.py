"""``chorus ensemble sentinel``, and what other commands say of sentinels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from chorus.pipeline.bioimageio.export_documents import readme
from chorus.pipeline.ensembles.ensemble import read_ensemble
from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.running import Chorus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An ensemble, and an image whose labels are its bright half."""
    image = pixels((70, 60))
    write_image(tmp_path / "cells.ome.zarr", image)
    write_image(tmp_path / "cells.ome.zarr" / "labels" / "nuclei", (image > 500).astype(np.uint8))
    write_light_ensemble(tmp_path / "ensemble", members=2, augmentations=["identity"])
    return tmp_path


def add(chorus: Chorus, folder: Path, *more: object) -> None:
    result = chorus("ensemble", "sentinel", folder / "ensemble", folder / "cells.ome.zarr", "--label", "nuclei", *more)
    assert result.code == 0, result.err


def test_a_sentinel_is_copied_listed_and_shown(chorus: Chorus, folder: Path) -> None:
    before = read_ensemble(str(folder / "ensemble")).hash
    add(chorus, folder)
    (entry,) = yaml.safe_load((folder / "ensemble" / "ensemble.yaml").read_text())["sentinels"]
    assert entry["image"] == "sentinels/cells.ome.zarr"
    assert entry["measured"]["augmentations"] == ["identity"]
    assert (folder / "ensemble" / "sentinels" / "cells.ome.zarr" / "labels" / "nuclei" / "zarr.json").exists()
    assert read_ensemble(str(folder / "ensemble")).hash == before
    shown = chorus("ensemble", "show", folder / "ensemble").out
    assert "sentinels, on which every run is tried" in shown
    assert f"nucleus {entry['dice']['nucleus']:.3g}" in shown
    checked = chorus("ensemble", "check", folder / "ensemble")
    assert f"sentinel cells: Dice nucleus {entry['dice']['nucleus']:.4f}, as stored" in checked.out


def test_the_same_name_is_replaced_and_another_is_added(chorus: Chorus, folder: Path) -> None:
    add(chorus, folder)
    add(chorus, folder, "--tolerance", 0.05)
    add(chorus, folder, "--name", "twice")
    entries = yaml.safe_load((folder / "ensemble" / "ensemble.yaml").read_text())["sentinels"]
    assert [(one["name"], one["tolerance"], one["image"]) for one in entries] == [
        ("cells", 0.05, "sentinels/cells.ome.zarr"),
        ("twice", 0.01, "sentinels/twice.ome.zarr"),
    ]


def test_check_and_predict_refuse_with_code_2_and_one_sentence(chorus: Chorus, folder: Path) -> None:
    add(chorus, folder)
    path = folder / "ensemble" / "ensemble.yaml"
    content = yaml.safe_load(path.read_text())
    content["sentinels"][0]["dice"]["nucleus"] = 1.0
    path.write_text(yaml.safe_dump(content))
    run = ["predict", folder / "cells.ome.zarr", "-e", folder / "ensemble", "-o", folder / "out", "--no-report"]
    run += ["--executor", "serial", "--region", 64, "--chunk", 32, "--save", "none"]
    for command in (["ensemble", "check", folder / "ensemble"], run):
        result = chorus(*command)
        assert result.code == 2
        said = [line for line in result.err.splitlines() if line.startswith("chorus: ")]
        assert len(said) == 1
        assert "sentinel cells: Dice of nucleus is" in said[0]
    assert chorus(*run, "--sentinels", "warn").code == 0
    assert json.loads((folder / "out" / "run.json").read_text())["run"]["sentinels"] == "warn"
    assert chorus(*run, "--sentinels", "never").code == 2


def test_members_that_change_ask_for_new_measurements(chorus: Chorus, folder: Path) -> None:
    add(chorus, folder)
    result = chorus("ensemble", "remove", folder / "ensemble", 1)
    assert result.code == 0
    assert "the Dice of sentinels was measured before this change (cells)" in result.err
    assert len(read_ensemble(str(folder / "ensemble")).spec.sentinels) == 1
    again = chorus(
        "ensemble", "sentinel", folder / "ensemble", folder / "ensemble/sentinels/cells.ome.zarr", "--label", "nuclei"
    )
    assert again.code == 0, again.err
    assert chorus("ensemble", "check", folder / "ensemble").code == 0


def test_a_package_says_which_sentinels_the_ensemble_has(chorus: Chorus, folder: Path) -> None:
    add(chorus, folder)
    ensemble = read_ensemble(str(folder / "ensemble"))
    assert "- sentinel cells (in the ensemble, not in this package): Dice of nucleus" in readme(
        ensemble, ensemble.spec.about, "title"
    )
