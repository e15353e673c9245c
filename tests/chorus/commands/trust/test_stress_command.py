"""`chorus stress`: copies of images that are spoilt, run like any images, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr

from chorus.cluster.commands import stress_image
from chorus.pipeline.reference.words import NO_REFERENCE
from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.running import Chorus

SERIAL = ["--executor", "serial"]


@pytest.fixture
def folder(tmp_path: Path, chorus: Chorus) -> Path:
    """Twelve images whose truth is what two members say, but for some rows; and a reference set of them."""
    (tmp_path / "truth").mkdir()
    (tmp_path / "images").mkdir()
    for seed in range(12):
        image = pixels((48, 40), seed=seed)
        write_image(tmp_path / "zarr" / f"{seed:02d}.ome.zarr", image)
        tifffile.imwrite(tmp_path / "images" / f"{seed:02d}.tif", image)
    write_light_ensemble(tmp_path / "ensemble", members=2, augmentations=["identity"])
    sources = [tmp_path / "zarr", "-e", tmp_path / "ensemble"]
    chorus("predict", *sources, "-o", tmp_path / "out", "--no-report", *SERIAL)
    for index in range(12):
        place = tmp_path / "out" / "images" / f"{index:02d}.ome.zarr" / "labels/semantic/s0"
        truth = np.array(zarr.open_array(place, mode="r")[:])
        truth[: 2 * index] = 1 - truth[: 2 * index]
        tifffile.imwrite(tmp_path / "truth" / f"{index:02d}.tif", truth)
    made = chorus("calibrate", *sources, "-o", tmp_path / "out", "--truth", tmp_path / "truth", *SERIAL)
    assert made.code == 0, made.err
    return tmp_path


def stress(chorus: Chorus, folder: Path, *more: object) -> tuple[int, str, str]:
    for name in ("03", "07"):
        for kind in ("images", "truth"):
            place = folder / "some" / kind
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}.tif").write_bytes((folder / kind / f"{name}.tif").read_bytes())
    some = folder / "some"
    where = [some / "images", "--truth", some / "truth", "-e", folder / "ensemble", "-o", folder / "stress"]
    result = chorus("stress", *where, *SERIAL, *more)
    return result.code, result.out, result.err


def test_copies_are_judged_beside_the_images_as_they_are(chorus: Chorus, folder: Path) -> None:
    code, out, err = stress(chorus, folder, "--only", "noise,finer_pixels,channels")
    assert code == 0, err
    assert "Gaussian noise" in out
    assert "promise  " in err
    table = pd.read_parquet(folder / "stress" / "stress.parquet")
    assert len(table) == 2 * (1 + 5 + 5)  # the channels of images of one are not mixed
    clean = table[table["corruption"] == "as it is"].set_index("image")
    evaluation = pd.read_parquet(folder / "out" / "evaluation.parquet").set_index("name")
    for name in ("03", "07"):
        assert clean.loc[name, "dice"] == pytest.approx(evaluation.loc[f"{name}.ome.zarr", "dice"])
    content = json.loads((folder / "stress" / "stress.json").read_text())
    assert content["outcome"] == "complete"
    assert content["fallen"] == int((table["fall"] > 0.1).sum())
    assert [row["level"] for row in content["summary"]] == [0, *range(1, 6), *range(1, 6)]
    assert (folder / "stress" / "stress.svg").read_text().count("Gaussian noise") == 1
    copy = zarr.open_array(folder / "stress" / "images" / "03-finer-pixels-5.ome.zarr" / "s0", mode="r")
    assert copy.shape[-2:] == (96, 80)


def test_a_test_that_was_cut_short_goes_on_with_the_same_bytes(
    chorus: Chorus, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, calls = stress_image.corrupted, [0]

    def stopping(*arguments: object) -> object:
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        return function(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(stress_image, "corrupted", stopping)
    assert stress(chorus, folder, "--only", "noise")[0] == 3
    assert stress(chorus, folder, "--only", "noise")[0] == 0
    assert calls[0] == 5 + 3 + 5  # those of the first image are kept
    kept = (folder / "stress" / "stress.parquet").read_bytes()
    assert stress(chorus, folder, "--only", "noise")[0] == 0
    assert (folder / "stress" / "stress.parquet").read_bytes() == kept
    assert calls[0] == 13
    assert stress(chorus, folder, "--only", "gamma")[0] == 0  # others take their place
    assert set(pd.read_parquet(folder / "stress" / "stress.parquet")["corruption"]) == {"as it is", "gamma"}


def test_without_a_reference_set_it_says_so(chorus: Chorus, folder: Path) -> None:
    (folder / "ensemble" / "reference.json").unlink()
    code, out, err = stress(chorus, folder, "--only", "gain")
    assert code == 0
    assert f"note     {NO_REFERENCE}" in err
    assert "flagged" not in out


def test_what_makes_no_sense_is_refused(chorus: Chorus, folder: Path) -> None:
    code, _, err = stress(chorus, folder, "--only", "rust")
    assert code == 2
    assert "--only rust: is no corruption; choose out of noise, photons" in err
    assert not (folder / "stress").exists()
    where = [folder / "zarr", "-e", folder / "ensemble", "-o", folder / "stress"]
    result = chorus("stress", *where, *SERIAL)
    assert result.code == 2
    assert "give --truth FOLDER, or --truth-label NAME" in result.err
    for kind in ("images", "truth"):
        for name in ("a-b", "a/b"):
            place = folder / "twice" / kind / f"{name}.tif"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((folder / kind / "03.tif").read_bytes())
    where = [folder / "twice/images", "--truth", folder / "twice/truth", "-e", folder / "ensemble"]
    result = chorus("stress", *where, "-o", folder / "stress", *SERIAL)
    assert result.code == 2
    assert "several images would have copies called a-b-as-it-is" in result.err
