"""The truth of one image: from files of any kind, in blocks, with a sentence for what is unusual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from chorus.pipeline.consensus import writer as truth_output
from chorus.pipeline.consensus.annotations import DrawnImage, find_drawings
from chorus.pipeline.consensus.ground_truth import ImageTruth, TruthSettings, estimate_truth
from chorus.pipeline.consensus.staple import staple
from chorus.pipeline.consensus.vote_patterns import VotePatterns
from chorus.pipeline.errors import ImageError, RefusedError
from chorus.pipeline.io.formats.registry import open_rasters
from chorus.pipeline.io.sources.discovery import find_images
from tests.support.making import write_image

SHAPE = (50, 70)


def square(y: int, x: int, value: int = 255, edge: int = 20) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[y : y + edge, x : x + edge] = value
    return mask


def write(root: Path, **experts: np.ndarray) -> DrawnImage:
    """Drawings of one image ``a``; returns it as it is found again."""
    for expert, labels in experts.items():
        (root / expert).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(root / expert / "a.tif", labels, photometric="rgb" if labels.ndim == 3 else "minisblack")
    (image,) = find_drawings(str(root)).images
    return image


def run(root: Path, settings: dict[str, Any] | None = None, **experts: np.ndarray) -> tuple[ImageTruth, np.ndarray]:
    truth = estimate_truth(write(root / "in", **experts), str(root / "out"), TruthSettings(**(settings or {})))
    return truth, tifffile.imread(root / "out" / truth.file)


def test_experts_images_and_who_misses_which_are_found(tmp_path: Path) -> None:
    for path in ("x/one.png", "x/sub/two.tif", "y/one.tif", "est_GT/one.tif", ".hidden/one.tif"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(square(1, 1)).save(tmp_path / path)
    found = find_drawings(str(tmp_path), ["x", "[y-z]"])
    assert (found.experts, found.left_out) == (("x", "y"), ("est_GT",))
    assert [(image.name, image.missing) for image in found.images] == [("one", ()), ("sub/two", ("y",))]
    assert [drawing.expert for drawing in found.images[0].drawings] == ["x", "y"]
    assert find_drawings(str(tmp_path)).experts == ("est_GT", "x", "y")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"patterns": ["expert_*"]}, r"--expert expert_\* is none of its folders \(x\)"),
        ({}, "holds no file of TIFF, Aperio SVS, PNG, JPEG"),
    ],
)
def test_what_cannot_be_found_is_refused(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(RefusedError, match=said):
        find_drawings(str(tmp_path), **arguments)


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="not found"):
        find_drawings(str(tmp_path / "none"))
    with pytest.raises(RefusedError, match="holds no folders"):
        find_drawings(str(tmp_path))


@pytest.mark.parametrize("method", ["staple", "vote"])
def test_masks_of_any_foreground_value_give_labels_of_one(tmp_path: Path, method: str) -> None:
    drawn = {"x": square(5, 5), "y": square(5, 6, value=1), "z": square(5, 5, value=7)}
    truth, labels = run(tmp_path, {"method": method}, **drawn)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, square(5, 5, value=1))
    assert (truth.pixels, truth.foreground, truth.notes) == (3500, 400 / 3500, [])
    assert [row.dice for row in truth.experts] == pytest.approx([1.0, 0.95, 1.0])
    assert truth.experts[1].sensitivity == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("settings", "drawings", "note", "pixels"),
    [
        ({}, [square(5, 5)], "only e0 drew it", 400),
        ({}, [square(5, 5) * 0] * 3, "no expert drew anything; the truth is empty", 0),
        ({}, [square(5, 5) | 255] * 3, "all experts drew the same", 3500),
        ({}, [square(5, 5)] * 2, "all experts drew the same", 400),
        ({"method": "intersection"}, [square(0, 0), square(25, 40)], "the experts agree on nothing", 0),
        ({"instances": True}, [square(5, 5), square(25, 40)], "the experts agree on nothing", 0),
        ({"classes": 4}, [square(5, 5) * 0] * 3, "no expert drew anything", 0),
    ],
)
def test_what_is_degenerate_has_a_result_and_a_sentence(
    tmp_path: Path, settings: dict[str, Any], drawings: list[np.ndarray], note: str, pixels: int
) -> None:
    truth, labels = run(tmp_path, settings, **{f"e{index}": one for index, one in enumerate(drawings)})
    assert note in truth.notes[0]
    assert np.count_nonzero(labels) == pixels


def test_what_does_not_go_together_names_the_file(tmp_path: Path) -> None:
    def refused(said: str, settings: dict[str, Any] | None = None, **experts: np.ndarray) -> None:
        with pytest.raises(ImageError, match=said):
            run(tmp_path, settings, **experts)

    good = square(5, 5, value=2)
    refused(r"y/a\.tif: is 1x1x20x20 \(t, z, y, x\), but .*x/a\.tif is 1x1x50x70", x=good, y=good[:20, :20])
    refused(r"y/a\.tif: labels are float32, not integers", x=good, y=good.astype(np.float32))
    refused(r"x/a\.tif: labels go from 0 to 9, but --classes 3 are 0 to 2", {"classes": 3}, x=square(1, 1, 9), y=good)
    refused(r"y/a\.tif: has 3 channels", x=good, y=np.stack([good] * 3, axis=-1))
    refused(r"y/a\.tif: labels go down to -1", {"instances": True}, x=good, y=good.astype(np.int16) - 1)


@pytest.mark.parametrize("block", [16, 2048])
def test_stacks_keep_their_axes_and_blocks_change_nothing(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth_output, "_REGION", block)
    rng = np.random.default_rng(0)
    blob = np.stack([square(5, 5, 1), square(9, 9, 1), square(20, 30, 1)])
    stacks = [np.where(rng.random(blob.shape) < 0.1 * error, 1 - blob, blob).astype(np.uint8) for error in range(3)]
    for index, stack in enumerate(stacks):
        (tmp_path / "in" / f"e{index}").mkdir(parents=True)
        path = tmp_path / "in" / f"e{index}" / "a.tif"
        tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "ZYX"})
    (image,) = find_drawings(str(tmp_path / "in")).images
    truth = estimate_truth(image, str(tmp_path / "out"), TruthSettings())
    with open_rasters(str(tmp_path / "out" / truth.file)) as (raster,):
        assert (raster.axes, raster.shape) == ("zyx", stacks[0].shape)
    expected = staple(VotePatterns.count(stacks, 2)).estimate.apply(stacks)
    assert np.array_equal(tifffile.imread(tmp_path / "out" / "a.tif"), expected)


def test_ome_zarr_is_read_and_written_in_blocks_with_its_pixel_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth_output, "_REGION", 64)
    monkeypatch.setattr(truth_output, "_CHUNK", 32)
    rng = np.random.default_rng(1)
    blob = np.zeros((1, 300, 200), np.uint8)
    blob[:, 50:250, 30:90] = 2
    blob[:, 50:100, 120:160] = 1
    drawn = [np.where(rng.random(blob.shape) < 0.05, 0, blob).astype(np.uint8) for _ in range(3)]
    for index, labels in enumerate(drawn):
        (tmp_path / "in" / f"e{index}").mkdir(parents=True)
        write_image(tmp_path / "in" / f"e{index}" / "a.ome.zarr", labels, "zyx", pixel_size=0.5)
    (image,) = find_drawings(str(tmp_path / "in")).images
    assert image.name == "a"
    truth = estimate_truth(image, str(tmp_path / "out"), TruthSettings(classes=3))
    group = tmp_path / "out" / truth.file
    assert group.name == "a.ome.zarr"
    expected = staple(VotePatterns.count(drawn, 3)).estimate.apply(drawn)
    assert np.array_equal(zarr.open_array(group / "labels" / "semantic" / "s0", mode="r")[:], expected)
    (found,) = find_images([str(group)])
    assert (found.axes, found.levels[0].scale[-2:], len(found.levels)) == ("zyx", (0.5, 0.5), 2)
    assert truth.experts[0].dice == pytest.approx(0.975, abs=0.01)  # 5 % are missing


def test_label_images_within_ome_zarr_are_found_by_name(tmp_path: Path) -> None:
    for expert in ("x", "y"):
        (tmp_path / "in" / expert).mkdir(parents=True)
        group = write_image(tmp_path / "in" / expert / "a.ome.zarr", square(1, 1).astype(np.uint16))
        (group / "labels").mkdir()
        write_image(group / "labels" / "cells", square(5, 5))
    (image,) = find_drawings(str(tmp_path / "in"), label="cells").images
    truth = estimate_truth(image, str(tmp_path / "out"), TruthSettings())
    written = zarr.open_array(tmp_path / "out" / truth.file / "labels" / "semantic" / "s0", mode="r")
    assert np.array_equal(written[:], square(5, 5, value=1))
    assert find_drawings(str(tmp_path / "in"), label="nuclei").images == ()


def test_instances_are_voted_on_and_scored_by_average_precision(tmp_path: Path) -> None:
    two = square(5, 5, value=4) + square(5, 40, value=9)
    truth, labels = run(tmp_path, {"instances": True}, x=two, y=two, z=square(5, 5, value=1).astype(np.uint16) * 300)
    assert labels.dtype == np.uint16
    assert np.array_equal(labels, square(5, 5, value=1) + square(5, 40, value=2))
    assert [row.ap50 for row in truth.experts] == [1.0, 1.0, 0.5]
    assert [row.dice for row in truth.experts] == pytest.approx([1.0, 1.0, 2 / 3])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"instances": True, "method": "staple"}, "STAPLE is for pixels"),
        ({"instances": True, "classes": 3}, "instances have no classes"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TruthSettings.model_validate(given)


def test_the_method_follows_from_the_kind_of_labels() -> None:
    assert TruthSettings().method == "staple"
    assert TruthSettings(method=None).method == "staple"
    assert TruthSettings(instances=True).method == "vote"
