"""Images find their labels, and what is wrong with them is said in one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
import zarr
from PIL import Image
from skimage.measure import regionprops_table

from chorus.pipeline.core.outputs import FLOWS
from chorus.pipeline.core.provenance import About
from chorus.pipeline.errors import ImageError, RefusedError
from chorus.pipeline.training.checks import check_memory, check_pairs
from chorus.pipeline.training.data.pairs import TrainingPair, class_image, find_pairs, load_pair
from chorus.pipeline.training.data.splits import split
from chorus.pipeline.training.records import FoldResult
from chorus.pipeline.training.settings import TrainSettings
from chorus.pipeline.training.summary import ensemble_spec, training_summary
from tests.support.making import pixels, write_image


def write_pair(folder: Path, name: str, label: np.ndarray, seed: int = 0) -> None:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / "images" / f"{name}.tif", pixels(label.shape, seed=seed))
    tifffile.imwrite(folder / "labels" / f"{name}.tif", label)


def discs(height: int = 48, width: int = 64) -> np.ndarray:
    """Three discs of radius 6, numbered."""
    y, x = np.mgrid[:height, :width]
    result = np.zeros((height, width), np.uint16)
    for number, (cy, cx) in enumerate([(10, 12), (30, 24), (20, 50)], 1):
        result[(y - cy) ** 2 + (x - cx) ** 2 <= 36] = number
    return result


def folder_of(tmp_path: Path, count: int = 3) -> tuple[str, str]:
    for index in range(count):
        write_pair(tmp_path, f"field-{index}", discs(), index)
    return str(tmp_path / "images"), str(tmp_path / "labels")


def test_files_are_matched_by_name_and_those_without_a_partner_are_listed(tmp_path: Path) -> None:
    images, labels = folder_of(tmp_path)
    Image.fromarray(pixels((48, 64), "uint8")).save(tmp_path / "images" / "masked.png")
    Image.fromarray((discs() > 0).astype(np.uint8) * 255).save(tmp_path / "labels" / "masked_mask.png")
    tifffile.imwrite(tmp_path / "images" / "lonely.tif", pixels((8, 8)))
    tifffile.imwrite(tmp_path / "labels" / "orphan.tif", discs())
    write_pair(tmp_path, "smaller", discs())
    tifffile.imwrite(tmp_path / "labels" / "smaller.tif", discs(40, 64))
    found = find_pairs(images, labels, ["dna"])
    assert [pair.name for pair in found.pairs] == ["field-0", "field-1", "field-2", "masked"]
    assert found.without_label == ("lonely",)
    assert found.without_image == ("orphan",)
    assert [name for name, _ in found.failed] == ["smaller"]
    assert "differ in size (1x1x48x64 and 1x1x40x64" in found.failed[0][1]


def test_a_pair_is_read_as_it_is_stored(tmp_path: Path) -> None:
    images, labels = folder_of(tmp_path)
    image, label = load_pair(find_pairs(images, labels, ["dna"]).pairs[1])
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, pixels((48, 64), seed=1)[None])
    np.testing.assert_array_equal(label, discs())


def test_labels_within_ome_zarr_are_matched_plane_by_plane_and_named_channels_taken(tmp_path: Path) -> None:
    data = pixels((2, 2, 48, 64))
    path = write_image(tmp_path / "one.zarr", data, "czyx", channels=["actin", "dna"])
    zarr.create_group(path / "labels", zarr_format=3)
    truth = np.stack([discs(), discs()[::-1]]).astype(np.int32)
    write_image(path / "labels" / "nuclei", truth, "zyx")
    write_image(tmp_path / "two.zarr", data, "czyx", channels=["actin", "dna"])
    found = find_pairs(str(tmp_path), "nuclei", ["dna"])
    assert [(pair.name, pair.group, pair.z) for pair in found.pairs] == [
        ("one.ome.zarr:t0:z0", "one.ome.zarr", 0),
        ("one.ome.zarr:t0:z1", "one.ome.zarr", 1),
    ]
    assert found.without_label == ("two.ome.zarr",)
    image, label = load_pair(found.pairs[1])
    np.testing.assert_array_equal(image[0], data[1, 1])
    np.testing.assert_array_equal(label, truth[1])


def test_volumes_are_pairs_one_for_each_time_point(tmp_path: Path) -> None:
    data, truth = pixels((2, 3, 24, 32)), np.stack([np.stack([discs(24, 32)] * 3)] * 2).astype(np.int32)
    path = write_image(tmp_path / "one.zarr", data, "tzyx", channels=["dna"])
    zarr.create_group(path / "labels", zarr_format=3)
    write_image(path / "labels" / "nuclei", truth, "tzyx")
    flat = write_image(tmp_path / "flat.zarr", data[0, 0], "yx", channels=["dna"])
    zarr.create_group(flat / "labels", zarr_format=3)
    write_image(flat / "labels" / "nuclei", truth[0, 0], "yx")
    found = find_pairs(str(tmp_path), "nuclei", ["dna"], "zyx")
    assert [(pair.name, pair.t, pair.shape) for pair in found.pairs] == [
        ("one.ome.zarr:t0", 0, (3, 24, 32)),
        ("one.ome.zarr:t1", 1, (3, 24, 32)),
    ]
    assert "has a single plane" in dict(found.failed)["flat.ome.zarr"]
    image, label = load_pair(found.pairs[1])
    np.testing.assert_array_equal(image, data[1][None])
    np.testing.assert_array_equal(label, truth[1])


def test_a_volume_of_a_file_is_read_with_the_channels_that_were_named(tmp_path: Path) -> None:
    data = pixels((3, 2, 24, 32)).astype(np.uint16)
    for part, content, axes in (("images", data, "ZCYX"), ("labels", np.stack([discs(24, 32)] * 3), "ZYX")):
        (tmp_path / part).mkdir()
        tifffile.imwrite(tmp_path / part / "a.ome.tif", content, ome=True, metadata={"axes": axes})
    (pair,) = find_pairs(str(tmp_path / "images"), str(tmp_path / "labels"), ["1"], "zyx").pairs
    image, label = load_pair(pair)
    np.testing.assert_array_equal(image, data[:, 1][None])
    np.testing.assert_array_equal(label[2], discs(24, 32))


def test_a_folder_without_any_pair_is_refused(tmp_path: Path) -> None:
    images, _ = folder_of(tmp_path)
    (tmp_path / "other").mkdir()
    tifffile.imwrite(tmp_path / "other" / "another.tif", discs())
    with pytest.raises(RefusedError, match=r"no label fits an image .*3 images have no label of their name"):
        find_pairs(images, str(tmp_path / "other"), ["dna"])


def test_empty_labels_are_listed_and_refused_where_all_are(tmp_path: Path) -> None:
    images, labels = folder_of(tmp_path)
    settings = TrainSettings(folds=2, channels=["dna"])
    tifffile.imwrite(tmp_path / "labels" / "field-1.tif", discs() * 0)
    checked = check_pairs(find_pairs(images, labels, ["dna"]).pairs, settings)
    assert checked.empty == ("field-1",)
    assert checked.objects == 6
    assert sum(checked.pixels) == 3 * 48 * 64
    for index in range(3):
        tifffile.imwrite(tmp_path / "labels" / f"field-{index}.tif", discs() * 0)
    with pytest.raises(RefusedError, match="every label image is empty"):
        check_pairs(find_pairs(images, labels, ["dna"]).pairs, settings)


def test_a_class_without_pixels_and_fewer_images_than_folds_are_refused(tmp_path: Path) -> None:
    pairs = find_pairs(*folder_of(tmp_path), ["dna"]).pairs
    with pytest.raises(RefusedError, match="3 images with labels are fewer than 5 folds"):
        check_pairs(pairs, TrainSettings(folds=5))
    for index in range(3):
        tifffile.imwrite(tmp_path / "labels" / f"field-{index}.tif", np.ones((48, 64), np.uint8))
    with pytest.raises(RefusedError, match="no label holds any pixel of class background"):
        check_pairs(pairs, TrainSettings(folds=2))


def test_values_beyond_the_classes_are_refused_and_binary_masks_of_255_taken() -> None:
    settings = TrainSettings(labels="classes", classes=["background", "a", "b"])
    np.testing.assert_array_equal(class_image(np.array([[0, 2, 1]]), settings, "l"), [[0, 2, 1]])
    with pytest.raises(ImageError, match="labels go from 0 to 3, but there are 3 classes"):
        class_image(np.array([[0, 3]]), settings, "l")
    binary = TrainSettings(labels="classes")
    np.testing.assert_array_equal(class_image(np.array([[0, 255]], np.uint8), binary, "l"), [[0, 1]])
    with pytest.raises(ImageError, match="labels go down to -1"):
        class_image(np.array([[-1, 3]]), TrainSettings(), "l")


def test_training_that_does_not_fit_into_memory_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = TrainingPair("big", "nowhere.tif", "nowhere.tif", "big", "raster", (0,), (100_000, 100_000))
    memory = type("Memory", (), {"available": 64_000_000_000})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(RefusedError, match=r"5 folds at a time need about 1\d{3}\.\d GB for 1 images, and 64\.0 GB"):
        check_memory([pair], TrainSettings(), 5)


def test_folds_are_the_same_for_any_order_of_images_and_each_image_is_validated_on_once() -> None:
    names = [f"image-{index:02d}" for index in range(23)]
    folds = split(names, 5, seed=3)
    assert folds == split(names[::-1], 5, seed=3)
    assert folds != split(names, 5, seed=4)
    assert sorted(name for fold in folds for name in fold.validation) == names
    for fold in folds:
        assert sorted(fold.train + fold.validation) == names
    (single,) = split(names, 1, seed=3)
    assert len(single.validation) == 5
    with pytest.raises(RefusedError, match="2 images are fewer than 5 folds"):
        split(names[:2], 5, seed=0)


def test_the_summary_measures_images_and_objects_and_the_ensemble_names_its_members(tmp_path: Path) -> None:
    pairs = find_pairs(*folder_of(tmp_path), ["dna"]).pairs
    settings = TrainSettings(folds=2, channels=["dna"], classes=["background", "nucleus"], flows=True)
    result = FoldResult(
        fold=0,
        identity="",
        begun_with="random",
        learning_rate=1e-3,
        steps=10,
        best_step=5,
        weights="member-0.safetensors",
        sha256="0" * 64,
        weights_dtype="float16",
        train=["a"],
        validation=["b"],
        dice={"nucleus": 0.9},
        ap50=0.8,
        seconds=3.0,
    )
    summary = training_summary(pairs, settings, [result])
    stacked = np.stack([pixels((48, 64), seed=index) for index in range(3)])
    assert summary.objects == 9
    assert summary.images == 3
    assert summary.intensity["dna"]["mean"] == pytest.approx(stacked.mean())
    assert summary.intensity["dna"]["p99"] == pytest.approx(np.percentile(stacked, 99))
    diameters = regionprops_table(discs(), properties=("equivalent_diameter_area",))["equivalent_diameter_area"]
    assert summary.object_diameter_px["median"] == pytest.approx(np.median(diameters))
    assert summary.folds[0]["ap50"] == 0.8
    assert summary.recipe["begun_with"] == "random"
    spec = ensemble_spec("nuclei", settings, [result], About(training=summary))
    assert FLOWS in spec.answers
    assert [c.name for c in spec.classes] == ["background", "nucleus"]
    assert spec.members[0].weights == "member-0.safetensors"


def test_images_and_labels_of_one_folder_are_pairs_by_the_suffix_of_labels(tmp_path: Path) -> None:
    for index in range(2):
        tifffile.imwrite(tmp_path / f"{index:03d}.tif", pixels((48, 64), seed=index))
        tifffile.imwrite(tmp_path / f"{index:03d}_masks.tif", discs().astype(np.int64))
    tifffile.imwrite(tmp_path / "002.tif", pixels((48, 64), seed=2))
    np.save(tmp_path / "002_seg.npy", {"masks": discs()}, allow_pickle=True)  # type: ignore[arg-type]
    tifffile.imwrite(tmp_path / "003.tif", pixels((48, 64), seed=3))
    found = find_pairs(str(tmp_path), str(tmp_path), ["dna"])
    named = [(Path(pair.image).name, Path(pair.label).name) for pair in found.pairs]
    assert named == [("000.tif", "000_masks.tif"), ("001.tif", "001_masks.tif"), ("002.tif", "002_seg.npy")]
    assert (found.without_label, found.without_image) == (("003",), ())
    for pair in found.pairs:
        np.testing.assert_array_equal(load_pair(pair)[1], discs())


def test_a_folder_of_images_alone_is_refused_as_its_own_labels(tmp_path: Path) -> None:
    images, _ = folder_of(tmp_path)
    with pytest.raises(RefusedError, match="_masks"):
        find_pairs(images, images, ["dna"])
    shutil.copytree(images, tmp_path / "copy")
    (pair, *_) = find_pairs(images, str(tmp_path / "copy"), ["dna"]).pairs
    with pytest.raises(ImageError, match="is a copy of its own image"):
        load_pair(pair)
